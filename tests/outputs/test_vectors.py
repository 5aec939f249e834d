"""GeoPackages: the same bytes, all values, one type of geometry, and nothing lost when writing fails."""

from __future__ import annotations

import datetime as dt
import resource
import shutil
import sqlite3
import subprocess

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely

from geoeco.errors import GridError, InputError, OutputError
from geoeco.outputs import write_gpkg


@pytest.fixture
def crowns():
    return gpd.GeoDataFrame(
        {
            "crown_id": np.array([7, 3, 2**31 - 1], np.int32),
            "class_name": ["oak", "", "Bergahorn Ä"],
            "score": [0.25, np.nan, 1.0],
            "edge": [True, False, False],
            "photo": ["a.jpg", None, "b.jpg"],
            "date": pd.to_datetime(["2024-06-01", "2024-06-02", None]),
        },
        geometry=[
            shapely.box(500000, 5200000, 500004, 5200003),
            shapely.MultiPolygon(
                [shapely.box(500010, 5200000, 500011, 5200001), shapely.box(500020, 5200000, 500021, 5200001)]
            ),
            shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 4, 4)),
        ],
        crs=32652,
        index=[5, 5, 1],
    )


def test_what_is_read_back_is_what_was_written(crowns, tmp_path):
    written = write_gpkg(crowns, tmp_path / "deep" / "crowns.gpkg", layer="crowns", tags={"GEOECO_MODEL": "m"})
    assert written.path.stat().st_size == written.bytes
    back = gpd.read_file(written.path)
    assert back.crs == crowns.crs
    assert set(back.geom_type) == {"MultiPolygon"}
    assert back.geometry.reset_index(drop=True).geom_equals(crowns.geometry.reset_index(drop=True)).all()
    np.testing.assert_array_equal(back["crown_id"], crowns["crown_id"])
    np.testing.assert_array_equal(back["score"], crowns["score"])
    assert list(back["class_name"]) == list(crowns["class_name"])
    assert back["photo"].isna().tolist() == [False, True, False]
    assert back["edge"].dtype == bool
    assert back["date"].dt.date.tolist()[:2] == [dt.date(2024, 6, 1), dt.date(2024, 6, 2)]
    info = pyogrio.read_info(written.path)
    assert info["layer_name"] == "crowns"
    assert info["layer_metadata"]["GEOECO_MODEL"] == "m"
    assert [path.name for path in written.path.parent.iterdir()] == ["crowns.gpkg"], "readers leave nothing beside it"


def test_a_table_is_always_the_same_file_and_the_clock_is_not_in_it(crowns, tmp_path):
    first = write_gpkg(crowns, tmp_path / "a.gpkg", layer="crowns", description="trees", tags={"K": "v"})
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2031-05-06T07:08:09.000Z"})
    try:
        second = write_gpkg(
            crowns.copy(), tmp_path / "b" / "other.gpkg", layer="crowns", description="trees", tags={"K": "v"}
        )
        assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE").startswith("2031"), "the caller's setting is put back"
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()
    with sqlite3.connect(first.path) as file:
        assert file.execute("SELECT last_change FROM gpkg_contents").fetchall() == [("1970-01-01T00:00:00.000Z",)]
        assert file.execute("SELECT timestamp FROM gpkg_metadata_reference").fetchall()[0][0].startswith("1970")


def test_it_is_a_geopackage_that_old_readers_know(crowns, tmp_path):
    """The requirements of OGC 12-128r14 that a reader checks first, without GDAL."""
    written = write_gpkg(crowns, tmp_path / "crowns.gpkg", layer="crowns")
    with sqlite3.connect(written.path) as file:
        assert file.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(b"GPKG")
        assert file.execute("PRAGMA user_version").fetchone()[0] == 10200
        assert file.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
        columns = "column_name, geometry_type_name, srs_id, z, m"
        assert file.execute(f"SELECT {columns} FROM gpkg_geometry_columns").fetchall() == [
            ("geom", "MULTIPOLYGON", 32652, 0, 0)
        ]
        assert file.execute("SELECT min_x, max_y FROM gpkg_contents").fetchone() == (0.0, 5200003.0)
        assert file.execute("SELECT count(*) FROM rtree_crowns_geom").fetchone()[0] == 3
        kinds = {row[1]: row[2] for row in file.execute("PRAGMA table_info(crowns)")}
    assert kinds["crown_id"] == "MEDIUMINT"
    assert kinds["score"] == "REAL"
    assert kinds["edge"] == "BOOLEAN"


@pytest.mark.skipif(shutil.which("ogrinfo") is None, reason="the system has no GDAL of its own")
def test_an_older_gdal_lists_every_row(crowns, tmp_path):
    written = write_gpkg(crowns, tmp_path / "crowns.gpkg", layer="crowns")
    done = subprocess.run(["ogrinfo", "-al", written.path], capture_output=True, text=True, check=True)
    assert "Feature Count: 3" in done.stdout
    assert "Bergahorn Ä" in done.stdout
    assert not done.stderr


def test_single_polygons_stay_single_and_an_empty_table_has_its_columns(crowns, tmp_path):
    single = write_gpkg(crowns.iloc[[0]], tmp_path / "one.gpkg", layer="crowns")
    assert pyogrio.read_info(single.path)["geometry_type"] == "Polygon"
    empty = write_gpkg(crowns.iloc[:0], tmp_path / "none.gpkg", layer="crowns", geometry_type="MultiPolygon")
    back = gpd.read_file(empty.path)
    assert len(back) == 0
    assert list(back.columns) == list(crowns.columns)
    assert back.crs == crowns.crs


def test_a_frame_is_not_changed(crowns, tmp_path):
    before = crowns.copy(deep=True)
    write_gpkg(crowns, tmp_path / "crowns.gpkg", layer="crowns")
    pd.testing.assert_frame_equal(pd.DataFrame(crowns), pd.DataFrame(before))


def test_where_the_disk_is_full_the_old_file_stays_and_nothing_is_left(crowns, tmp_path):
    write_gpkg(crowns, tmp_path / "crowns.gpkg", layer="crowns")
    before = (tmp_path / "crowns.gpkg").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # at the table of coordinate systems, at that of the layers, at the spatial index, and at its last page
    for size in (0, 5000, 50_000, len(before) - 8192, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OutputError, match="could not be written"):
                write_gpkg(crowns, tmp_path / "crowns.gpkg", layer="crowns")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "crowns.gpkg").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["crowns.gpkg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.set_crs(None, allow_override=True), "no CRS"),
        (lambda f: f.assign(fid=1), "fid"),
        (lambda f: f.assign(Score=1), "Score"),
        (lambda f: f.assign(parts=[[1], [2], [3]]), "parts"),
        (lambda f: f.assign(wave=1j), "wave"),
        (lambda f: f.assign(mixed=["a", 1, 2.0]), "mixed"),
        (lambda f: f.assign(large=np.arange(3, dtype=np.uint64)), "large"),
        (lambda f: f.set_geometry([shapely.Polygon(), *f.geometry[1:]]), "row 0 has no geometry"),
        (lambda f: f.set_geometry([*f.geometry[:2], None]), "row 2 has no geometry"),
        (lambda f: f.set_geometry([*f.geometry[:2], shapely.Point(0, 0)]), "of one kind"),
        (lambda f: f.set_geometry([*f.geometry[:2], shapely.box(0, 0, np.inf, 1)]), "not finite"),
        (lambda f: f.iloc[:0], "without rows"),
    ],
)
def test_what_a_geopackage_cannot_hold_is_refused(crowns, tmp_path, change, message):
    with pytest.raises((InputError, GridError), match=message):
        write_gpkg(change(crowns), tmp_path / "crowns.gpkg", layer="crowns")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("crowns.shp", {}, "not the name of a GeoPackage"),
        ("s3://bucket/crowns.gpkg", {}, "not a path"),
        ("crowns.gpkg", {"layer": "my layer; DROP"}, "not a name"),
        ("crowns.gpkg", {"geometry_type": "Polygon"}, "cannot hold MultiPolygon"),
        ("crowns.gpkg", {"geometry_type": "Point"}, "of one kind"),
    ],
)
def test_names_and_types_that_cannot_be_are_refused(crowns, tmp_path, name, settings, message):
    with pytest.raises(InputError, match=message):
        write_gpkg(crowns, name if "://" in name else tmp_path / name, **({"layer": "crowns"} | settings))
