"""Real orthomosaics: chips, boxes and crowns land on the trees, and come back from GeoPackages as they were."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.features import rasterize

from geoeco.outputs import write_gpkg
from geoeco.sampling import BlockSplit, chip_footprints, crown_chips, grid_chips, open_uav_chips, store_uav_chips
from geoeco.sensors.orthomosaic import describe_orthomosaic
from geoeco.vectors import read_boxes, read_crowns

pytestmark = pytest.mark.real


def voc(path):
    """Boxes of an annotation file, by hand: first column, first row, last column, last row."""
    return [
        tuple(int(box.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
        for box in ET.parse(path).iter("object")
    ]


def pixels(path):
    """Image as stored, 0 where all bands are the file's nodata value."""
    with rasterio.open(path) as file:
        image = file.read()
        if file.nodata is not None:
            image[:, (image == file.nodata).all(axis=0)] = 0
    return image


def test_boxes_of_neon_plots_land_on_the_pixels_they_were_drawn_on(real_data):
    for plot in ("neon_teak/TEAK_052", "neon_harv/HARV_026"):
        tif, xml = real_data(f"crowns/{plot}.tif"), real_data(f"crowns/{plot}.xml")
        boxes = voc(xml)
        image = pixels(tif)
        chips = crown_chips(tif, str(xml), chip_m=14, buffer_m=0.3)
        assert chips.sizes["sample"] == len(boxes)
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            row, col = chips["offset"].to_numpy()[k]
            part = chips["image"].to_numpy()[k][:, y0 - row : y1 - row, x0 - col : x1 - col]
            assert (part == image[:, y0:y1, x0:x1]).all()
            assert part.shape[1:] == (y1 - y0, x1 - x0)
        # every pixel with an id is in its box, and the largest box that nothing lies over is whole
        ids = chips["instance"].to_numpy()
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
        own = [(ids[k] == k + 1).sum() for k in range(len(boxes))]
        assert all(found <= area for found, area in zip(own, areas, strict=True))
        assert own[int(np.argmin(areas))] == min(areas)


def test_trees_are_greener_inside_the_boxes_than_around_them(real_data):
    """On open ground, crowns moved by three metres lose what tells a tree from sand."""
    from shapely.affinity import translate

    tif, xml = real_data("crowns/neon_teak/TEAK_043.tif"), real_data("crowns/neon_teak/TEAK_043.xml")
    boxes = read_boxes(xml, describe_orthomosaic(tif).geobox)

    def greenness(crowns):
        chips = crown_chips(tif, crowns, chip_m=16, buffer_m=0.1, context="zero")
        red, green, blue = (chips["image"].sel(band=name).to_numpy().astype(float) for name in ("red", "green", "blue"))
        index = (2 * green - red - blue) / np.maximum(green + red + blue, 1)
        return np.mean([index[k][chips["valid"].to_numpy()[k]].mean() for k in range(chips.sizes["sample"])])

    moved = boxes.set_geometry([translate(shape, 3, 3) for shape in boxes.geometry], crs=boxes.crs)
    assert greenness(boxes) > greenness(moved) + 0.02


def test_chips_and_crowns_go_to_a_geopackage_and_back_without_loss(real_data, tmp_path):
    tif, xml = real_data("crowns/neon_teak/TEAK_052.tif"), real_data("crowns/neon_teak/TEAK_052.xml")
    crowns = read_boxes(xml, describe_orthomosaic(tif).geobox)
    write_gpkg(crowns, tmp_path / "crowns.gpkg", layer="crowns")
    again = read_crowns(tmp_path / "crowns.gpkg", describe_orthomosaic(tif).geobox)
    assert again.geometry.geom_equals_exact(crowns.geometry, 1e-6).all()
    direct, read = (crown_chips(tif, table, chip_m=12, buffer_m=0.2, too_large="resize") for table in (crowns, again))
    assert direct.identical(read)
    write_gpkg(chip_footprints(direct), tmp_path / "chips.gpkg", layer="chips")
    outlines = gpd.read_file(tmp_path / "chips.gpkg")
    size = direct.sizes["x"]
    for shape, coefficients in zip(outlines.geometry, direct["affine"].to_numpy(), strict=True):
        affine = Affine(*coefficients)
        (left, top), (right, bottom) = affine @ (0, 0), affine @ (size, size)
        np.testing.assert_allclose(shape.bounds, (left, bottom, right, top), atol=1e-6)


def test_plots_of_two_zones_share_a_store_and_keep_their_places(real_data, tmp_path):
    plots = [real_data("crowns/neon_teak/TEAK_043.tif"), real_data("crowns/neon_harv/HARV_022.tif")]
    chips = grid_chips(plots, chip_m=10, split=BlockSplit(20, 0, (0.5, 0.25, 0.25)))
    assert chips.attrs["source_epsg"] == [32611, 32618]
    store_uav_chips(str(tmp_path / "plots.zarr"), chips)
    opened = open_uav_chips(str(tmp_path / "plots.zarr"))
    for number, plot in enumerate(plots):
        image = pixels(plot)
        out = np.zeros_like(image)
        own = opened.isel(sample=np.flatnonzero(opened["source"].to_numpy() == number))
        for (row, col), chip in zip(own["offset"].to_numpy(), own["image"].to_numpy(), strict=True):
            out[:, row : row + 100, col : col + 100] = chip
        assert (out == image).all()
    assert (chip_footprints(opened).bounds["maxx"] < -70).all()


def test_a_crown_drawn_on_pixels_of_18_mm_keeps_its_area_at_half_a_metre(real_data):
    tif, shp = real_data("crowns/australia_uav/australia.tif"), real_data("crowns/australia_uav/australia.shp")
    crowns = read_crowns(shp, describe_orthomosaic(tif).geobox)
    area, around = crowns.area.iloc[0], crowns.length.iloc[0]
    assert area == pytest.approx(40.2, abs=0.1)
    chips = crown_chips(tif, crowns, target_gsd=0.5, buffer_m=1.0)
    pixel = chips["affine"].to_numpy()[0, 0]
    assert chips.attrs["gsd_m"] == pytest.approx(0.5, rel=0.01)
    found = (chips["instance"].to_numpy()[0] == crowns["crown_id"].iloc[0]).sum() * pixel**2
    assert abs(found - area) <= around * pixel
    # one ring of pixels is a bound; by pixel centres the error is a fraction of it
    assert abs(found - area) <= 0.03 * area
    # the picture under the polygon is that of the file: its mean colour does not change with the pixel size
    with rasterio.open(tif) as file:
        fine = file.read()
        inside = rasterize(crowns.geometry, file.shape, transform=file.transform, dtype="uint8") == 1
        inside &= (fine != 0).any(axis=0)
    coarse = chips["image"].to_numpy()[0][:, (chips["instance"].to_numpy()[0] > 0) & chips["valid"].to_numpy()[0]]
    np.testing.assert_allclose(coarse.mean(axis=1), fine[:, inside].mean(axis=1), rtol=0.02)


def test_chips_of_world_mercator_tiles_are_as_large_as_asked_on_the_ground(real_data):
    for name, gsd in (("5b90f92da0d7280005fab355_4310", 0.0969), ("5dded5bc0140b80006d2e565_23", 0.0962)):
        tif = real_data(f"crowns/open_aerial_map/{name}.tif")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chips = grid_chips(tif, chip_m=40, edge="drop", min_valid=0.99)
        assert chips.attrs["gsd_m"] == pytest.approx(gsd, abs=1e-4)
        assert chips.sizes["x"] == round(40 / chips.attrs["gsd_m"])
        assert chips.attrs["chip_m"] == pytest.approx(40, abs=gsd)
        # by the geodesic between two corners of a chip
        outline = chip_footprints(chips.isel(sample=slice(1))).to_crs(4326).geometry.iloc[0]
        from pyproj import Geod

        west, south, east, _ = outline.bounds
        assert Geod(ellps="WGS84").inv(west, south, east, south)[2] == pytest.approx(40, abs=0.2)
