"""Where a run works: in this process, on a cluster of this machine, at an address, or by a preset of the user's.

The cluster is never part of a recipe or of a hash: the bytes are the same anywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from geoeco.engine.documents import nearest, parse_yaml
from geoeco.engine.planning import Plan, machine_memory, processors
from geoeco.engine.provenance import package_versions
from geoeco.engine.stores import RunStore
from geoeco.errors import ClusterError

__all__ = ["connect", "load_presets", "presets_file"]

#: Part of the machine's memory that a local cluster may use.
MEMORY_SHARE = 0.9
#: Packages that must agree between driver and scheduler.
SCHEDULER_PACKAGES = ("dask", "distributed", "cloudpickle", "msgpack", "tornado")


class _Preset(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(default=1, ge=1, description="number of workers to start")
    maximum: int | None = Field(default=None, ge=1, description="scale between `workers` and this many")
    options: dict[str, Any] = Field(default={}, description="passed on to the cluster's own constructor")


class SlurmPreset(_Preset):
    """Jobs of a SLURM queue, by dask-jobqueue; ``options`` are those of ``SLURMCluster``.

    Workers leave by themselves before the queue kills them (``--lifetime``), not all at once (``--lifetime-stagger``),
    and adaptive scaling starts others.
    """

    kind: Literal["slurm"]
    queue: str | None = None
    account: str | None = None
    walltime: str = Field(default="02:00:00", pattern=r"^(\d+-)?\d+:\d{2}:\d{2}$", description="[days-]hh:mm:ss")
    memory: str | None = Field(default=None, description="of one worker; from the plan when not given")
    interface: str | None = Field(default=None, description="network interface of the nodes, for example ib0")


class GatewayPreset(_Preset):
    """A cluster by dask-gateway; ``options`` are the gateway's cluster options (image, cores ...)."""

    kind: Literal["gateway"]
    address: str | None = Field(default=None, description="of the gateway; from Dask's configuration when not given")
    auth: str | None = Field(default=None, description="kerberos, jupyterhub or basic")


class KubernetesPreset(_Preset):
    """A cluster by the Dask operator of Kubernetes; ``options`` are those of ``KubeCluster``."""

    kind: Literal["kubernetes"]
    name: str = "geoeco"
    namespace: str | None = None
    image: str = Field(description="container image with the same packages as here")


Preset = SlurmPreset | GatewayPreset | KubernetesPreset
_PRESETS = TypeAdapter(dict[str, Annotated[Preset, Field(discriminator="kind")]])


def presets_file() -> Path:
    """File of the user's presets: ``$GEOECO_CLUSTERS``, else ``~/.config/geoeco/clusters.yaml``."""
    named = os.environ.get("GEOECO_CLUSTERS")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "geoeco" / "clusters.yaml"


def load_presets(path: str | Path | None = None) -> dict[str, Preset]:
    """Read the user's presets; none if there is no file.

    Parameters
    ----------
    path : str or Path, optional
        `presets_file` when not given.

    Raises
    ------
    RecipeError
        If the file is not plain YAML.
    ClusterError
        If a preset is not as it should be.
    """
    file = Path(path) if path is not None else presets_file()
    if not file.exists():
        return {}
    document = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    try:
        presets: dict[str, Preset] = _PRESETS.validate_python(document.data or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        kinds: dict[str, type[_Preset]] = {
            "slurm": SlurmPreset,
            "gateway": GatewayPreset,
            "kubernetes": KubernetesPreset,
        }
        keys = [f"{name}: {', '.join(model.model_fields)}" for name, model in kinds.items() if name in first["loc"]]
        raise ClusterError(
            f"a cluster preset is not valid: {first['msg']}",
            where=document.where(tuple(part for part in first["loc"] if part not in kinds)),
            what_to_do=f"keys of {keys[0]}" if keys else f"each preset has a kind: {', '.join(kinds)}",
            code="preset",
        ) from error
    return presets


@contextlib.contextmanager
def connect(
    cluster: str,
    *,
    plan: Plan | None = None,
    workers: int | None = None,
    memory_limit: int | None = None,
    timeout: float = 60.0,
) -> Iterator[Any]:
    """Connect to a cluster; as a context manager it closes what it started.

    Parameters
    ----------
    cluster : str
        ``none`` (this process), ``local``, an address such as ``tcp://host:8786``, or the name of a preset.
    plan : Plan, optional
        Its memory bound sizes local and queued workers.
    workers : int, optional
        Number of workers of ``local`` (by processors and memory when not given) or of a preset.
    memory_limit : int, optional
        Bytes of one worker of ``local``.
    timeout : float
        Seconds to wait for a scheduler.

    Yields
    ------
    distributed.Client or None

    Raises
    ------
    ClusterError
        If it cannot be reached, is no known name, or its workers cannot hold the plan.
    """
    if cluster == "none":
        yield None
        return
    with contextlib.ExitStack() as stack:
        if cluster == "local":
            yield stack.enter_context(_local(plan, workers, memory_limit))
        elif "://" in cluster:
            yield stack.enter_context(_address(cluster, timeout))
        else:
            yield stack.enter_context(_from_preset(cluster, plan, workers))


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ClusterError(
            "Dask's distributed is not installed", what_to_do="pip install 'geoeco[cluster]', or use --cluster none"
        ) from error


def local_size(plan: Plan | None, workers: int | None, memory_limit: int | None) -> tuple[int, int]:
    """Size a local cluster: number of workers and the memory limit of each, in bytes.

    Raises
    ------
    ClusterError
        If the plan does not fit.
    """
    usable = int(machine_memory() * MEMORY_SHARE)
    need = plan.peak_memory_bytes if plan is not None else 2 * 2**30
    count = workers or max(1, min(processors(), usable // (memory_limit or need)))
    limit = memory_limit or usable // count
    if plan is not None:
        plan.check_memory(limit)
    return count, limit


@contextlib.contextmanager
def _local(plan: Plan | None, workers: int | None, memory_limit: int | None) -> Iterator[Any]:
    distributed = _distributed()
    import dask

    count, limit = local_size(plan, workers, memory_limit)
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    options = {
        # Fork and the threads of GDAL and zarr do not go together.
        "distributed.worker.multiprocessing-method": "spawn",
        # A task that has killed two workers is given back to the engine, which tries it in smaller parts.
        "distributed.scheduler.allowed-failures": 1,
        # Results are small records: nothing to spill. A paused worker whose memory does not shrink would wait for ever;
        # the plan's bound, and the end of the process at 95 %, are what keeps memory in check.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
    }
    with (
        dask.config.set(options),
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=limit,
            dashboard_address=":0",
            env=single,
            silence_logs=40,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def _address(address: str, timeout: float) -> Iterator[Any]:
    distributed = _distributed()
    try:
        # A client that fails to start stays Dask's default scheduler, so the first to ask is not to be the default.
        distributed.Client(address, timeout=timeout, set_as_default=False).close()
        client = distributed.Client(address, timeout=timeout)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers: {error}",
            where=address,
            what_to_do="start one with `dask scheduler` and workers with `dask worker ADDRESS --nthreads 1`",
            code="no-scheduler",
        ) from error
    with client:
        yield client


@contextlib.contextmanager
def _from_preset(name: str, plan: Plan | None, workers: int | None) -> Iterator[Any]:
    presets = load_presets()
    if name not in presets:
        like = nearest(name, ["none", "local", *presets])
        raise ClusterError(
            f"there is no cluster {name!r}" + (f"; did you mean {like!r}?" if like else ""),
            where=str(presets_file()),
            what_to_do=f"give none, local, tcp://host:port, or a preset: {', '.join(presets) or 'the file has none'}",
            code="no-preset",
        )
    preset = presets[name]
    with start_preset(preset, plan) as cluster:
        count = workers or preset.workers
        if preset.maximum:
            cluster.adapt(minimum=count, maximum=max(count, preset.maximum))
        else:
            cluster.scale(count)
        client = cluster.get_client()
        with client:
            yield client


def start_preset(preset: Preset, plan: Plan | None) -> Any:
    """Start the (still empty) cluster of a preset.

    Raises
    ------
    ClusterError
        If the package is missing or the cluster refuses.
    """
    try:
        if isinstance(preset, SlurmPreset):
            return _class("dask_jobqueue", "SLURMCluster")(**slurm_arguments(preset, plan))
        if isinstance(preset, KubernetesPreset):
            return _class("dask_kubernetes.operator", "KubeCluster")(**kubernetes_arguments(preset, plan))
        gateway = _class("dask_gateway", "Gateway")(
            **{k: v for k, v in (("address", preset.address), ("auth", preset.auth)) if v is not None}
        )
        options = gateway.cluster_options()
        for name, value in preset.options.items():
            setattr(options, name, value)
        return gateway.new_cluster(options, shutdown_on_close=True)
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(
            f"the {preset.kind} cluster cannot be started: {error}",
            where=str(presets_file()),
            what_to_do="check the preset; try the same options with the package itself",
            code="preset",
        ) from error


def _class(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ClusterError(
            f"the package of {module} is not installed", what_to_do="pip install 'geoeco[cluster]'"
        ) from error


def _worker_memory(plan: Plan | None) -> int:
    """Bytes to ask for when a preset does not say: the plan's bound and a quarter, in whole GiB."""
    need = plan.peak_memory_bytes if plan is not None else 3 * 2**30
    return max(2, math.ceil(need * 1.25 / 2**30)) * 2**30


def slurm_arguments(preset: SlurmPreset, plan: Plan | None) -> dict[str, Any]:
    """Arguments of ``dask_jobqueue.SLURMCluster`` for a preset: one worker of one thread a job by default."""
    seconds = _seconds(preset.walltime)
    lifetime = max(60, int(seconds * 0.9) - 60)
    stagger = max(10, min(300, seconds // 20))
    own = {
        "cores": 1,
        "processes": 1,
        "memory": preset.memory or f"{_worker_memory(plan) // 2**30}GiB",
        "walltime": preset.walltime,
        "worker_extra_args": ["--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s"],
    }
    named = {"queue": preset.queue, "account": preset.account, "interface": preset.interface}
    return own | {name: value for name, value in named.items() if value is not None} | preset.options


def kubernetes_arguments(preset: KubernetesPreset, plan: Plan | None) -> dict[str, Any]:
    """Arguments of ``dask_kubernetes.operator.KubeCluster`` for a preset."""
    memory = f"{_worker_memory(plan) // 2**30}Gi"
    own: dict[str, Any] = {
        "name": preset.name,
        "image": preset.image,
        "n_workers": 0,
        "resources": {"requests": {"cpu": "1", "memory": memory}, "limits": {"memory": memory}},
        "worker_command": "dask-worker --nthreads 1",
    }
    if preset.namespace is not None:
        own["namespace"] = preset.namespace
    return own | preset.options


def _seconds(walltime: str) -> int:
    days, _, clock = walltime.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def prepare_client(client: Any, settings: Mapping[str, str], plan: Plan, *, timeout: float = 300.0) -> dict[str, Any]:
    """Make a cluster fit for a run: workers there, same packages, enough memory, GDAL set on each.

    Parameters
    ----------
    client : distributed.Client
    settings : mapping
        GDAL settings.
    plan : Plan
    timeout : float
        Seconds to wait for the first worker.

    Returns
    -------
    dict
        ``workers``, ``threads``, ``hosts``, and the GDAL settings as the workers report them, for provenance.

    Raises
    ------
    ClusterError
        If there are no workers, versions differ, a worker cannot hold the plan, or none has the resources of a task.
    """
    from geoeco.engine.plugins import GdalSettings, worker_facts

    wait_for_workers(client, timeout)
    check_versions(client)
    client.register_plugin(GdalSettings(settings))
    facts = client.run(worker_facts, tuple(sorted(settings)))
    for fact in facts.values():
        plan.check_memory(fact["memory_limit"] or None, threads=fact["threads"])
    check_resources(plan, [fact["resources"] for fact in facts.values()])
    reported = [fact["gdal_settings"] for fact in facts.values()]
    differing = [address for address, fact in facts.items() if fact["gdal_settings"] != dict(settings)]
    if differing:
        raise ClusterError(
            "GDAL settings did not reach a worker", where=str(differing[0]), what_to_do="restart the worker"
        )
    return {
        "workers": len(facts),
        "threads": sum(fact["threads"] for fact in facts.values()),
        "hosts": len({fact["host"] for fact in facts.values()}),
        "gdal_settings": reported[0] if reported else {},
    }


def check_resources(plan: Plan, workers: Sequence[Mapping[str, float]]) -> None:
    """Refuse a plan of which a task would wait for ever: no worker has what it takes.

    Parameters
    ----------
    plan : Plan
    workers : sequence of mapping
        Resources of each worker that is there now, by name.

    Raises
    ------
    ClusterError
        Naming the task and the resource.
    """
    for task in plan.tasks:
        if any(all(has.get(name, 0) >= amount for name, amount in task.resources.items()) for has in workers):
            continue
        wanted = " ".join(f"{name}={amount:g}" for name, amount in task.resources.items())
        raise ClusterError(
            f"no worker has the resources {wanted}",
            where=task.id,
            what_to_do=f'start workers that have them (`dask worker ADDRESS --nthreads 1 --resources "{wanted}"`), or '
            "leave resources out of the step",
            code="resources",
        )


def wait_for_workers(client: Any, timeout: float) -> None:
    """Wait until a cluster has a worker.

    Raises
    ------
    ClusterError
        If none comes in time.
    """
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError as error:
        raise ClusterError(
            f"the cluster has no workers after {timeout:.0f} s",
            where=str(getattr(client, "dashboard_link", "")),
            what_to_do="start workers (`dask worker ADDRESS --nthreads 1`), or look why the queue starts none",
            code="no-workers",
        ) from error


def check_versions(client: Any) -> None:
    """Compare the packages that matter on driver, scheduler and workers.

    Raises
    ------
    ClusterError
        Naming each package that differs.
    """
    here = package_versions()
    try:
        there = client.run(package_versions)
    except Exception as error:
        raise ClusterError(
            f"geoeco cannot be used on the workers: {error}",
            what_to_do="install the same geoeco there as here (the same environment or image)",
            code="versions",
        ) from error
    differing = sorted(
        {
            f"{name}: {here.get(name, 'none')} here, {found.get(name, 'none')} on {address}"
            for address, found in there.items()
            for name in here.keys() | found.keys()
            if here.get(name) != found.get(name)
        }
    )
    versions = client.get_versions(check=False)
    own, scheduler = versions["client"]["packages"], versions["scheduler"]["packages"]
    differing += [
        f"{name}: {own[name]} here, {scheduler.get(name)} on the scheduler"
        for name in SCHEDULER_PACKAGES
        if name in own and own[name] != scheduler.get(name)
    ]
    if differing:
        raise ClusterError(
            "versions differ between here and the cluster: " + "; ".join(differing[:8]),
            what_to_do="use one environment (or image) for driver, scheduler and workers, and restart them",
            code="versions",
        )


def check_shared(client: Any, store: RunStore, session: str) -> None:
    """Check that every worker sees the run folder, by the lock that the driver has just written there.

    Raises
    ------
    ClusterError
        If one does not.
    """
    for address, found in client.run(read_session, store).items():
        if found != session:
            raise ClusterError(
                "a worker does not see the run folder",
                where=f"{store.url()} on {address}",
                what_to_do="give an --out on a disk that all workers share, or an object store (s3://...)",
                code="not-shared",
            )


def read_session(store: RunStore) -> str:
    """Return the session that a worker reads in the run folder's lock."""
    try:
        return str(store.read_json("lock.json").get("session", ""))
    except (OSError, ValueError):
        return ""
