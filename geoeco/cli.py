"""The command line: ``geoeco validate, plan, run, resume, status, report, schema, recipes, demo, doctor``.

Exit codes: 0 complete, 3 partial, 1 failed or refused, 2 bad usage.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from geoeco.errors import GeoecoError, RecipeError

if TYPE_CHECKING:
    from types import FrameType

    from geoeco.engine import Plan, Recipe, Run

__all__ = ["app", "main"]

out_console = Console(highlight=False)
err_console = Console(stderr=True, highlight=False)


class _Guarded(TyperGroup):
    """Commands whose errors are a few plain lines, without a traceback unless asked for."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GeoecoError as error:
            if ctx.params.get("debug"):
                raise
            err_console.print(f"[bold red]error[/] ({error.code}): ", end="")
            err_console.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except (OSError, ValueError, TypeError, LookupError, RuntimeError, ImportError) as error:
            if ctx.params.get("debug") or isinstance(error, _usage_errors()):
                raise
            from geoeco.engine.faults import is_disk_full

            if is_disk_full(error):
                err_console.print("[bold red]error[/] (disk-full): the disk is full: ", end="")
                err_console.print(str(error), markup=False, soft_wrap=True)
                err_console.print(
                    "  what to do: make room, then `geoeco resume`: nothing that the ledger knows is lost"
                )
                raise typer.Exit(1) from error
            err_console.print(f"[bold red]unexpected {type(error).__name__}[/]: ", end="")
            err_console.print(str(error), markup=False, soft_wrap=True)
            err_console.print("  run `geoeco --debug ...` for the traceback; `geoeco doctor` checks the environment")
            raise typer.Exit(1) from error


def _usage_errors() -> tuple[type[BaseException], ...]:
    """Exceptions by which typer itself ends a command."""
    return (typer.Exit, typer.Abort, typer.BadParameter)


app = typer.Typer(
    name="geoeco",
    cls=_Guarded,
    help="Earth observation in, georeferenced answers out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="Recipes that come with geoeco.", no_args_is_help=True)
demo_app = typer.Typer(help="Simulated worlds with known truth.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.add_typer(demo_app, name="demo")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        out_console.print(version("geoeco"))
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Earth observation in, georeferenced answers out."""


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(text))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no amount of memory; for example 4GiB") from error
    if size <= 0:
        raise typer.BadParameter(f"{text!r} is no amount of memory; for example 4GiB")
    return size


def _key_value(values: list[str] | None) -> list[str]:
    for value in values or ():
        if "=" not in value:
            raise typer.BadParameter(f"{value!r} is not key=value; for example --set grid.block=512")
    return list(values or ())


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
RunFolder = Annotated[str, typer.Argument(metavar="DIR", help="Run folder: a path or a URL (s3://...).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", callback=_key_value, help="Change a key of the recipe; repeatable."),
]
ClusterName = Annotated[
    str, typer.Option("--cluster", help="none (this process), local, tcp://host:port, or the name of a preset.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Number of workers.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="SIZE", callback=_memory, help="Memory of one worker, for example 4GiB."),
]
Retries = Annotated[int, typer.Option("--retries", min=0, help="How often to repeat a task after a passing fault.")]
ForceUnlock = Annotated[
    bool, typer.Option("--force-unlock", help="Take the folder from another run that is surely dead.")
]
NoWorkersTimeout = Annotated[
    float, typer.Option("--no-workers-timeout", min=1, help="Seconds to wait for workers before giving up.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _recipe_type() -> type[Recipe]:
    """Return the recipe type that knows all verbs; imported late, since it imports every room."""
    from geoeco.steps import Recipe

    return Recipe


@app.command()
def validate(recipe: RecipeFile, settings: Settings = None) -> None:
    """Check a recipe without looking at its imagery."""
    loaded = _recipe_type().load(recipe, settings=settings or ())
    missing = _missing_inputs(loaded)
    if missing:
        raise RecipeError(
            f"the recipe names files that are not there: {', '.join(missing)}",
            where=str(recipe),
            what_to_do="relative names start from the recipe's own folder",
        )
    out_console.print(f"{recipe}: fine; steps {', '.join(step.step for step in loaded.steps)}", soft_wrap=True)


def _missing_inputs(recipe: Recipe) -> list[str]:
    from geoeco.engine import recipe_path

    names = list(recipe.inputs.tables.values())
    if recipe.inputs.imagery is not None:
        names.append(recipe.inputs.imagery.catalog)
    if recipe.grid is not None and isinstance(recipe.grid.area, str):
        names.append(recipe.grid.area)
    if recipe.grid is not None and recipe.grid.like is not None and recipe.grid.like not in recipe.inputs.tables:
        names.append(recipe.grid.like)
    paths = [recipe_path(name, recipe.folder) for name in names]
    return [path for path in paths if "://" not in path and not Path(path).exists()]


@app.command()
def plan(
    recipe: RecipeFile,
    settings: Settings = None,
    out: Annotated[str | None, typer.Option("--out", help="Run folder; runs beside it tell about time.")] = None,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, read, write and need; refuse what cannot fit. Does nothing."""
    loaded = _recipe_type().load(recipe, settings=settings or ())
    planned = _plan(loaded, out, workers, memory_limit)
    if as_json:
        out_console.print_json(json.dumps(planned.document()))
        return
    _show_plan(planned)


def _plan(recipe: Recipe, out: str | None, workers: int | None, memory_limit: Any) -> Plan:
    from geoeco.engine import machine_memory

    limit = memory_limit or int(machine_memory() * 0.9) // (workers or 1)
    return recipe.plan(out=out, workers=workers or 1, memory_limit=limit)


def _show_plan(planned: Plan) -> None:
    from geoeco.engine import megabytes

    for name, value in planned.facts():
        out_console.print(f"{name:24} {value}", soft_wrap=True, markup=False)
    table = Table("step", "verb", box=None, pad_edge=False)
    for head in ("tasks", "read", "written", "memory of a task", "worker minutes"):
        table.add_column(head, justify="right")
    for name, verb, tasks, read, written, memory, seconds in planned.rows():
        minutes = "?" if seconds is None else f"{seconds / 60:.1f}"
        table.add_row(name, verb, str(tasks), megabytes(read), megabytes(written), megabytes(memory), minutes)
    out_console.print(table)


@app.command()
def run(
    recipe: RecipeFile,
    out: Annotated[str, typer.Option("--out", help="Run folder: a path or a URL (s3://...).")],
    cluster: ClusterName = "none",
    settings: Settings = None,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace the steps that the recipe has changed since the last run.")
    ] = False,
    retries: Retries = 3,
    force_unlock: ForceUnlock = False,
    no_workers_timeout: NoWorkersTimeout = 300.0,
    quiet: Quiet = False,
) -> None:
    """Run a recipe; in a folder that has the run already, go on where it stopped."""
    loaded = _recipe_type().load(recipe, settings=settings or ())
    _run(
        loaded,
        out,
        cluster=cluster,
        workers=workers,
        memory_limit=memory_limit,
        quiet=quiet,
        rebuild=rebuild,
        retries=retries,
        force_unlock=force_unlock,
        no_workers_timeout=no_workers_timeout,
    )


@app.command()
def resume(
    folder: RunFolder,
    cluster: ClusterName = "none",
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    retries: Retries = 3,
    force_unlock: ForceUnlock = False,
    no_workers_timeout: NoWorkersTimeout = 300.0,
    quiet: Quiet = False,
) -> None:
    """Go on with a run where it stopped, with the recipe that its folder keeps."""
    _run(
        _open_run(folder).recipe,
        folder,
        cluster=cluster,
        workers=workers,
        memory_limit=memory_limit,
        quiet=quiet,
        rebuild=False,
        retries=retries,
        force_unlock=force_unlock,
        no_workers_timeout=no_workers_timeout,
    )


def _open_run(folder: str) -> Run:
    from geoeco.engine import load_run

    return load_run(folder, _recipe_type())


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Turn the signal by which queues and containers end a process into Ctrl-C, which leaves a resumable run."""
    raise KeyboardInterrupt


def _run(
    recipe: Recipe,
    out: str,
    *,
    cluster: str,
    workers: int | None,
    memory_limit: Any,
    quiet: bool,
    **options: Any,
) -> None:
    from geoeco.engine import connect, machine_memory, progress_for

    signal.signal(signal.SIGTERM, _interrupt)
    # The plan first: what cannot be run is refused before a cluster is started for it.
    limit = memory_limit or (int(machine_memory() * 0.9) if cluster == "none" else None)
    planned = recipe.plan(out=out, workers=workers or 1, memory_limit=limit)
    subscribers = [] if quiet else [progress_for()]
    timeout = min(60.0, options["no_workers_timeout"])
    with connect(cluster, plan=planned, workers=workers, memory_limit=memory_limit, timeout=timeout) as client:
        made = recipe.run(
            out, client, plan=planned, memory_limit=limit, subscribers=subscribers, progress=False, **options
        )
    _show_run(made)
    raise typer.Exit(made.exit_code)


def _show_run(made: Run) -> None:
    failures = made.failures
    out_console.print(f"{made.state}: {made.path()}", soft_wrap=True, markup=False)
    for row in failures.head(10).to_dict("records"):
        subject = " ".join(str(row[name]) for name in ("task", "item", "asset") if row[name])
        out_console.print(f"  {row['state']}: {subject}: {row['what']}", soft_wrap=True, markup=False)
    if len(failures) > 10:
        out_console.print(
            f"  ... {len(failures) - 10} more in {made.path('quarantine.json')}", soft_wrap=True, markup=False
        )
    out_console.print(f"report: {made.path('report.html')}", soft_wrap=True, markup=False)
    if made.exit_code != 0:
        out_console.print(f"`geoeco resume {made.path()}` goes on from here", soft_wrap=True, markup=False)


@app.command()
def status(folder: RunFolder, as_json: AsJson = False) -> None:
    """Show how far a run is, by its ledger; works while it is running and after it was killed."""
    made = _open_run(folder)
    counts = made.counts()
    if as_json:
        document = {"state": made.state, "exit_code": made.info["exit_code"], "steps": counts}
        out_console.print_json(json.dumps(document))
        return
    state = made.state
    if state == "running" and not made.store.exists("lock.json"):
        state = "stopped"
    out_console.print(f"{made.info['recipe']['name']}: {state}, {made.path()}", soft_wrap=True, markup=False)
    for step, count in counts.items():
        text = ", ".join(f"{n} {name}" for name, n in sorted(count.items()))
        out_console.print(f"  {step}: {text or 'no tasks'}", soft_wrap=True, markup=False)


@app.command()
def report(folder: RunFolder) -> None:
    """Write report.html anew from what the run folder holds."""
    from geoeco.engine import write_report

    made = _open_run(folder)
    if not made.store.exists("manifest.json"):
        raise GeoecoError(
            "the run has not come to an end yet", where=made.path(), what_to_do="`geoeco resume` it", code="no-manifest"
        )
    write_report(made.store)
    out_console.print(made.path("report.html"), soft_wrap=True, markup=False)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", help="File; standard output when not given.")] = None,
) -> None:
    """Write the JSON schema of recipes, for editors that complete and check YAML."""
    text = json.dumps(_recipe_type().model_json_schema(), indent=2) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")


def _recipe_files() -> dict[str, Path]:
    """Recipes that come with geoeco: in the package, or beside it in a checkout."""
    folders = [Path(str(files("geoeco"))) / "data" / "recipes", Path(str(files("geoeco"))).parent / "recipes"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with geoeco."""
    from geoeco.engine.documents import parse_yaml

    for name, path in _recipe_files().items():
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path)).data
        description = str(data.get("description", "")) if isinstance(data, dict) else ""
        out_console.print(f"{name:20} {' '.join(description.split())}", soft_wrap=True, markup=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `geoeco recipes list` shows it.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder or file.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it."""
    from geoeco.engine.documents import nearest

    found = _recipe_files()
    stem = name.removesuffix(".yaml")
    if stem not in found:
        like = nearest(stem, list(found))
        raise RecipeError(
            f"there is no recipe {name!r}" + (f"; did you mean {like!r}?" if like else ""),
            what_to_do=f"recipes: {', '.join(found) or 'none are installed'}",
        )
    target = destination / f"{stem}.yaml" if destination.is_dir() or not destination.suffix else destination
    if target.exists() and not force:
        raise RecipeError("the file is there already", where=str(target), what_to_do="--force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[stem], target)
    out_console.print(str(target), soft_wrap=True, markup=False)


class Hemisphere(StrEnum):
    """Where a demo world lies."""

    north = "north"
    south = "south"


@demo_app.command("s2")
def demo_s2(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the world.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same bytes.")] = 42,
    size: Annotated[int | None, typer.Option("--size", min=16, help="Edge in pixels of 10 m.")] = None,
    years: Annotated[int | None, typer.Option("--years", min=1, help="Number of years.")] = None,
    hemisphere: Annotated[Hemisphere, typer.Option("--hemisphere", help="South: the season crosses 1 January.")] = (
        Hemisphere.north
    ),
    clouds: Annotated[float | None, typer.Option("--clouds", min=0, max=1, help="Cloud fraction, 0 to 1.")] = None,
) -> None:
    """Write a small Sentinel-2 world with its catalogue and the true seasons of every pixel."""
    from geoeco.simulate import write_s2_world

    given: dict[str, Any] = {"size": size, "years": years, "clouds": clouds}
    options = {name: value for name, value in given.items() if value is not None}
    catalog = write_s2_world(folder, seed=seed, hemisphere=hemisphere.value, **options)
    out_console.print(str(catalog), soft_wrap=True, markup=False)


@demo_app.command("chips")
def demo_chips(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the world.")],
    locations: Annotated[int, typer.Option("--locations", min=1, help="Number of places, all over the globe.")] = 1000,
    size: Annotated[int, typer.Option("--size", min=8, help="Edge of a chip in pixels of 10 m.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same bytes.")] = 42,
) -> None:
    """Write season chips of simulated places, by phenology and by the calendar, with labels: 500 MB by default."""
    from geoeco.simulate import write_chip_world

    world = write_chip_world(folder, locations=locations, size=size, seed=seed)
    out_console.print(str(world), soft_wrap=True, markup=False)


@demo_app.command("uav")
def demo_uav(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the world.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same bytes.")] = 42,
    size: Annotated[int, typer.Option("--size", min=128, help="Edge in pixels.")] = 2048,
    gsd: Annotated[float, typer.Option("--gsd", min=0.02, max=0.5, help="Metres of a pixel.")] = 0.1,
) -> None:
    """Write farmland as a drone sees it: orthomosaic, heights, crowns, close-ups, labels and the truth."""
    from geoeco.simulate import write_uav_world

    world = write_uav_world(folder, seed=seed, size=size, gsd=gsd)
    out_console.print(str(world), soft_wrap=True, markup=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, GDAL drivers, PROJ data, optional extras, temporary folder, memory."""
    from dataclasses import asdict

    from geoeco.engine.environment import check_environment

    checks = check_environment()
    if as_json:
        out_console.print_json(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            out_console.print(f"{check.state:8} {check.name:22} {check.text}", soft_wrap=True, markup=False)
            if check.what_to_do:
                out_console.print(f"{'':31} {check.what_to_do}", soft_wrap=True, markup=False)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``geoeco`` command."""
    app(args=arguments, prog_name="geoeco")
