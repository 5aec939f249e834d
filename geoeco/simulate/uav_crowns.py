"""Trees of the simulated farmland: where they stand, which species they are, their outlines and their canopy.

A crown's outline is what is seen from above: where two crowns meet, the taller one keeps the ground.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

from geoeco.simulate.uav_layout import Layout, codes_of, smooth_noise

__all__ = ["SPECIES", "Crown", "Leaf", "Species", "burn_crowns", "canopy_height", "plant_trees"]

Floats = npt.NDArray[np.float32]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Leaf:
    """A leaf as a close-up sees it: form, length and width in metres, and how far all point one way, 0..1."""

    form: Literal["heart", "needles", "lance", "oval", "lobed"]
    length: float
    width: float
    aligned: float


@dataclass(frozen=True)
class Species:
    """A species of tree, seen from above.

    Attributes
    ----------
    name : str
    colour : (red, green, blue)
        Mean colour of sunlit leaves, 0..1, and `spread`, the standard deviation from tree to tree.
    diameter : (float, float)
        Metres, smallest and largest.
    height : (float, float)
        Metres at the smallest and the largest diameter.
    form : {"round", "conical"}
    lobes : float
        How far the outline leaves the circle, as a part of the radius.
    clump : float
        Size of tufts of foliage in metres.
    rim : float
        How much darker the outline is than the middle, 0..1.
    leaf : Leaf
    """

    name: str
    colour: Colour
    spread: float
    diameter: tuple[float, float]
    height: tuple[float, float]
    form: str
    lobes: float
    clump: float
    rim: float
    leaf: Leaf


#: Species by their code less one; code 0 is no crown. The last one is rare: ten crowns at most.
SPECIES: tuple[Species, ...] = (
    Species("poplar", (0.33, 0.44, 0.20), 0.035, (3.2, 6.0), (9.0, 17.0), "round", 0.06, 0.45, 0.25,
            Leaf("heart", 0.080, 0.070, 0.3)),
    Species("larch", (0.36, 0.46, 0.25), 0.03, (2.6, 5.0), (8.0, 15.0), "conical", 0.10, 0.25, 0.55,
            Leaf("needles", 0.060, 0.060, 0.0)),
    Species("willow", (0.43, 0.50, 0.32), 0.04, (4.0, 9.0), (5.0, 10.0), "round", 0.20, 0.60, 0.20,
            Leaf("lance", 0.120, 0.020, 0.8)),
    Species("elm", (0.31, 0.42, 0.17), 0.04, (4.5, 12.0), (6.0, 14.0), "round", 0.14, 0.90, 0.30,
            Leaf("oval", 0.085, 0.050, 0.2)),
    Species("birch", (0.41, 0.49, 0.23), 0.04, (2.0, 4.5), (6.0, 12.0), "round", 0.09, 0.30, 0.15,
            Leaf("oval", 0.045, 0.034, 0.0)),
    Species("amur maple", (0.45, 0.42, 0.20), 0.05, (2.5, 5.5), (4.0, 7.0), "round", 0.24, 0.50, 0.30,
            Leaf("lobed", 0.100, 0.090, 0.0)),
)  # fmt: skip
RARE = len(SPECIES)

#: Odds of species where trees stand: belt, wood, compound land, single trees.
_ODDS = {
    "belt": (0.72, 0.22, 0.0, 0.06, 0.0, 0.0),
    "wood": (0.12, 0.30, 0.06, 0.16, 0.36, 0.0),
    "compound": (0.10, 0.05, 0.45, 0.25, 0.15, 0.0),
    "single": (0.18, 0.08, 0.24, 0.38, 0.12, 0.0),
}


@dataclass(frozen=True)
class Crown:
    """One tree.

    Attributes
    ----------
    crown_id : int
        From 1 on.
    species : int
        Position in `SPECIES` plus 1.
    east, north : float
        Metres from the centre of the world, of the top.
    diameter, height : float
        Metres.
    place : str
        ``belt``, ``wood``, ``compound`` or ``single``.
    tint : (red, green, blue)
        What the tree adds to the colour of its species.
    seed : int
        Of its foliage.
    outline : shapely geometry
        What is seen from above, in metres from the centre.
    """

    crown_id: int
    species: int
    east: float
    north: float
    diameter: float
    height: float
    place: str
    tint: Colour
    seed: int
    outline: BaseGeometry

    @property
    def kind(self) -> Species:
        """The species."""
        return SPECIES[self.species - 1]


@dataclass(frozen=True)
class _Seed:
    east: float
    north: float
    place: str
    species: int
    diameter: float


def plant_trees(seed: int, layout: Layout, gsd: float, seen: BaseGeometry) -> list[Crown]:
    """Plant trees in belts, woods, compound land, and single ones in fields.

    Parameters
    ----------
    seed : int
    layout : Layout
    gsd : float
        Metres.
    seen : shapely geometry
        Ground that the mosaic covers, metres from the centre: trees that it does not see are left out.

    Returns
    -------
    list of Crown
        In the order of their ids. Outlines do not overlap, except one that its neighbour is drawn over; one has two
        parts.
    """
    rng = np.random.default_rng([seed, 22])
    extent = len(layout.habitat) * gsd
    stand = _Stand(rng, layout, gsd, extent)
    belt, wood, compound = codes_of("forest belt", "woody area", "arbor-shrub-grass compound land")
    stand.fill(belt, "belt", spacing=4.0)
    stand.fill(belt, "belt", spacing=2.6)
    stand.fill(wood, "wood", spacing=4.0)
    stand.fill(wood, "wood", spacing=2.6)
    stand.fill(compound, "compound", spacing=8.5)
    stand.fill(codes_of("dry land", "grass belt", "unused land", "construction land"), "single", spacing=26.0)
    trees = _with_rare(rng, stand.trees)
    crowns = []
    for index, tree in enumerate(trees):
        species = SPECIES[tree.species - 1]
        low, high = species.diameter
        part = (tree.diameter - low) / (high - low)
        height = species.height[0] + part * (species.height[1] - species.height[0])
        crowns.append(
            Crown(
                index + 1, tree.species, tree.east, tree.north, tree.diameter,
                round(float(height * rng.uniform(0.85, 1.1)), 2), tree.place,
                _tint(rng, species),
                int(rng.integers(1 << 31)), _outline(rng, tree, species),
            )
        )  # fmt: skip
    return _as_seen(crowns, seen)


def _tint(rng: np.random.Generator, species: Species) -> Colour:
    # trees of a species differ in brightness more than in hue
    brightness = rng.normal(0.0, species.spread) * np.array([1.0, 1.1, 0.7])
    red, green, blue = brightness + rng.normal(0.0, 0.4 * species.spread, 3)
    return float(red), float(green), float(blue)


class _Stand:
    """Trees planted so far, kept apart so that the top of each is seen."""

    def __init__(self, rng: np.random.Generator, layout: Layout, gsd: float, extent: float) -> None:
        self.rng, self.layout, self.gsd, self.extent = rng, layout, gsd, extent
        self.trees: list[_Seed] = []
        self._place = np.zeros((0, 2))
        self._radius = np.zeros(0)

    def fill(self, codes: int | tuple[int, ...], place: str, *, spacing: float) -> None:
        """Plant on ground of some habitats, on a loose grid of `spacing` metres."""
        habitat, size = self.layout.habitat, len(self.layout.habitat)
        spacing = min(spacing, self.extent / 5.0)
        steps = np.arange(-0.75 * self.extent, 0.75 * self.extent, spacing)
        spots = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        loose = 0.10 if place == "belt" else 0.38
        spots = spots + self.rng.uniform(-loose, loose, spots.shape) * spacing
        # the grid lies along the roads
        east = np.stack([self.layout.east, self.layout.north], -1)[:: size - 1, :: size - 1]
        frame = np.stack([self.layout.along, self.layout.across], -1)[:: size - 1, :: size - 1]
        turn = np.linalg.lstsq(frame.reshape(-1, 2), east.reshape(-1, 2), rcond=None)[0]
        spots = spots @ turn
        row = ((self.extent / 2 - spots[:, 1]) // self.gsd).astype(int)
        col = ((spots[:, 0] + self.extent / 2) // self.gsd).astype(int)
        inside = (row >= 0) & (row < size) & (col >= 0) & (col < size)
        inside[inside] = np.isin(habitat[row[inside], col[inside]], codes)
        spots = self.rng.permutation(spots[inside])
        kinds = self.rng.choice(len(SPECIES), len(spots), p=_ODDS[place])
        for spot, kind, part in zip(spots, kinds, self.rng.beta(2.0, 2.5, len(spots)), strict=True):
            low, high = SPECIES[kind].diameter
            diameter = float(low + (high - low) * part)
            if not self._in_house(spot, diameter):
                self._add(_Seed(float(spot[0]), float(spot[1]), place, int(kind) + 1, diameter))

    def _in_house(self, spot: npt.NDArray[np.float64], diameter: float) -> bool:
        return any(
            math.hypot(spot[0] - house.east, spot[1] - house.north) < (diameter + house.length + house.width) / 2.5
            for house in self.layout.buildings
        )

    def _add(self, tree: _Seed) -> None:
        radius = tree.diameter / 2
        apart = np.hypot(self._place[:, 0] - tree.east, self._place[:, 1] - tree.north)
        if np.any(apart < np.maximum(1.3 * np.maximum(self._radius, radius), 0.82 * (self._radius + radius))):
            return
        self.trees.append(tree)
        self._place = np.vstack([self._place, [tree.east, tree.north]])
        self._radius = np.append(self._radius, radius)


def _with_rare(rng: np.random.Generator, trees: list[_Seed]) -> list[_Seed]:
    """Turn a few trees of woods, compound land and fields into the rare species."""
    candidates = [index for index, tree in enumerate(trees) if tree.place != "belt"]
    count = min(int(np.clip(round(0.04 * len(trees)), 3, 9)), len(candidates))
    low, high = SPECIES[RARE - 1].diameter
    changed = list(trees)
    for index in rng.choice(candidates, count, replace=False):
        diameter = float(np.clip(trees[index].diameter, low, high))
        changed[index] = replace(trees[index], species=RARE, diameter=diameter)
    return changed


def _outline(rng: np.random.Generator, tree: _Seed, species: Species) -> shapely.Polygon:
    angle = np.linspace(0.0, 2.0 * math.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    for order in range(2, 9):
        strength = species.lobes * rng.normal(0.0, 0.75) * (1.0 if order in (3, 5, 6) else 0.5) * 2.0 / order
        radius += strength * np.cos(order * angle + rng.uniform(0.0, 2.0 * math.pi))
    radius = tree.diameter / 2 * np.clip(radius, 0.6, 1.3)
    return shapely.Polygon(np.stack([tree.east + radius * np.cos(angle), tree.north + radius * np.sin(angle)], -1))


def _as_seen(crowns: list[Crown], seen: BaseGeometry) -> list[Crown]:
    """Cut each outline by taller neighbours, leave out what the mosaic does not see, number the rest."""
    whole = [crown.outline for crown in crowns]
    tree = shapely.STRtree(whole)
    kept = []
    for index, crown in enumerate(crowns):
        over = [
            whole[other]
            for other in tree.query(crown.outline, predicate="intersects")
            if (crowns[other].height, other) > (crown.height, index)
        ]
        outline = _largest(shapely.difference(crown.outline, shapely.union_all(over)))
        top = shapely.Point(crown.east, crown.north)
        part_seen = shapely.intersection(crown.outline, seen).area / crown.outline.area
        if part_seen > 0.35 and shapely.contains(outline, top):
            kept.append(replace(crown, outline=outline))
    kept = _with_two_parts(_with_overlap(kept, dict(zip((c.crown_id for c in crowns), whole, strict=True))))
    return [replace(crown, crown_id=number) for number, crown in enumerate(kept, start=1)]


def _largest(shape: BaseGeometry) -> BaseGeometry:
    parts: list[BaseGeometry] = list(shapely.get_parts(shape))
    return max(parts, key=lambda part: float(part.area))


def _with_overlap(crowns: list[Crown], whole: dict[int, BaseGeometry]) -> list[Crown]:
    """Give the crown that a neighbour hides most of its whole outline back: two polygons overlap."""
    hidden = [shapely.area(whole[c.crown_id]) - shapely.area(c.outline) for c in crowns]
    most = int(np.argmax(hidden))
    return [replace(c, outline=whole[c.crown_id]) if i == most else c for i, c in enumerate(crowns)]


def _with_two_parts(crowns: list[Crown]) -> list[Crown]:
    """Add a small branch of its own to the single tree that stands farthest from others."""
    places = np.array([[crown.east, crown.north] for crown in crowns])
    free = [index for index, crown in enumerate(crowns) if crown.place == "single"]
    if not free:
        return crowns

    def nearest(index: int) -> float:
        apart = np.hypot(*(places - places[index]).T)
        apart[index] = math.inf
        return float(apart.min())

    best = max(free, key=nearest)
    crown = crowns[best]
    west, south, east, north = crown.outline.bounds
    branch = shapely.Point(east + 0.16 * (east - west), (south + north) / 2).buffer(0.12 * (east - west), quad_segs=8)
    outline = shapely.union(crown.outline, branch)
    return [replace(c, outline=outline) if i == best else c for i, c in enumerate(crowns)]


def burn_crowns(crowns: list[Crown], size: int, gsd: float) -> npt.NDArray[np.int32]:
    """Number of the crown that is seen at each pixel ``(y, x)``, 0 for none; taller ones lie over lower ones."""
    order = sorted(crowns, key=lambda crown: (crown.height, crown.crown_id))
    corner = size * gsd / 2
    burnt: npt.NDArray[np.int32] = rasterio.features.rasterize(
        [(crown.outline, crown.crown_id) for crown in order],
        out_shape=(size, size),
        transform=Affine(gsd, 0.0, -corner, 0.0, -gsd, corner),
        fill=0,
        dtype="int32",
    )
    return burnt


def canopy_height(crowns: list[Crown], instance: npt.NDArray[np.int32], gsd: float) -> Floats:
    """Height ``(y, x)`` of the canopy in metres, 0 where no crown is; its maximum in a crown is the crown's height."""
    size = len(instance)
    canopy = np.zeros(instance.shape, np.float32)
    for crown in crowns:
        rows, cols = _window(crown, size, gsd)
        here = instance[rows, cols] == crown.crown_id
        if not here.any():
            continue
        dx = (np.arange(cols.start, cols.stop) + 0.5) * gsd - size * gsd / 2 - crown.east
        dy = size * gsd / 2 - (np.arange(rows.start, rows.stop) + 0.5) * gsd - crown.north
        ratio = np.hypot(dx[None, :], dy[:, None]) / (crown.diameter / 2)
        rng = np.random.default_rng(crown.seed)
        profile = _PROFILES[crown.kind.form](ratio.clip(0.0, 1.25))
        # tufts bulge, with creases between them
        tufts, sprays = (np.abs(smooth_noise(rng, ratio.shape, max(k * crown.kind.clump / gsd, 1.0))) for k in (1, 0.4))
        bulge = crown.kind.clump * (0.9 * tufts.clip(0.0, 1.2) + 0.3 * sprays.clip(0.0, 1.5))
        top = np.maximum(profile - bulge / crown.height, 0.15)[here]
        canopy[rows, cols][here] = (crown.height * top / top.max()).astype(np.float32)
    return canopy


#: Height as a part of the tree's over the distance from its middle as a part of its radius.
_PROFILES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "round": lambda t: 0.45 + 0.55 * np.sqrt(np.maximum(1.0 - (t / 1.3) ** 2, 0.0)),
    "conical": lambda t: 1.0 - 0.62 * t,
}


def _window(crown: Crown, size: int, gsd: float) -> tuple[slice, slice]:
    west, south, east, north = crown.outline.bounds
    half = size * gsd / 2
    low = np.array([half - north, west + half]) / gsd
    high = np.array([half - south, east + half]) / gsd
    first = np.clip(np.floor(low).astype(int), 0, size - 1)
    stop = np.clip(np.ceil(high).astype(int), 1, size)
    return slice(int(first[0]), int(stop[0])), slice(int(first[1]), int(stop[1]))
