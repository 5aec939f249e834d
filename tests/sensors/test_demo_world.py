"""The simulated world: its flags are right and wrong as real catalogues have them, and its truth is written down."""

from __future__ import annotations

import csv

import pytest
import rasterio

from geoeco.catalog import asset_for, bands_of, open_catalog
from geoeco.sensors import sentinel2
from geoeco.simulate import write_s2_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Items with the offset that their numbers truly hold, in reflectance, and their true share of cloud."""
    path = write_s2_world(
        tmp_path_factory.mktemp("world"), size=150, years=1, revisit_days=30, wrong_flags=0.4, workers=2
    )
    with (path.parent / "truth" / "scenes.csv").open(encoding="utf-8") as file:
        truth = {row["id"]: row for row in csv.DictReader(file)}
    return [(item, truth[item.id]) for item in open_catalog(path).search()]


def scene_reader(item):
    def read(band):
        with rasterio.open(asset_for(item, band).href, driver="GTiff") as source:
            return source.read(1)

    return read


def test_all_products_and_all_their_bands_are_found(world):
    assert len(world) > 30
    for item, _ in world:
        assert bands_of(item)[:12] == sentinel2.REFLECTANCE_BANDS


def test_trusted_metadata_are_right(world):
    for item, truth in world:
        how = sentinel2.radiometry(item)
        if how.trusted:
            assert how.offset == pytest.approx(-int(truth["added_to_dn"]) / 10_000), (item.id, how)


def test_no_wrong_flag_is_trusted(world):
    wrong = [item for item, truth in world if truth["case"] == "removed-wrong-flag"]
    assert wrong
    assert not any(sentinel2.radiometry(item).trusted for item in wrong)


def test_the_pixels_are_right_wherever_they_decide_and_decide_wherever_there_is_clear_ground(world):
    for item, truth in world:
        how = sentinel2.verify_radiometry(item, scene_reader(item))
        if how.source.startswith("data"):
            assert how.offset == pytest.approx(-int(truth["added_to_dn"]) / 10_000), (item.id, how)
        if float(truth["cloud"]) + float(truth["shadow"]) < 0.8 and float(truth["valid"]) > 0.9:
            assert how.source.startswith("data"), (item.id, truth, how)


def test_solar_days_and_sun_angles_are_those_of_the_truth(world):
    for item, truth in world:
        assert str(sentinel2.solar_day(item)) == truth["solar_day"]
        assert 0 < sentinel2.sun_angles(item).zenith < 90
