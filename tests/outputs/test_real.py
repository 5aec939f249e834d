"""Real rasters through the writer: what comes out holds the same numbers on the same grid."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import rioxarray

from geoeco.outputs import ClassTable, write_cog
from geoeco.variables import describe

pytestmark = pytest.mark.real


def test_a_real_scene_classification_keeps_every_pixel(real_data, tmp_path):
    source = real_data("sentinel2/S2A_29RKH_20200219_0_L2A_cog/SCL.tif")
    scl = describe(rioxarray.open_rasterio(source)[0].rename("scl"), kind="class", units="", long_name="SCL")
    codes, counts = np.unique(scl, return_counts=True)
    table = ClassTable.of({int(code): f"class {code}" for code in codes if code}, name="scene classification")
    record = write_cog(scl, tmp_path / "scl.tif", classes=table)
    with rasterio.open(source) as before, rasterio.open(record.path) as after:
        assert (after.crs, after.transform, after.shape) == (before.crs, before.transform, before.shape)
        # the source declares 0 as nodata; the output has 255 there, and no class of that name
        assert before.nodata == 0
        assert np.array_equal(np.where(before.read(1) == 0, 255, before.read(1)), after.read(1))
    assert record.counts == {int(c): int(n) for c, n in zip(codes, counts, strict=True) if c}


def test_a_real_elevation_model_in_degrees_keeps_its_heights_and_statistics(real_data, tmp_path):
    source = real_data("terrain/Copernicus_DSM_COG_10_N00_00_E006_00_DEM.tif")
    height = describe(
        rioxarray.open_rasterio(source)[0].rename("height"), kind="continuous", units="m", long_name="DSM"
    )
    record = write_cog(height, tmp_path / "dsm.tif")
    with rasterio.open(source) as before, rasterio.open(record.path) as after:
        assert after.crs.to_epsg() == 4326
        assert after.transform.almost_equals(before.transform, precision=1e-12)
        values = before.read(1)
        assert np.array_equal(values, after.read(1))
    statistics = record.statistics[0]
    assert (statistics.minimum, statistics.maximum) == pytest.approx((values.min(), values.max()), rel=1e-9)
    assert statistics.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)
