"""Which chips of orthomosaics there are: on a grid, round crowns or at random, each in its set, before any is cut.

Every window is whole pixels of the mosaic. Not about the pixels of the chips: `geoeco.sampling.mosaic_chips`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geoeco.errors import InputError
from geoeco.sampling.images import in_threads
from geoeco.sampling.mosaic_chips import CROWN_BAND, ChipPlan, Context, chip_label, chip_pixels
from geoeco.sampling.mosaic_crowns import crown_windows, spans
from geoeco.sampling.mosaic_draws import draw_windows
from geoeco.sampling.mosaic_ground import Ground, grounds_of
from geoeco.sampling.mosaic_layers import IGNORE
from geoeco.sampling.mosaic_sources import ChipSource, MosaicSources
from geoeco.sampling.mosaic_splits import (
    SPLIT_NAMES,
    AreaSplit,
    BlockSplit,
    assert_no_leak,
    own_ground,
    put_aside,
    split_by_areas,
    split_by_blocks,
)
from geoeco.sampling.mosaic_windows import EdgePolicy, check_overlap, grid_windows, pixels_across
from geoeco.sensors.orthomosaic import Orthomosaic
from geoeco.vectors import read_split_areas

__all__ = ["ChipDesign", "chip_side", "footprints_of", "largest_number", "plan_chips"]

Kind = Literal["grid", "crown", "random"]
TooLarge = Literal["refuse", "drop", "resize"]

Ints = npt.NDArray[np.int32]
Shapes = npt.NDArray[np.object_]


@dataclass(frozen=True)
class ChipDesign:
    """Which chips are wanted.

    Parameters
    ----------
    kind : {"grid", "crown", "random"}
    chip_m : float or None
        Side of a chip, metres; None (crowns only) takes the side that holds the largest crown with its buffer.
    overlap_m : float
        Ground that neighbours of a grid share, metres.
    edge : {"shift", "pad", "drop"}
        As of `geoeco.sampling.grid_windows`.
    edge_band_m : float
        Band along the sides of a chip in which a crown does not count as whole, metres.
    count : int
        Number of random chips wanted of each mosaic.
    buffer_m : float
        Least ground between a crown and the sides of its chip, metres.
    context : {"keep", "zero", "mask"}
        What a crown chip shows beside its crown: the surroundings; nothing (0, and not valid); the surroundings, and
        the crown as a further band.
    too_large : {"refuse", "drop", "resize"}
        What becomes of crowns larger than a chip.
    min_valid : float
        Least valid part of a chip. Chips without a valid pixel are never kept.
    split : BlockSplit, AreaSplit or None
    seed : int
    """

    kind: Kind
    chip_m: float | None
    overlap_m: float = 0.0
    edge: EdgePolicy = "shift"
    edge_band_m: float = 0.0
    count: int = 0
    buffer_m: float = 1.0
    context: Context = "keep"
    too_large: TooLarge = "refuse"
    min_valid: float = 0.0
    split: BlockSplit | AreaSplit | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.chip_m is None and self.kind != "crown":
            raise InputError("only crown chips find their own size", what_to_do="give chip_m, metres")
        if self.chip_m is not None and not (math.isfinite(self.chip_m) and self.chip_m > 0):
            raise InputError(f"chip_m={self.chip_m} is no side of a chip", what_to_do="give metres")
        if not 0 <= self.min_valid <= 1:
            raise InputError(f"min_valid={self.min_valid} is no part of a chip", what_to_do="give 0 to 1")


# --- windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Windows:
    """Windows of one source, and what is known of them without reading pixels."""

    offsets: Ints
    steps: Ints
    crown_id: Ints
    class_id: npt.NDArray[np.int16]
    points: Shapes
    notes: dict[str, Any] = field(default_factory=dict)


def footprints_of(source: ChipSource, offsets: Ints, steps: Ints, size: int) -> Shapes:
    """Outlines of windows on the map."""
    t = source.mosaic.geobox.transform
    left, top = t.c + offsets[:, 1] * t.a, t.f + offsets[:, 0] * t.e
    return np.asarray(shapely.box(left, top + steps * size * t.e, left + steps * size * t.a, top))


def _plain(source: ChipSource, offsets: Ints, size: int, notes: dict[str, Any]) -> _Windows:
    count = len(offsets)
    steps = np.ones(count, dtype=np.int32)
    middle = shapely.centroid(footprints_of(source, offsets, steps, size))
    none = np.zeros(count, dtype=np.int32)
    return _Windows(offsets, steps, none, np.full(count, -1, dtype=np.int16), middle, notes)


def _grid(source: ChipSource, design: ChipDesign, size: int) -> _Windows:
    gsd = source.mosaic.gsd_m
    overlap = pixels_across(design.overlap_m, gsd, up=True)
    shape = _shape(source)
    offsets = grid_windows(shape, size, overlap, edge=design.edge)
    notes: dict[str, Any] = {}
    if source.crowns is not None and len(source.crowns.ids):
        check = check_overlap(
            source.crowns.bounds, offsets, size, overlap, gsd, shape=shape, edge_band_m=design.edge_band_m
        )
        notes = {
            "largest_crown_m": round(check.largest_m, 3),
            "overlap_needed_m": round(check.needed_m, 3),
            "crowns_whole_in_no_chip": [int(source.crowns.ids[i]) for i in check.cut],
            "warning": check.warning,
        }
    return _plain(source, offsets, size, notes)


def _crowns(source: ChipSource, design: ChipDesign, size: int) -> _Windows:
    crowns = source.placed
    found = crown_windows(
        crowns,
        size,
        design.buffer_m / source.mosaic.gsd_m,
        too_large=design.too_large,
        where=source.name,
    )
    notes: dict[str, Any] = {}
    if found.too_large:
        notes["crowns_too_large"] = list(found.too_large)
        notes["warning"] = f"{len(found.too_large)} crowns are larger than a chip and have none"
    return _Windows(
        found.offsets,
        found.steps,
        crowns.ids[found.crown],
        crowns.classes[found.crown],
        crowns.points[found.crown],
        notes,
    )


def _shape(source: ChipSource) -> tuple[int, int]:
    rows, cols = source.mosaic.geobox.shape
    return int(rows), int(cols)


def chip_side(sources: Sequence[ChipSource], design: ChipDesign) -> int:
    """Pixels of a chip along a side."""
    gsd = sources[0].mosaic.gsd_m
    if design.chip_m is not None:
        size = pixels_across(design.chip_m, gsd)
        if size < 1:
            raise InputError(
                f"a chip of {design.chip_m} m is less than a pixel of {gsd:.3g} m", what_to_do="take larger chips"
            )
        return size
    return max(
        int(spans(source.placed, design.buffer_m / source.mosaic.gsd_m)[1].max()) for source in _crowned(sources)
    )


def _crowned(sources: Sequence[ChipSource]) -> list[ChipSource]:
    """Sources with crowns on them; one that has none stands for all where there is none."""
    return [s for s in sources if s.crowns is not None and len(s.crowns.ids)] or list(sources[:1])


def largest_number(sources: MosaicSources, design: ChipDesign) -> int:
    """Upper bound of the chips that a plan may hold, without reading pixels."""
    members = sources.sources
    if design.kind == "random":
        return design.count * len(members)
    size = chip_side(members, design)
    if design.kind == "crown":
        return sum(len(_crowns(source, design, size).offsets) for source in _crowned(members))
    return sum(len(_grid(source, design, size).offsets) for source in members)


# --- the plan --------------------------------------------------------------------------------------------------------


def plan_chips(sources: MosaicSources, design: ChipDesign, *, threads: int = 2) -> ChipPlan:
    """Lay out the chips, hand their ground out to sets, and look at what each holds.

    Parameters
    ----------
    sources : MosaicSources
    design : ChipDesign
    threads : int
        Chips looked at at the same time.

    Returns
    -------
    ChipPlan

    Raises
    ------
    InputError
        If no chip is left, a set ends up empty, blocks are too small for the chips, or chips are larger than the
        mosaic.
    OutputError
        If a set sees the ground of another.
    """
    members = sources.sources
    size = chip_side(members, design)
    chip_m = size * members[0].mosaic.gsd_m
    split = design.split
    if isinstance(split, BlockSplit) and pixels_across(split.block_m, members[0].mosaic.gsd_m, up=True) < 2 * size:
        raise InputError(
            f"blocks of {split.block_m:g} m are too small for chips of {chip_m:.4g} m",
            what_to_do="take blocks of at least twice the side of a chip",
        )
    grounds = grounds_of(members, split.block_m if isinstance(split, BlockSplit) else 2 * chip_m)
    of_source = {index: ground for ground in grounds for index in ground.members}
    parts, notes = [], []
    for index, source in enumerate(members):
        if design.kind == "crown" and source not in _crowned(members):
            continue
        if design.kind == "random":
            found = _random(source, design, size, of_source[index], index)
        elif design.kind == "crown":
            found = _crowns(source, design, size)
        else:
            found = _grid(source, design, size)
        frame = sources.crowns[index]
        read = {} if frame is None else {str(name): _plain_number(value) for name, value in frame.attrs.items()}
        notes.append({"source": source.name, **({"crowns_read": read} if read else {}), **found.notes})
        parts.append(
            pd.DataFrame(
                {
                    "source": np.full(len(found.offsets), index, dtype=np.int16),
                    "row": found.offsets[:, 0],
                    "col": found.offsets[:, 1],
                    "step": found.steps,
                    "crown_id": found.crown_id,
                    "class_id": found.class_id,
                    "point": found.points,
                    "footprint": footprints_of(source, found.offsets, found.steps, size),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    table, left_out = _with_valid(sources, design, size, table, threads)
    table, proof = _with_sets(sources, design, grounds, table)
    table, pixels = _with_labels(sources, size, table, threads)
    told = {
        "chips_without_enough_valid_pixels": left_out,
        "sources": notes,
        "warnings": [note["warning"] for note in notes if note.get("warning")],
        "splits": {name: int((table["split"] == code).sum()) for code, name in enumerate(SPLIT_NAMES)},
        "proof": proof,
    }
    classes = _class_table(sources, pixels)
    told |= _counts(sources, table, pixels, classes)
    bands = (*members[0].mosaic.bands, *((CROWN_BAND,) if design.context == "mask" else ()))
    attrs = _attributes(sources, design, size, bands, classes)
    return ChipPlan(table.drop(columns="point"), size, bands, attrs, told)


def _plain_number(value: float) -> float:
    """Count or area as JSON holds it."""
    return int(value) if float(value).is_integer() else round(float(value), 3)


def _random(source: ChipSource, design: ChipDesign, size: int, ground: Ground, index: int) -> _Windows:
    return _plain(source, draw_windows(source, size, design.count, ground, seed=(design.seed, index)), size, {})


def _with_valid(
    sources: MosaicSources, design: ChipDesign, size: int, table: pd.DataFrame, threads: int
) -> tuple[pd.DataFrame, int]:
    """Valid part of each chip; chips with too little of it are left out."""

    def look(row: Any) -> float:
        mosaic = sources.sources[row.source].mosaic
        if _needs_no_look(mosaic, (row.row, row.col), size * row.step):
            return 1.0
        return float(chip_pixels(mosaic, (row.row, row.col), size, row.step)[1].mean())

    valid = np.array(in_threads(look, list(table.itertuples()), threads), dtype=np.float32)
    kept = (valid > 0) & (valid >= np.float32(design.min_valid))
    if not kept.any():
        raise InputError(
            f"none of {len(table)} chips has enough valid pixels"
            if len(table)
            else "there is nothing that a chip could be cut of",
            where=", ".join(source.name for source in sources.sources)[:200],
            what_to_do="lower min_valid, or check the mosaic's mask and the place of its crowns",
        )
    return table.assign(valid_fraction=valid)[kept].reset_index(drop=True), int((~kept).sum())


def _needs_no_look(mosaic: Orthomosaic, offset: tuple[int, int], reach: int) -> bool:
    """Whether a window is valid all over for certain: within a mosaic of whole numbers that marks nothing invalid."""
    inside = all(first >= 0 and first + reach <= length for first, length in zip(offset, mosaic.shape, strict=True))
    return inside and mosaic.mask == "none" and np.issubdtype(np.dtype(mosaic.dtype), np.integer)


def _with_sets(
    sources: MosaicSources, design: ChipDesign, grounds: Sequence[Ground], table: pd.DataFrame
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Block and set of each chip, the part of it that is its set's own ground, and the proof that sets are apart."""
    split = design.split
    point, shown = table["point"].to_numpy(), _shown(sources, design, table)
    block = np.zeros(len(table), dtype=np.int32)
    code = np.full(len(table), SPLIT_NAMES.index("none"), dtype=np.int8)
    where = [np.isin(table["source"].to_numpy(), ground.members) for ground in grounds]
    for ground, here in zip(grounds, where, strict=True):
        block[here] = ground.numbers(point[here])
    first = _first_of_tree(table["crown_id"].to_numpy())
    block = block[first]
    areas = [None] * len(grounds)
    if isinstance(split, BlockSplit):
        code = split_by_blocks(block, split.fractions, design.seed)
    elif isinstance(split, AreaSplit):
        areas = [read_split_areas(split.areas, sources.sources[g.members[0]].mosaic.geobox) for g in grounds]
        for area, here in zip(areas, where, strict=True):
            code[here] = split_by_areas(point[here], area)
        code = code[first]
    table = table.assign(block=block, split=code, ground=None)
    if split is None:
        return table, []
    proofs = []
    for ground, here, area in zip(grounds, where, areas, strict=True):
        index = np.flatnonzero(here)
        mine = np.full(len(index), None, dtype=object)
        if design.kind != "crown":
            mine = own_ground(shown[index], code[index], *_territory(ground, block[index], code[index], area))
        guard = split.guard_m / ground.metres
        code[index] = put_aside(shown[index], mine, code[index], guard)
        frame = gpd.GeoDataFrame(
            {"split": np.array(SPLIT_NAMES, dtype=object)[code[index]], "ground": mine},
            geometry=shown[index],
            crs=None if ground.crs is None else ground.crs.proj,
        )
        proof = assert_no_leak(frame, guard_m=split.guard_m, metres_per_unit=ground.metres)
        distance = None if math.isinf(proof.distance_m) else round(proof.distance_m, 4)
        proofs.append({"least_distance_m": distance, "seen": round(proof.seen, 9)})
        table.loc[index, "ground"] = pd.Series(mine, index=index, dtype=object)
    table["split"] = code
    _check_sets(split, areas, table)
    return table, proofs


def _shown(sources: MosaicSources, design: ChipDesign, table: pd.DataFrame) -> Shapes:
    """Ground that each chip shows: all of it, or the crown alone where its surroundings are blanked."""
    shown: Shapes = table["footprint"].to_numpy(dtype=object).copy()
    if design.context != "zero":
        return shown
    for index, source in enumerate(sources.sources):
        here = np.flatnonzero(table["source"] == index)
        if len(here):
            outlines = source.placed.on_map(source.mosaic.geobox.transform)
            position = {int(crown): k for k, crown in enumerate(source.placed.ids)}
            shown[here] = outlines[[position[int(crown)] for crown in table["crown_id"].to_numpy()[here]]]
    return shown


def _first_of_tree(crown_id: Ints) -> npt.NDArray[np.intp]:
    """First chip of the same tree, so that a tree flown over again stays in one set; each chip itself if of none."""
    first = np.arange(len(crown_id))
    _, at, inverse = np.unique(crown_id, return_index=True, return_inverse=True)
    return np.where(crown_id > 0, at[inverse], first)


def _territory(
    ground: Ground, block: Ints, code: npt.NDArray[np.int8], areas: gpd.GeoDataFrame | None
) -> tuple[Shapes, npt.NDArray[np.int8]]:
    """Ground that has been handed out, in parts, and the set of each part."""
    if areas is not None:
        return areas.geometry.to_numpy(), np.array([SPLIT_NAMES.index(name) for name in areas["split"]], dtype=np.int8)
    blocks, at = np.unique(block, return_index=True)
    return ground.boxes(blocks), code[at]


def _check_sets(split: BlockSplit | AreaSplit, areas: Sequence[gpd.GeoDataFrame | None], table: pd.DataFrame) -> None:
    if isinstance(split, BlockSplit):
        asked = [name for name, share in zip(SPLIT_NAMES, split.fractions, strict=False) if share > 0]
    else:
        asked = sorted({str(name) for area in areas if area is not None for name in area["split"]})
    for name in asked:
        if not (table["split"] == SPLIT_NAMES.index(name)).any():
            aside = int((table["split"] == SPLIT_NAMES.index("none")).sum())
            raise InputError(
                f"no chip is left for {name}: {len(table)} chips lie in {table['block'].nunique()} blocks, "
                f"{aside} were put aside or lie in no area",
                what_to_do="take smaller blocks or chips, a smaller guard, other areas, or more ground",
            )


def _with_labels(
    sources: MosaicSources, size: int, table: pd.DataFrame, threads: int
) -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Labelled part of each chip, and pixels of each code in each set, shape (set, 256)."""
    pixels = np.zeros((len(SPLIT_NAMES), IGNORE + 1), dtype=np.int64)
    if sources.sources[0].labels is None:
        return table.assign(label_fraction=np.zeros(len(table), dtype=np.float32)), pixels

    def look(row: Any) -> npt.NDArray[np.int64]:
        source = sources.sources[row.source]
        if row.valid_fraction == 1:
            valid = np.ones((size, size), dtype=bool)
        else:
            valid = chip_pixels(source.mosaic, (row.row, row.col), size, row.step)[1]
        label = chip_label(source, (row.row, row.col), size, row.step, valid, row.ground)
        return np.bincount(label.reshape(-1), minlength=IGNORE + 1)

    counts = np.array(in_threads(look, list(table.itertuples()), threads))
    np.add.at(pixels, table["split"].to_numpy(), counts)
    fraction = (1.0 - counts[:, IGNORE] / size**2).astype(np.float32)
    if not (fraction > 0).any():
        raise InputError(
            "no chip holds a labelled pixel",
            where=", ".join(str(s.labels.path) for s in sources.sources if s.labels is not None)[:200],
            what_to_do="check that the labels lie on the valid part of the mosaic, and what their nodata value is",
        )
    return table.assign(label_fraction=fraction), pixels


# --- what is told of the chips ---------------------------------------------------------------------------------------


def _class_table(sources: MosaicSources, pixels: npt.NDArray[np.int64]) -> list[list[Any]]:
    """Codes, names and colours of the classes: those that the labels name, and those that they hold."""
    named = {code: [code, name, colour] for code, name, colour in sources.classes}
    seen = np.flatnonzero(pixels[:, :IGNORE].sum(axis=0))
    return [named.get(int(code), [int(code), f"class {code}", ""]) for code in sorted({*named, *seen.tolist()})]


def _counts(
    sources: MosaicSources, table: pd.DataFrame, pixels: npt.NDArray[np.int64], classes: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """Pixels and crowns of each class in each set, and the classes that only other sets than train have."""
    told: dict[str, Any] = {}
    train = SPLIT_NAMES.index("train")
    others = [SPLIT_NAMES.index(name) for name in ("val", "test")]
    if classes:
        told["label_pixels"] = {
            name: {str(row[1]): int(pixels[code, row[0]]) for row in classes} for code, name in enumerate(SPLIT_NAMES)
        }
        told["classes_without_training"] = [
            str(row[1]) for row in classes if not pixels[train, row[0]] and pixels[others, row[0]].any()
        ]
    if (table["class_id"] >= 0).any():
        known = table[table["class_id"] >= 0]
        told["crowns"] = {
            SPLIT_NAMES[split]: {
                name: int((part == number).sum())
                for number, name in enumerate(sources.crown_classes)
                if (part == number).any()
            }
            for split in sorted(known["split"].unique())
            for part in [known["class_id"].to_numpy()[known["split"].to_numpy() == split]]
        }
        trained = set(told["crowns"].get("train", {}))
        judged = {name for part in ("val", "test") for name in told["crowns"].get(part, {})}
        told["crown_classes_without_training"] = sorted(judged - trained)
    return told


def _attributes(
    sources: MosaicSources, design: ChipDesign, size: int, bands: Sequence[str], classes: list[list[Any]]
) -> dict[str, Any]:
    members = sources.sources
    mosaic = members[0].mosaic
    crs = [s.mosaic.geobox.crs for s in members]
    wkt = ["" if c is None else c.to_wkt() for c in crs]
    epsg = [0 if c is None or c.epsg is None else int(c.epsg) for c in crs]
    one = len(set(wkt)) == 1
    gsd = mosaic.gsd_m
    return {
        "crs_wkt": wkt[0] if one else "",
        "epsg": epsg[0] if one else 0,
        "source_crs_wkt": wkt,
        "source_epsg": epsg,
        "gsd_m": gsd,
        "source_gsd_m": [s.mosaic.gsd_m for s in members],
        "chip_m": size * gsd,
        "overlap_m": pixels_across(design.overlap_m, gsd, up=True) * gsd if design.kind == "grid" else 0.0,
        "kind": design.kind,
        "context": design.context,
        "bands": list(bands),
        "classes": classes,
        "crown_classes": list(sources.crown_classes),
        "splits": list(SPLIT_NAMES),
        "scale": mosaic.scale,
        "dtype": str(mosaic.dtype),
        "seed": design.seed,
        "sources": [s.name for s in members],
        "source_fingerprints": [s.mosaic.fingerprint for s in members],
        "dates": sorted({s.mosaic.date for s in members}),
        "resampling": {
            "image": "mean by area of the valid part; invalid where less than half is valid",
            "label": "class of the largest area; 255 where less than half has a label",
            "chm": "maximum",
        },
        "affine_convention": "x = a col + b row + c, y = d col + e row + f of the upper left corner of a pixel",
    }
