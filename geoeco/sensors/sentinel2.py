"""Sentinel-2 MSI Level-2A: bands, radiometry, scene classification, angles, solar days.

Radiometry is decided by the processing baseline, the catalogue's flags and its declared scale and offset, never by
the acquisition date: Collection 1 reprocessing adds the offset of baseline 04.00 to older acquisitions too. Where the
metadata contradict each other, or come from a catalogue known to be wrong on some items, `verify_radiometry` asks the
pixels of the whole scene.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pystac

from geoeco.catalog import asset_for, band_name, bands_of, centre_longitude
from geoeco.errors import CatalogError, InputError

__all__ = [
    "BANDS",
    "BOA_OFFSET_DN",
    "DILATED_CLASSES",
    "DILATION_RADIUS_M",
    "MASKED_CLASSES",
    "REFLECTANCE_BANDS",
    "REFLECTANCE_NODATA",
    "SCL_CLASSES",
    "STORED_SCALE",
    "VERIFICATION_BANDS",
    "Angles",
    "Band",
    "Radiometry",
    "SceneClass",
    "dilation_halo",
    "parse_baseline",
    "processing_baseline",
    "radiometry",
    "reflectance_table",
    "scl_mask",
    "solar_day",
    "sun_angles",
    "to_reflectance",
    "verify_radiometry",
    "view_angles",
]


# --- bands -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """One band of the MultiSpectral Instrument.

    Attributes
    ----------
    name : str
    common_name : str
        As in Earth Search and STAC's eo extension.
    wavelength : float
        Centre of Sentinel-2A's band in nm; 2B's and 2C's differ by less than 17 nm.
    fwhm : float
        Width of Sentinel-2A's band in nm.
    resolution : int
        Native pixel size in metres.
    """

    name: str
    common_name: str
    wavelength: float
    fwhm: float
    resolution: int


#: Bands of Level-2A in order of name; B10 is not part of it. Wavelengths and widths of Sentinel-2A from ESA's
#: Sentinel-2 User Guides, "Radiometric resolutions", spatial resolutions ibidem.
BANDS: Mapping[str, Band] = {
    band.name: band
    for band in (
        Band("B01", "coastal", 442.7, 20.0, 60),
        Band("B02", "blue", 492.7, 65.0, 10),
        Band("B03", "green", 559.8, 35.0, 10),
        Band("B04", "red", 664.6, 30.0, 10),
        Band("B05", "rededge1", 704.1, 14.0, 20),
        Band("B06", "rededge2", 740.5, 14.0, 20),
        Band("B07", "rededge3", 782.8, 19.0, 20),
        Band("B08", "nir", 832.8, 105.0, 10),
        Band("B8A", "nir08", 864.7, 21.0, 20),
        Band("B09", "nir09", 945.1, 19.0, 60),
        Band("B11", "swir16", 1613.7, 90.0, 20),
        Band("B12", "swir22", 2202.4, 174.0, 20),
    )
}

REFLECTANCE_BANDS: tuple[str, ...] = tuple(BANDS)


# --- radiometry ------------------------------------------------------------------------------------------------------

#: What baseline 04.00 and later add to every digital number (ESA: BOA_ADD_OFFSET = -1000).
BOA_OFFSET_DN = 1000
#: Digital numbers per unit of reflectance (ESA: BOA_QUANTIFICATION_VALUE = 10000).
_QUANTIFICATION = 10_000
#: Reflectance is stored as int16 with this scale ...
STORED_SCALE = 1e-4
#: ... and this nodata value.
REFLECTANCE_NODATA = -32768

_BASELINE_PROPERTIES = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
_PRODUCT_PROPERTIES = (
    "s2:product_uri",
    "sentinel:product_id",
    "s2:granule_id",
    "s2:datastrip_id",
    "s2:datatake_id",
    "PRODUCT_ID",
    "title",
)
_OFFSET_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_PRODUCT_BASELINE = re.compile(r"_N(\d{2})\.?(\d{2})(?![0-9])")
_BASELINE = re.compile(r"^N?(\d{1,2})(?:\.(\d{1,2}))?$|^N?(\d{2})(\d{2})$")
#: Baselines from 90 on mark test products, whose number says nothing about the offset.
_TEST_BASELINE = 90
_OTHER_LAYERS = {"SCL": 1.0, "AOT": 1e-3, "WVP": 1e-3}


@dataclass(frozen=True)
class Radiometry:
    """How digital numbers become reflectance: ``reflectance = DN * scale + offset`` where ``DN != nodata``.

    Attributes
    ----------
    scale : float
        Reflectance per digital number.
    offset : float
        Reflectance (not digital numbers); -0.1 where the offset of baseline 04.00 is still in the data.
    nodata : int
        Masked before anything else.
    source : str
        What decided, in words.
    trusted : bool
        False where the metadata are missing, contradict each other or come from a catalogue known to be wrong on
        some items: ask `verify_radiometry`.
    note : str
        What is wrong with the metadata, or what the pixels said.
    """

    scale: float
    offset: float
    nodata: int = 0
    source: str = ""
    trusted: bool = True
    note: str = ""

    @property
    def offset_in_data(self) -> bool:
        """Whether the digital numbers still hold the offset of baseline 04.00."""
        return self.offset < 0


def parse_baseline(value: object) -> tuple[int, int] | None:
    """Read a processing baseline as (major, minor).

    Parameters
    ----------
    value : object
        ``"04.00"``, ``"4.0"``, ``"N0400"``, ``"0400"``, ``4.0`` ...; anything else, and the numbers of test products
        (90 and above), give None.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = f"{value:.2f}" if isinstance(value, float) else str(value).strip()
    found = _BASELINE.match(text)
    if found is None:
        return None
    if found[3] is not None:
        major, minor = int(found[3]), int(found[4])
    else:
        major, minor = int(found[1]), int((found[2] or "0").ljust(2, "0"))
    return None if major >= _TEST_BASELINE else (major, minor)


def _product_baseline(item: pystac.Item) -> tuple[tuple[int, int], str] | None:
    """Baseline written in the product's name (``_N0400_``), and where it was found."""
    for name in (*_PRODUCT_PROPERTIES, "id"):
        text = item.id if name == "id" else item.properties.get(name)
        if isinstance(text, str) and (found := _PRODUCT_BASELINE.search(text)):
            baseline = parse_baseline(found[1] + found[2])
            if baseline is not None:
                return baseline, name
    return None


def processing_baseline(item: pystac.Item) -> tuple[tuple[int, int] | None, str, bool]:
    """Find the processing baseline of an item.

    Returns
    -------
    baseline : tuple of int or None
        (major, minor).
    source : str
        The property it was read from.
    agreed : bool
        False where the property and the product's own name differ; the name is then taken, since the processor wrote
        it and the catalogue the other.
    """
    stated = [
        (baseline, name)
        for name in _BASELINE_PROPERTIES
        if (baseline := parse_baseline(item.properties.get(name))) is not None
    ]
    named = _product_baseline(item)
    if named is None:
        return (*stated[0], True) if stated else (None, "", True)
    if not stated:
        return (*named, True)
    agreed = stated[0][0] == named[0]
    return (*(stated[0] if agreed else named), agreed)


def _flag(item: pystac.Item) -> tuple[bool | None, str]:
    """Whether the catalogue says that it took the offset out, and by which property."""
    for name in _OFFSET_FLAGS:
        value = item.properties.get(name)
        if isinstance(value, bool):
            return value, name
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true", name
    return None, ""


def _declared(asset: pystac.Asset) -> tuple[float, float] | None:
    """Scale and offset that an asset declares, offset in reflectance; None where it declares none.

    Read from ``raster:bands`` (raster 1.x), from ``bands`` and from the asset itself (STAC 1.1). Scale 1 with offset
    0 is what tools write that know of none, and counts as none.
    """
    fields = asset.extra_fields
    places: list[Mapping[str, Any]] = []
    for key in ("raster:bands", "bands"):
        bands = fields.get(key)
        if isinstance(bands, list) and bands and isinstance(bands[0], Mapping):
            places.append(bands[0])
    places.append(fields)
    scale = offset = None
    for place in places:
        for prefix in ("raster:", ""):
            if place is fields and not prefix:
                continue
            if scale is None and isinstance(place.get(f"{prefix}scale"), int | float):
                scale = float(place[f"{prefix}scale"])
            if offset is None and isinstance(place.get(f"{prefix}offset"), int | float):
                offset = float(place[f"{prefix}offset"])
    if scale is None and offset is None:
        return None
    scale = 1.0 if scale is None else scale
    offset = 0.0 if offset is None else offset
    if scale == 1.0 and offset == 0.0:
        return None
    if scale == 1.0:
        scale = 1.0 / _QUANTIFICATION
    if abs(offset) >= 10:  # given in digital numbers
        offset *= scale
    return scale, offset


def _declared_by(item: pystac.Item, band: str | None) -> tuple[tuple[float, float] | None, bool]:
    """Find the declared scale and offset of a band, or of all; False where bands differ from each other."""
    names = [band] if band is not None else [name for name in bands_of(item) if name in BANDS]
    found = [declared for name in names if (declared := _declared(asset_for(item, name))) is not None]
    if not found:
        return None, True
    return found[0], all(declared == found[0] for declared in found)


def _is_harmonized(item: pystac.Item) -> bool:
    """Earth Engine's ``..._HARMONIZED`` collections, whose digital numbers hold no offset at any baseline."""
    return any("HARMONIZED" in text.upper() for text in (item.collection_id or "", item.id))


def _flags_unreliable(item: pystac.Item) -> bool:
    """Whether the item is of an Earth Search collection in which the offset was applied inconsistently.

    In ``sentinel-s2-l2a-cogs`` and ``sentinel-2-l2a`` the flag says "not applied" on items from which the offset was
    taken (Element84/earth-search issues 66 and 71, cirrus-geo/cirrus-earth-search issue 33). Collection 1
    (``sentinel-2-c1-l2a``) leaves the offset in all of them.
    """
    of_earth_search = any(name.startswith(("earthsearch:", "sentinel:")) for name in item.properties) or any(
        "sentinel-cogs" in asset.href for asset in item.assets.values()
    )
    return of_earth_search and "-c1-" not in (item.collection_id or "")


def radiometry(item: pystac.Item, band: str | None = None) -> Radiometry:
    """How an item's digital numbers become surface reflectance, by its metadata.

    Parameters
    ----------
    item : pystac.Item
    band : str, optional
        A band, to use its own declared scale; by default what holds for all reflectance bands. ``SCL`` is a class,
        ``AOT`` and ``WVP`` have a scale and never an offset.

    Returns
    -------
    Radiometry

    Notes
    -----
    Baselines before 04.00 have no offset. From 04.00 on every digital number is 1000 too high, unless the
    catalogue took the offset out: Earth Engine's harmonised collections always did, Earth Search says so by a flag,
    others may declare offset 0. Planetary Computer and the Copernicus Data Space leave it in. The acquisition date
    is never looked at.

    Not trusted: no baseline and nothing declared; the property and the product's name give different baselines; the
    flag says "taken out" while an offset is declared, or on a baseline that had none; an offset declared on a
    baseline that has none, or none declared on one that has; bands that differ; and, from 04.00 on, the flag "not taken
    out" of the Earth Search collections in which it is known to be wrong on some items.

    Raises
    ------
    CatalogError
        If the item lacks the band.
    """
    if band is not None:
        name = band_name(band)
        if name is None:
            asset_for(item, band)  # raises the error that names what there is
        band = name
    if band in _OTHER_LAYERS:
        declared = _declared(asset_for(item, band)) if band != "SCL" else None
        scale = declared[0] if declared else _OTHER_LAYERS[band]
        return Radiometry(scale, 0.0, source="layer without offset")
    baseline, where, agreed = processing_baseline(item)
    flag, flag_name = _flag(item)
    declared, uniform = _declared_by(item, band)
    scale, declared_offset = declared if declared is not None else (1.0 / _QUANTIFICATION, None)
    boa_offset = -BOA_OFFSET_DN * scale
    doubts = []
    if not agreed:
        doubts.append("its property and its product name give different baselines")
    if not uniform:
        doubts.append("its bands declare different offsets")
    if scale <= 0 or not math.isfinite(scale):
        doubts.append(f"it declares scale {scale}")
        scale = 1.0 / _QUANTIFICATION
        boa_offset = -BOA_OFFSET_DN * scale
    has_offset = declared_offset is not None and not math.isclose(declared_offset, 0.0, abs_tol=1e-9)
    if has_offset and not math.isclose(declared_offset or 0.0, boa_offset, rel_tol=1e-3):
        doubts.append(f"it declares an offset of {declared_offset:g}, which no baseline has")
    text = f"baseline {baseline[0]:02d}.{baseline[1]:02d} ({where})" if baseline else "no baseline"

    if _is_harmonized(item):
        offset, why = 0.0, "harmonised collection, offset taken out"
        if has_offset:
            doubts.append("the collection is harmonised but an offset is declared")
    elif baseline is not None and baseline < (4, 0):
        offset, why = 0.0, f"{text}, before the offset came in"
        if flag:
            doubts.append(f"{flag_name} is true though this baseline has no offset")
        if has_offset:
            doubts.append(f"an offset of {declared_offset:g} is declared though this baseline has none")
    elif flag:
        offset, why = 0.0, f"{text}, offset taken out by the catalogue ({flag_name})"
        if baseline is None:
            doubts.append("it states no baseline")
        if has_offset:
            doubts.append(f"{flag_name} is true but an offset of {declared_offset:g} is declared")
    elif baseline is not None:
        offset, why = boa_offset, f"{text}, offset still in"
        if declared_offset is not None and not has_offset:
            if flag is None:
                offset, why = 0.0, f"{text}, declared offset 0"
            doubts.append(f"offset 0 is declared on {text}" + (f" while {flag_name} is false" if flag is False else ""))
        elif _flags_unreliable(item):
            doubts.append("this collection leaves the flag at `false` on some items whose offset was taken out")
    elif declared_offset is not None:
        offset, why = (boa_offset if has_offset else 0.0), "no baseline, declared offset"
        if flag is False and not has_offset:
            doubts.append("it states no baseline")
    else:
        offset, why = 0.0, "no baseline, no declared offset"
        doubts.append("nothing says whether the offset of baseline 04.00 is in the data")
    return Radiometry(scale, offset, source=why, trusted=not doubts, note="; ".join(doubts))


# --- what the pixels say ---------------------------------------------------------------------------------------------

#: Bands that `verify_radiometry` looks at: three in which vegetation and shadow are dark, three in which water is.
VERIFICATION_BANDS: tuple[str, ...] = ("B02", "B03", "B04", "B8A", "B11", "B12")
_VISIBLE, _INFRARED = VERIFICATION_BANDS[:3], VERIFICATION_BANDS[3:]
#: The darkest per cent of a band stands for its dark targets, the darkest quarter per cent for the few that are left
#: under a sky nearly full of cloud.
_DARK_PERCENTILES = (1.0, 0.25)
#: With the offset in, these are reflectances of -0.03 and -0.04: not reached by such shares of a scene.
_BELOW_ANY_OFFSET = (700.0, 600.0)
#: With the offset in, dark targets lie from here on, noise included ...
_LEAST_WITH_OFFSET = (750.0, 650.0)
#: ... to here.
_DARK_WITH_OFFSET = 1600.0
#: A few pixels can show that there is no offset ...
_FEWEST_PIXELS = 200
#: ... but only a scene large enough to have dark targets can show that there is one.
_ENOUGH_PIXELS = 5_000


def _dark_values(dn: npt.NDArray[Any], nodata: int) -> tuple[float, float, int] | None:
    """Digital numbers of a band's dark targets and its number of valid pixels; None where these are too few."""
    valid = np.asarray(dn) != nodata
    if valid.ndim == 2 and not valid.all():
        # overviews made without a nodata value mix zeros into the pixels beside them
        inner = valid.copy()
        inner[1:] &= valid[:-1]
        inner[:-1] &= valid[1:]
        inner[:, 1:] &= valid[:, :-1]
        inner[:, :-1] &= valid[:, 1:]
        valid = inner
    values = np.asarray(dn)[valid]
    if values.size < _FEWEST_PIXELS:
        return None
    dark, darkest = np.percentile(values, _DARK_PERCENTILES)
    return float(dark), float(darkest), values.size


def verify_radiometry(
    item: pystac.Item,
    read: Callable[[str], npt.NDArray[Any]],
    *,
    metadata: Radiometry | None = None,
) -> Radiometry:
    """Ask a scene's own pixels whether the offset of baseline 04.00 is still in them.

    Parameters
    ----------
    item : pystac.Item
    read : callable
        ``read(band) -> array (y, x)`` of digital numbers of the **whole scene**, coarse (a few hundred pixels a side:
        the top overview). Never a block's own pixels: the answer belongs to the item, and blocks must agree.
    metadata : Radiometry, optional
        What `radiometry` said, computed where not given.

    Returns
    -------
    Radiometry
        With the data's answer and ``trusted=True`` where they decide, whatever the metadata said; else the metadata's
        answer as it was. `note` says which and by what figures.

    Notes
    -----
    With the offset in, digital numbers start at about 1000. If the darkest per cent of any band lies below 700,
    or its darkest quarter per cent below 600, there is none. If those of every band lie above 750 and 650, and the
    darkest per cent of two visible and one infrared band below 1600, then the scene has dark targets (water, shadow,
    dense vegetation) and they are 1000 too high. Otherwise (desert, full cloud, snow, or fewer than 5,000 pixels) the
    pixels cannot tell.

    Bands that the item lacks are left out.
    """
    metadata = radiometry(item) if metadata is None else metadata
    held = set(bands_of(item))
    dark = {
        band: values
        for band in VERIFICATION_BANDS
        if band in held and (values := _dark_values(read(band), metadata.nodata)) is not None
    }
    figures = ", ".join(f"{band} {values[0]:.0f}" for band, values in dark.items()) or "too few valid pixels"
    removed = any(
        low < limit for values in dark.values() for low, limit in zip(values, _BELOW_ANY_OFFSET, strict=False)
    )

    def dark_bands(names: Sequence[str]) -> int:
        return sum(name in dark and dark[name][0] <= _DARK_WITH_OFFSET for name in names)

    still_in = (
        not removed
        and all(
            low >= limit for values in dark.values() for low, limit in zip(values, _LEAST_WITH_OFFSET, strict=False)
        )
        and all(values[2] >= _ENOUGH_PIXELS for values in dark.values())
        and dark_bands(_VISIBLE) >= 2
        and dark_bands(_INFRARED) >= 1
    )
    if not (removed or still_in):
        note = f"the pixels cannot tell (darkest: {figures}), metadata taken"
        return replace(metadata, note="; ".join(part for part in (metadata.note, note) if part))
    offset = -BOA_OFFSET_DN * metadata.scale if still_in else 0.0
    verdict = "the pixels hold the offset" if still_in else "the pixels hold no offset"
    differs = not math.isclose(offset, metadata.offset, abs_tol=1e-9)
    said = f"metadata said otherwise ({metadata.source})" if differs else "metadata agree"
    return replace(
        metadata,
        offset=offset,
        source=f"data: {verdict}",
        trusted=True,
        note="; ".join(part for part in (f"darkest: {figures}", said, metadata.note) if part),
    )


# --- digital numbers to reflectance ----------------------------------------------------------------------------------


@overload
def reflectance_table(how: Radiometry, dtype: Literal["float32"] = ...) -> npt.NDArray[np.float32]: ...
@overload
def reflectance_table(how: Radiometry, dtype: Literal["int16"]) -> npt.NDArray[np.int16]: ...
def reflectance_table(how: Radiometry, dtype: Literal["float32", "int16"] = "float32") -> npt.NDArray[Any]:
    """Reflectance of each of the 65,536 digital numbers, so that ``table[dn]`` converts, masks and clips in one pass.

    Parameters
    ----------
    how : Radiometry
    dtype : {"float32", "int16"}
        ``float32``: reflectance, NaN for nodata. ``int16``: reflectance x 10,000, rounded to the nearest (ties to
        even), saturating at -32767 and 32767 (reflectance -3.2767 and 3.2767), -32768 for nodata.

    Returns
    -------
    ndarray, shape (65536,)
    """
    reflectance = np.arange(65536, dtype=np.float64) * how.scale + how.offset
    if dtype == "float32":
        table: npt.NDArray[Any] = reflectance.astype(np.float32)
        table[how.nodata] = np.nan
        return table
    # digital numbers are whole multiples of 1e-4: rounding takes out the dust of binary fractions
    stored = np.rint(np.round(reflectance / STORED_SCALE, 6))
    table = np.clip(stored, REFLECTANCE_NODATA + 1, 32767).astype(np.int16)
    table[how.nodata] = REFLECTANCE_NODATA
    return table


@overload
def to_reflectance(
    dn: npt.NDArray[Any], how: Radiometry, *, dtype: Literal["float32"] = ...
) -> npt.NDArray[np.float32]: ...
@overload
def to_reflectance(dn: npt.NDArray[Any], how: Radiometry, *, dtype: Literal["int16"]) -> npt.NDArray[np.int16]: ...
def to_reflectance(
    dn: npt.NDArray[Any], how: Radiometry, *, dtype: Literal["float32", "int16"] = "float32"
) -> npt.NDArray[Any]:
    """Digital numbers to surface reflectance.

    Parameters
    ----------
    dn : ndarray, any shape
        uint16 (or uint8) digital numbers; integers of other types must lie in 0..65535.
    how : Radiometry
    dtype : {"float32", "int16"}
        As in `reflectance_table`.

    Returns
    -------
    ndarray, same shape
        Negative reflectance is legitimate where the offset was subtracted, and kept.

    Raises
    ------
    InputError
        If `dn` is not of integers, or holds some outside 0..65535.
    """
    dn = np.asarray(dn)
    if dn.dtype.kind not in "ui":
        raise InputError(f"digital numbers are integers, not {dn.dtype}", what_to_do="read the band as it is stored")
    if dn.dtype not in (np.uint16, np.uint8) and dn.size and (dn.min() < 0 or dn.max() > 65535):
        raise InputError("digital numbers lie in 0..65535", what_to_do="read the band as uint16")
    reflectance: npt.NDArray[Any] = reflectance_table(how, dtype)[dn]
    return reflectance


# --- scene classification --------------------------------------------------------------------------------------------


class SceneClass(NamedTuple):
    """One class of the scene classification: its value, name and colour (``#rrggbb``, as Sen2Cor draws it)."""

    value: int
    name: str
    color: str


#: The scene classification of Level-2A.
SCL_CLASSES: tuple[SceneClass, ...] = (
    SceneClass(0, "no data", "#000000"),
    SceneClass(1, "saturated or defective", "#ff0000"),
    SceneClass(2, "dark area or topographic shadow", "#2f2f2f"),
    SceneClass(3, "cloud shadow", "#643200"),
    SceneClass(4, "vegetation", "#00a000"),
    SceneClass(5, "not vegetated", "#ffe65a"),
    SceneClass(6, "water", "#0000ff"),
    SceneClass(7, "unclassified", "#808080"),
    SceneClass(8, "cloud, medium probability", "#c0c0c0"),
    SceneClass(9, "cloud, high probability", "#ffffff"),
    SceneClass(10, "thin cirrus", "#64c8ff"),
    SceneClass(11, "snow or ice", "#ff96ff"),
)

#: What is not clear by default. Snow (11) is: winter imagery is not to be lost, phenology treats it. So are dark areas
#: (2), which are mostly dark ground, and unclassified pixels (7).
MASKED_CLASSES: tuple[int, ...] = (0, 1, 3, 8, 9, 10)
#: Cloud and its shadow have soft edges.
DILATED_CLASSES: tuple[int, ...] = (3, 8, 9)
DILATION_RADIUS_M = 60.0


def dilation_halo(radius_m: float = DILATION_RADIUS_M, pixel_size: float = 20.0) -> int:
    """Pixels by which a block of SCL must be read larger on every side, so that dilation does not depend on the block.

    Parameters
    ----------
    radius_m : float
        Radius of the disk in metres.
    pixel_size : float
        Pixel size of the SCL given to `scl_mask`, in metres: 20 at home.
    """
    if not (math.isfinite(radius_m) and radius_m >= 0 and math.isfinite(pixel_size) and pixel_size > 0):
        raise InputError(f"a dilation of {radius_m} m on pixels of {pixel_size} m makes no sense")
    return math.floor(radius_m / pixel_size + 1e-9)


def _dilated(mask: npt.NDArray[np.bool_], radius: float) -> npt.NDArray[np.bool_]:
    """Mask grown by a disk of `radius` pixels over its last two axes: runs of each width, then rows at each height."""
    reach = math.floor(radius + 1e-9)
    widths = {dy: math.floor(math.sqrt(max(radius * radius - dy * dy, 0.0)) + 1e-9) for dy in range(reach + 1)}
    runs = {0: mask}
    current = mask.copy()
    for width in range(1, reach + 1):
        if width < mask.shape[-1]:
            current[..., width:] |= mask[..., :-width]
            current[..., :-width] |= mask[..., width:]
        if width in widths.values():
            runs[width] = current.copy()
    out = runs[widths[0]].copy()
    for dy in range(1, min(reach, mask.shape[-2] - 1) + 1):
        run = runs[widths[dy]]
        out[..., dy:, :] |= run[..., :-dy, :]
        out[..., :-dy, :] |= run[..., dy:, :]
    return out


def scl_mask(
    scl: npt.NDArray[Any],
    masked: Iterable[int] = MASKED_CLASSES,
    dilate: Iterable[int] = DILATED_CLASSES,
    radius_m: float = DILATION_RADIUS_M,
    *,
    pixel_size: float = 20.0,
) -> npt.NDArray[np.bool_]:
    """Which pixels of a scene classification are clear.

    Parameters
    ----------
    scl : ndarray (..., y, x)
        Classes of `SCL_CLASSES`, on their **native 20 m grid**, before any resampling.
    masked : iterable of int
        Classes that are not clear.
    dilate : iterable of int
        Those of them that are grown by a disk; classes not in `masked` are ignored.
    radius_m : float
        Radius of the disk in metres; a pixel is reached if its centre is within it. 0 grows nothing.
    pixel_size : float
        Pixel size of `scl` in metres.

    Returns
    -------
    ndarray of bool, same shape
        True where clear.

    Notes
    -----
    Pixels outside the array grow nothing. A block of a scene must therefore be read `dilation_halo` pixels larger on
    every side (less at the scene's own edge) and cut afterwards: then it equals the same part of the whole scene's
    mask.

    Raises
    ------
    InputError
        If `scl` has fewer than two dimensions or is not of integers.
    """
    scl = np.asarray(scl)
    if scl.ndim < 2 or scl.dtype.kind not in "ui":
        raise InputError(
            f"a scene classification is an integer array (..., y, x), not {scl.dtype} {scl.shape}",
            what_to_do="read SCL as it is stored, without resampling to floats",
        )
    masked, dilate = set(masked), set(dilate)
    if unknown := sorted((masked | dilate) - set(range(12))):
        raise InputError(f"{unknown} are no SCL classes", what_to_do="use 0 to 11")
    dilation_halo(radius_m, pixel_size)
    table = np.zeros(256, dtype=np.uint8)
    table[12:] = 1  # nothing that Sen2Cor writes
    table[sorted(masked)] = 1
    table[sorted(masked & dilate)] = 2
    code = table[np.clip(scl, 0, 255).astype(np.uint8, copy=False)]
    grown: npt.NDArray[np.bool_] = code == 2
    if radius_m >= pixel_size and grown.any():
        grown = _dilated(grown, radius_m / pixel_size)
    clear: npt.NDArray[np.bool_] = (code == 0) & ~grown
    return clear


# --- angles and days -------------------------------------------------------------------------------------------------


class Angles(NamedTuple):
    """Directions in degrees: azimuth clockwise from north, zenith from the vertical; NaN where not given."""

    azimuth: float
    zenith: float


def _number(item: pystac.Item, *names: str) -> float:
    for name in names:
        value = item.properties.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return math.nan


def sun_angles(item: pystac.Item) -> Angles:
    """Mean direction of the sun over a scene, from ``view:sun_*`` or ``s2:mean_solar_*``.

    A sun elevation below the horizon gives a zenith beyond 90 degrees.
    """
    elevation = _number(item, "view:sun_elevation")
    zenith = _number(item, "s2:mean_solar_zenith") if math.isnan(elevation) else 90.0 - elevation
    return Angles(_number(item, "view:sun_azimuth", "s2:mean_solar_azimuth"), zenith)


def view_angles(item: pystac.Item) -> Angles:
    """Mean direction towards the sensor, from ``view:azimuth`` and ``view:incidence_angle`` or ``view:off_nadir``.

    Catalogues rarely give it, and ``view:off_nadir`` is often the nominal 0.
    """
    return Angles(_number(item, "view:azimuth"), _number(item, "view:incidence_angle", "view:off_nadir"))


def solar_day(item: pystac.Item, *, near: float | None = None) -> np.datetime64:
    """Day of an item by the sun at its centre: UTC plus one hour for each 15 degrees east.

    Parameters
    ----------
    item : pystac.Item
    near : float, optional
        A longitude, for instance that of the area of interest's centre: the item's own is taken within 180 degrees of
        it. Give it where an area crosses the antimeridian: else scenes of one overpass fall on different days on
        either side.

    Returns
    -------
    numpy.datetime64[D]

    Raises
    ------
    CatalogError
        If the item has no time.
    """
    moment = item.datetime or item.common_metadata.start_datetime
    if moment is None:
        raise CatalogError("an item has no datetime", where=f"item {item.id}", code="catalog-datetime")
    utc = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    longitude = centre_longitude(item)
    if longitude is None:
        longitude = near or 0.0
    elif near is not None:
        longitude = near + (longitude - near + 180.0) % 360.0 - 180.0
    return np.datetime64((utc + dt.timedelta(hours=longitude / 15.0)).date(), "D")
