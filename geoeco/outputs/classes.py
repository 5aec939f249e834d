"""Class tables: which code means what, and in which colour.

One table makes the colour table, the category names, the attribute table and the style of a class map, so that they
cannot disagree.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from geoeco.errors import InputError
from geoeco.variables import UNPRINTABLE, check_class_names, class_flags, class_names

__all__ = ["ClassEntry", "ClassTable"]

#: Largest code a class map can hold: 65535 is the nodata value of uint16.
LARGEST_CODE = 65534

# Okabe & Ito (2008), "Color Universal Design": told apart with the common kinds of colour blindness
_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
_HEX = re.compile(r"#?([0-9a-fA-F]{6})([0-9a-fA-F]{2})?\Z")


@dataclass(frozen=True)
class ClassEntry:
    """One class: its code in the raster, its name and its colour (red, green, blue, alpha; 0..255)."""

    code: int
    name: str
    colour: tuple[int, int, int, int]

    @property
    def hex(self) -> str:
        """Colour as ``#rrggbb``."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour[:3])


def _default_colour(position: int) -> str:
    if position < len(_OKABE_ITO):
        return _OKABE_ITO[position]
    # the golden angle keeps neighbouring classes apart, however many there are
    turn = ((position - len(_OKABE_ITO)) * 0.6180339887498949) % 1.0
    value = (0.9, 0.7, 0.5)[position % 3]
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(turn, 0.65, value))


def _colour(value: Any) -> tuple[int, int, int, int]:
    if isinstance(value, str):
        found = _HEX.match(value.strip())
        if not found:
            raise InputError(f"{value!r} is not a colour", what_to_do="write colours as #rrggbb or (r, g, b[, a])")
        digits = found[1] + (found[2] or "ff")
        r, g, b, a = (int(digits[i : i + 2], 16) for i in (0, 2, 4, 6))
        return r, g, b, a
    try:
        parts = [int(part) for part in value]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{value!r} is not a colour", what_to_do="write colours as #rrggbb or (r, g, b[, a])"
        ) from error
    if len(parts) == 3:
        parts.append(255)
    if len(parts) != 4 or not all(0 <= part <= 255 for part in parts):
        raise InputError(f"{value!r} is not a colour", what_to_do="three or four whole numbers from 0 to 255")
    return parts[0], parts[1], parts[2], parts[3]


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(word) for word in value]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a map, in ascending order of their codes.

    Parameters
    ----------
    entries : iterable of ClassEntry
        Codes are unique whole numbers from 0 to 65534; names are unique and not empty.
    name : str
        Name of the class scheme; the band of a class map is described with it.

    Raises
    ------
    InputError
        If codes or names repeat, are empty or out of range.
    """

    entries: tuple[ClassEntry, ...]
    name: str = field(default="classes")

    def __post_init__(self) -> None:
        entries = tuple(sorted(self.entries, key=lambda entry: entry.code))
        object.__setattr__(self, "entries", entries)
        if not entries:
            raise InputError("a class table needs at least one class")
        codes = [entry.code for entry in entries]
        names = [entry.name for entry in entries]
        if not 0 <= codes[0] <= codes[-1] <= LARGEST_CODE:
            raise InputError(f"class codes must lie in 0..{LARGEST_CODE}, not {codes[0]}..{codes[-1]}")
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise InputError(f"class table {self.name!r} has the same code twice: {', '.join(map(str, twice))}")
        check_class_names(names, f"class table {self.name!r}")
        if UNPRINTABLE.search(self.name):
            raise InputError(f"class table {self.name!r} has control characters in its name")

    @classmethod
    def of(
        cls,
        names: Mapping[int, str] | Iterable[str],
        colours: Mapping[int, Any] | Iterable[Any] | None = None,
        *,
        name: str = "classes",
    ) -> ClassTable:
        """Build a table from names and colours.

        Parameters
        ----------
        names : mapping of code to name, or iterable of names
            An iterable numbers its classes from 1.
        colours : mapping of code to colour, or iterable in the order of `names`, optional
            ``"#rrggbb"`` or ``(r, g, b[, a])``; a fixed palette otherwise.
        name : str
        """
        pairs = dict(names) if isinstance(names, Mapping) else dict(enumerate(names, start=1))
        if colours is None:
            given: dict[int, Any] = {}
        elif isinstance(colours, Mapping):
            given = dict(colours)
        else:
            listed = list(colours)
            if len(listed) != len(pairs):
                raise InputError(f"class table {name!r} has {len(pairs)} classes and {len(listed)} colours")
            given = dict(zip(pairs, listed, strict=True))
        entries = []
        for position, (code, label) in enumerate(pairs.items()):
            if int(code) != code:
                raise InputError(f"class code {code!r} is not a whole number")
            colour = given.get(code, _default_colour(position))
            entries.append(ClassEntry(int(code), str(label), _colour(colour)))
        return cls(tuple(entries), name)

    @classmethod
    def from_attrs(cls, array: xr.DataArray) -> ClassTable | None:
        """Read the table that a variable carries as CF flags, or None where it carries none.

        Reads what `geoeco.variables.class_names` reads and, where given, ``flag_colors`` (``#rrggbb``, blank-separated
        or a list).
        """
        names = class_names(array)
        if not names:
            return None
        colours = _words(array.attrs["flag_colors"]) if "flag_colors" in array.attrs else None
        return cls.of(names, colours, name=str(array.attrs.get("long_name") or array.name or "classes"))

    def to_attrs(self) -> dict[str, Any]:
        """CF flag attributes of the table (the inverse of `from_attrs`)."""
        return class_flags(self.codes, self.names, [entry.hex for entry in self.entries])

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[ClassEntry]:
        return iter(self.entries)

    @property
    def codes(self) -> tuple[int, ...]:
        """Codes, ascending."""
        return tuple(entry.code for entry in self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the order of `codes`."""
        return tuple(entry.name for entry in self.entries)
