"""Training, validation and test sets that share no ground, and the proof of it.

Neighbouring chips look alike; a random split leaks. Here whole spatial blocks go to one set, samples too near to
another set are put aside, and `assert_disjoint` measures the ground distance between the footprints that remain,
whatever UTM zones they lie in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from odc.geo.crs import CRS
from pyproj import Transformer
from scipy.spatial import cKDTree

from geoeco.errors import InputError, OutputError
from geoeco.sampling.footprints import chip_geobox
from geoeco.sampling.grids import EARTH_RADIUS_M
from geoeco.sampling.places import check_locations
from geoeco.sampling.windows import unit_vectors

__all__ = ["assert_disjoint", "footprint_rings", "spatial_split"]

SPLITS: tuple[str, ...] = ("train", "val", "test")
#: Label of samples put aside because they lie too near to another set.
ASIDE = "none"
#: Points along each side of a footprint when it is taken from its UTM zone to another frame.
_SIDE_POINTS = 8

Floats = npt.NDArray[np.float64]


def block_codes(lon: Floats, lat: Floats, block_m: float) -> npt.NDArray[np.int64]:
    """Blocks of about equal area: rows of equal height, in each row whole columns round the globe.

    Parameters
    ----------
    lon, lat : numpy.ndarray, shape (location,)
        Degrees.
    block_m : float
        Side of the blocks, metres.

    Returns
    -------
    numpy.ndarray of int64, shape (location,)
        A number for each block; it depends on the place alone.
    """
    rows = max(1, round(math.pi * EARTH_RADIUS_M / block_m))
    row = np.minimum(((lat + 90.0) / 180.0 * rows).astype(np.int64), rows - 1)
    middle = np.radians((row + 0.5) / rows * 180.0 - 90.0)
    cols = np.maximum(1, np.round(2.0 * math.pi * EARTH_RADIUS_M * np.cos(middle) / block_m)).astype(np.int64)
    col = np.minimum((np.mod(lon + 180.0, 360.0) / 360.0 * cols).astype(np.int64), cols - 1)
    return np.asarray(row * (int(2.0 * math.pi * EARTH_RADIUS_M / block_m) + 2) + col, dtype=np.int64)


def hand_out_blocks(
    codes: npt.NDArray[np.int64], fractions: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.int64]:
    """Set of each sample: blocks in random order, each to the set that lacks most.

    Parameters
    ----------
    codes : numpy.ndarray of int64, shape (location,)
        As of `block_codes`.
    fractions : numpy.ndarray, shape (set,)
        Shares of the sets; they sum to one.
    seed : int
        Of the order of the blocks.

    Returns
    -------
    numpy.ndarray of int64, shape (location,)
        Position of the set.
    """
    blocks, inverse, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(blocks))
    # big blocks first within the random order would bias; the deficit rule alone keeps the shares
    filled = np.zeros(len(fractions))
    target = fractions * sizes.sum()
    label = np.zeros(len(blocks), dtype=np.int64)
    for block in order:
        lack = np.where(fractions > 0, (target - filled) / np.maximum(target, 1e-12), -np.inf)
        label[block] = int(np.argmax(lack))
        filled[label[block]] += sizes[block]
    return label[inverse]


def within_reach(lon: Floats, lat: Floats, reach_m: float) -> npt.NDArray[np.intp]:
    """Pairs of places that are no further apart than `reach_m` metres, on the sphere.

    Parameters
    ----------
    lon, lat : numpy.ndarray, shape (location,)
        Degrees.
    reach_m : float
        Great-circle distance, metres.

    Returns
    -------
    numpy.ndarray of int, shape (pair, 2)
        Positions, each pair once.
    """
    tree = cKDTree(unit_vectors(lon, lat))
    chord = 2.0 * math.sin(min(reach_m / EARTH_RADIUS_M, math.pi) / 2.0)
    return np.asarray(tree.query_pairs(chord, output_type="ndarray"))


def reach_of_footprints(size_m: float, buffer_m: float) -> float:
    """Distance of centres, metres, beyond which footprints of this side cannot be nearer than the buffer.

    Half a diagonal each, and the centre of a footprint lies within 60 m * sqrt(1/2) of its location.
    """
    return buffer_m + math.sqrt(2.0) * (size_m + 60.0) * 1.002


def spatial_split(
    locations: gpd.GeoDataFrame,
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    block_m: float = 100_000.0,
    buffer_m: float = 0.0,
    size_m: float = 2_640.0,
    seed: int = 0,
) -> pd.Series:
    """Train, validation and test labels by spatial blocks, with a buffer between the sets.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        As `check_locations` takes them.
    fractions : sequence of 3 floats
        Shares of train, validation and test; they need not sum to one. A share of 0 leaves the set out.
    block_m : float
        Side of the blocks, metres. Blocks have about equal area and know no seam at the antimeridian.
    buffer_m : float
        Least ground distance between footprints of different sets, metres. Of samples nearer than that the one in
        the larger set is put aside: train gives way to validation, both to test.
    size_m : float
        Side of a footprint, metres.
    seed : int
        Of the order in which blocks are handed out. The labels depend on neither the order of the locations nor
        their names.

    Returns
    -------
    pandas.Series
        ``train``, ``val``, ``test`` or ``none`` (put aside), indexed by the names of the locations.

    Raises
    ------
    InputError
        If a set with a share ends up empty, or the settings make no sense.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise InputError(f"fractions={tuple(fractions)!r}: give three shares, none negative, not all zero")
    if not (block_m > 0 and buffer_m >= 0 and size_m > 0):
        raise InputError("block_m and size_m must be positive, buffer_m not negative")
    places = check_locations(locations)
    lon, lat = places["lon"].to_numpy(), places["lat"].to_numpy()
    codes = block_codes(lon, lat, block_m)
    label = hand_out_blocks(codes, shares / shares.sum(), seed)

    pairs = within_reach(lon, lat, reach_of_footprints(size_m, buffer_m))
    kept = np.ones(len(label), dtype=bool)
    for loser, winners in ((1, (2,)), (0, (1, 2))):
        if len(pairs):
            near = pairs[kept[pairs].all(axis=1)]
            both = np.concatenate([near, near[:, ::-1]])
            hit = (label[both[:, 0]] == loser) & np.isin(label[both[:, 1]], winners)
            kept[both[hit, 0]] = False
    text = np.where(kept, np.array(SPLITS, dtype=object)[label], ASIDE)
    for position, name in enumerate(SPLITS):
        if shares[position] > 0 and not (text == name).any():
            raise InputError(
                f"no sample is left for {name}: {len(np.unique(codes))} blocks of {block_m:g} m hold "
                f"{len(label)} locations, {int((~kept).sum())} of them within the buffer",
                what_to_do="take smaller blocks, a smaller buffer, or more locations",
            )
    return pd.Series(text, index=pd.Index(places["name"], name="name"), name="split")


def footprint_rings(locations: gpd.GeoDataFrame, *, size: int = 264, resolution: float = 10.0) -> Floats:
    """Outlines of the chips of locations on the ground, in one frame for all UTM zones.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        With ``lon``, ``lat`` and ``epsg``, the CRS of each chip; with columns ``x0``, ``y1`` (left and top edge in that
        CRS) these are used, otherwise the chip is centred on its location as `season_chips` does.
    size : int
        Pixels along a side.
    resolution : float
        Metres.

    Returns
    -------
    numpy.ndarray, shape (location, point, 3)
        Earth-centred coordinates (EPSG:4978) of the corners and of points along the sides, metres.
    """
    step = np.linspace(0.0, 1.0, _SIDE_POINTS, endpoint=False)
    edge = np.concatenate(
        [
            np.stack([step, np.zeros_like(step)], 1),
            np.stack([np.ones_like(step), step], 1),
            np.stack([1 - step, np.ones_like(step)], 1),
            np.stack([np.zeros_like(step), 1 - step], 1),
        ]
    )
    extent = size * resolution
    rings = np.empty((len(locations), len(edge), 3))
    epsg = locations["epsg"].to_numpy()
    for code in np.unique(epsg):
        index = np.flatnonzero(epsg == code)
        if "x0" in locations.columns and "y1" in locations.columns:
            left, top = locations["x0"].to_numpy()[index], locations["y1"].to_numpy()[index]
        else:
            boxes = [
                chip_geobox(x, y, int(code), size=size, resolution=resolution)
                for x, y in zip(locations["lon"].to_numpy()[index], locations["lat"].to_numpy()[index], strict=True)
            ]
            left = np.array([b.transform.c for b in boxes])
            top = np.array([b.transform.f for b in boxes])
        x = left[:, None] + edge[None, :, 0] * extent
        y = top[:, None] - edge[None, :, 1] * extent
        to_lonlat = Transformer.from_crs(CRS(f"EPSG:{code}").proj, "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(x, y)
        to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
        rings[index] = np.stack(to_earth.transform(lon, lat, np.zeros_like(lon)), axis=-1)
    return rings


def _ground_distance(a: Floats, b: Floats) -> Floats:
    """Distance of footprints pair by pair, metres: both laid on the plane that touches the Earth between them.

    Rings of shape (pair, point, 3). Over 50 km the plane misstates a distance by less than 1 part in 10^4, over
    the gap of two footprints that touch by nothing.
    """
    origin = (a.mean(axis=1) + b.mean(axis=1)) / 2.0
    up = origin / np.linalg.norm(origin, axis=1, keepdims=True)
    pole = np.where(np.abs(up[:, 2:]) > 0.9, np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    east = np.cross(pole, up)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north = np.cross(up, east)

    def flat(rings: Floats) -> npt.NDArray[np.object_]:
        local = rings - origin[:, None, :]
        plane = np.stack([np.einsum("ijk,ik->ij", local, east), np.einsum("ijk,ik->ij", local, north)], axis=-1)
        return np.asarray(shapely.polygons(plane))

    return np.asarray(shapely.distance(flat(a), flat(b)), dtype=np.float64)


def assert_disjoint(
    locations: gpd.GeoDataFrame,
    split: pd.Series | Sequence[str],
    *,
    size: int = 264,
    resolution: float = 10.0,
    buffer_m: float = 0.0,
) -> float:
    """Prove that no ground is shared between sets, and say how near they come.

    Parameters
    ----------
    locations : geopandas.GeoDataFrame
        Locations, or a table of chips with ``epsg``, ``x0`` and ``y1``.
    split : pandas.Series or sequence of str
        A label for each location, in order, or indexed by their names; ``none`` is left out of the comparison.
    size, resolution
        Of a chip, pixels and metres.
    buffer_m : float
        Least distance asked for, metres.

    Returns
    -------
    float
        Least distance between footprints of different sets, metres; infinite where there is only one set.

    Raises
    ------
    OutputError
        If footprints of two sets overlap, touch or come nearer than the buffer; it names the pair.
    """
    table = locations if {"x0", "y1", "epsg", "lon", "lat"} <= set(locations.columns) else check_locations(locations)
    if isinstance(split, pd.Series) and "name" in table.columns and split.index.name == "name":
        label = split.reindex(table["name"].astype(str)).to_numpy(dtype=object)
    else:
        label = np.asarray(split, dtype=object)
    if len(label) != len(table) or pd.isna(label).any():
        raise InputError("the split does not name a set for every location", what_to_do="split the same locations")
    keep = label != ASIDE
    table, label = table[keep].reset_index(drop=True), label[keep]
    if len(np.unique(label.astype(str))) < 2:
        return math.inf
    rings = footprint_rings(table, size=size, resolution=resolution)
    centre = rings.mean(axis=1)
    radius = np.linalg.norm(rings - centre[:, None, :], axis=2).max()
    trees = {name: cKDTree(centre[label == name]) for name in np.unique(label.astype(str))}
    members = {name: np.flatnonzero(label == name) for name in trees}
    names = sorted(trees)
    least, pair = math.inf, (0, 0)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            nearest = float(trees[second].query(centre[members[first]])[0].min())
            # no footprint of a pair further apart than this can be the nearest
            found = trees[first].query_ball_tree(trees[second], max(nearest, buffer_m) + 2.0 * radius)
            a = np.repeat(members[first], [len(f) for f in found])
            b = members[second][np.concatenate([np.asarray(f, dtype=np.int64) for f in found])]
            for start in range(0, len(a), 50_000):
                part = slice(start, start + 50_000)
                distance = _ground_distance(rings[a[part]], rings[b[part]])
                here = int(np.argmin(distance))
                if distance[here] < least:
                    least, pair = float(distance[here]), (int(a[part][here]), int(b[part][here]))
    if least <= 0 or least < buffer_m:
        one, two = (f"{table['name'].iloc[p] if 'name' in table else p} ({label[p]})" for p in pair)
        raise OutputError(
            f"footprints of {one} and {two} lie {least:.1f} m apart",
            where=f"least distance asked for: {buffer_m:g} m",
            what_to_do="split again with the size of the chips and a buffer",
            code="split-overlap",
        )
    return least
