"""Keywords that a training takes, with those that all trainings share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from geoeco.training.fitting import Fitting, FittingOptions


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of all keywords of a function, by name."""
    own = {name: value.default for name, value in inspect.signature(function).parameters.items() if name != "options"}
    shared = {field.name: field.default for field in dataclasses.fields(Fitting) if field.name != "root"}
    assert set(shared) == set(get_type_hints(FittingOptions))
    return own | shared
