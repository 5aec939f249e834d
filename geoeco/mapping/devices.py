"""Where networks run, and what is held fixed while they do, so that the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from geoeco.errors import InputError

__all__ = ["Precision", "device_of", "fixed_arithmetic", "precision_of"]

Precision = Literal["auto", "32", "bf16"]


@contextmanager
def fixed_arithmetic(threads: int) -> Iterator[None]:
    """Fix what else changes the last bits of a result: the number of threads, and CUDA's choice of algorithms."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]


def device_of(wish: str) -> str:
    """Name of the torch device that a wish comes to.

    Parameters
    ----------
    wish : {"auto", "cpu", "cuda"}

    Raises
    ------
    InputError
        If CUDA is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if wish == "cuda" and not there:
        raise InputError("there is no CUDA device here", what_to_do="use device: auto or cpu", code="device")
    return "cuda" if there and wish != "cpu" else "cpu"


def precision_of(wish: Precision, device: str) -> Literal["32", "bf16"]:
    """Precision in which a network runs.

    Parameters
    ----------
    wish : {"auto", "32", "bf16"}
        ``auto`` is bfloat16 on a CUDA device that has it, and 32 bits elsewhere.
    device : str
        ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    InputError
        If bfloat16 is asked for where the processor computes it in software only.
    """
    there = torch.cuda.is_bf16_supported() if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
    if wish == "bf16" and not there:
        raise InputError(
            f"this {'GPU' if device == 'cuda' else 'processor'} has no bfloat16 arithmetic",
            what_to_do="use precision: 32, or auto",
            code="device",
        )
    if wish == "auto":
        return "bf16" if there and device == "cuda" else "32"
    return wish
