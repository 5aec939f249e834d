"""Images a second of a full SeCo step, beside the rate of forward and backward alone.

A step: the EMA of the key branch, the query forward and backward, three keys forward, three heads with their queues and
negatives, the optimiser. ``networks alone`` is the query's forward and backward and the keys' forward passes, nothing
else: the fraction says what contrast costs beyond them. ``forward+backward`` trains on every one of the four images,
which no step of contrast does. On CUDA: ResNet-50, 9 channels, 224 pixels, batch
256, queues of 65 536, bfloat16, channels last, `torch.compile`. Without CUDA a tiny setting runs (ResNet-18, 64 pixels,
batch 16), which says nothing of a GPU. Input is noise that lies on the device: no loader, no views.

Needs `geoeco.models`, torch and timm alone: ``python benchmarks/seco_step.py [--steps N] [--no-compile]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from geoeco.models import SeCo

#: 99 300 steps of 256 locations in 7 to 8 days on one A100, loader and views included (SSL4Eco's authors; derived).
AUTHORS = (37.0, 42.0)


def seconds_of(work: Callable[[], None], device: torch.device, rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--batch", type=int, help="locations a step")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    backbone, size, queue = ("resnet50", 224, 65536) if cuda else ("resnet18", 64, 1024)
    batch = options.batch or (256 if cuda else 16)
    compiled = cuda and not options.no_compile
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = SeCo(backbone, 9, queue_size=queue).to(device, memory_format=torch.channels_last).train()
    if compiled:
        model.backbone.compile()
        model.key_backbone.compile()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, 0.03, momentum=0.9, weight_decay=1e-4)
    views = [
        torch.randn(batch, 9, size, size, device=device).contiguous(memory_format=torch.channels_last) for _ in range(4)
    ]

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss(*views)
        loss.total.backward()
        optimiser.step()

    def forward_backward() -> None:
        optimiser.zero_grad(set_to_none=True)
        for view in views:
            with torch.autocast(device.type, torch.bfloat16):
                features = model(view)
            features.float().mean().backward()

    def networks() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            features = model(views[0])
            with torch.no_grad():
                for view in views[1:]:
                    model.key_backbone(view)
        features.float().mean().backward()

    works = {"step": step, "networks alone": networks, "forward+backward": forward_backward}
    for work in works.values():
        seconds_of(work, device, 5 if cuda else 1)
    taken: dict[str, list[float]] = {name: [] for name in works}
    # in turn, so that a slow minute of the machine hits all alike
    for _ in range(options.steps):
        for name, work in works.items():
            taken[name] += seconds_of(work, device, 1)
    rate = {name: 4 * batch / statistics.median(seconds) for name, seconds in taken.items()}
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU, no CUDA device: a tiny setting",
        "torch": torch.__version__,
        "setting": {
            "backbone": backbone, "size": size, "batch": batch, "queue": queue, "bf16": True, "compiled": compiled,
        },
        "images_per_s": {name: round(value, 1) for name, value in rate.items()},
        "locations_per_s": round(rate["step"] / 4, 1),
        "fraction_of_networks_alone": round(rate["step"] / rate["networks alone"], 3),
        "fraction_of_forward_backward": round(rate["step"] / rate["forward+backward"], 3),
        "peak_gib": round(peak, 1) if cuda else None,
        "seconds": {name: [round(s, 4) for s in seconds] for name, seconds in taken.items()},
    }  # fmt: skip
    print(f"{record['device']}: {backbone}, {size} px, {batch} locations a step, bf16, compiled: {compiled}")
    for name, value in rate.items():
        print(f"  {name:18} {value:10.1f} images/s")
    print(f"  a full SeCo step runs at {record['fraction_of_networks_alone']:.2f} of its networks alone")
    print(
        f"  {record['locations_per_s']:.1f} locations/s; the authors' run on an A100, in float32 with loader and views,"
    )
    print(f"  made {AUTHORS[0]:.0f} to {AUTHORS[1]:.0f} (derived from its days): another setting, no race")
    if not cuda:
        print("  no CUDA device is here: these figures say nothing of one")
    name = "seco_step_cuda" if cuda else "seco_step_cpu"
    out = Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
