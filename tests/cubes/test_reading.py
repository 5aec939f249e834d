"""One band on a target grid: the same pixels as GDAL's exact warper, however the grid is cut; faults told apart."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from rasterio.warp import Resampling, reproject

from geoeco.cubes import read_window
from geoeco.errors import GridError, ReadError, TransientError
from geoeco.gdal import gdal_settings

SPAN = 1800.0
#: Near the border of zones 31 and 32 at 45 degrees north.
LEFT, TOP = 700020.0, 5000040.0


def _pixels(size, seed=1, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 6000, (size, size)).astype(dtype)
    pixels[: size // 8, : size // 5] = 0
    pixels[rng.random((size, size)) < 0.02] = 0
    return pixels


@pytest.fixture(scope="module")
def rasters(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("rasters")
    made = {}
    for resolution in (10, 20, 60):
        pixels = _pixels(round(SPAN / resolution))
        path = folder / f"{resolution}.tif"
        world.write_tif(path, pixels, resolution=resolution, origin=(LEFT, TOP), crs="EPSG:32631")
        made[resolution] = (str(path), pixels)
    return made


def _grid(crs, resolution, margin=120.0):
    area = box(LEFT, TOP - SPAN, LEFT + SPAN, TOP, "EPSG:32631").to_crs(crs).boundingbox
    x0 = np.floor(area.left / 60) * 60 - margin
    y1 = np.ceil(area.top / 60) * 60 + margin
    shape = round((SPAN + 2.6 * margin) / resolution)
    return GeoBox((shape, shape + 7), Affine(resolution, 0, x0, 0, -resolution, y1), crs)


def _gdal(pixels, resolution, grid, method):
    out = np.zeros(grid.shape, pixels.dtype)
    reproject(
        pixels,
        out,
        src_transform=Affine(resolution, 0, LEFT, 0, -resolution, TOP),
        src_crs="EPSG:32631",
        dst_transform=grid.affine,
        dst_crs=str(grid.crs),
        src_nodata=0,
        dst_nodata=0,
        resampling=Resampling[method],
        tolerance=0,
        XSCALE=1,
        YSCALE=1,
    )
    return out


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:32632", "EPSG:3035"])
@pytest.mark.parametrize("resolution", [10, 20, 60])
@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_pixels_are_those_of_gdals_exact_warper(rasters, crs, resolution, method):
    path, pixels = rasters[resolution]
    grid = _grid(crs, 10)
    got = read_window(path, grid, resampling=method)
    wanted = _gdal(pixels, resolution, grid, method)
    assert ((got == 0) == (wanted == 0)).all()
    difference = np.abs(got.astype(int) - wanted)
    assert difference.max() <= (0 if method == "nearest" else 1)
    # ties of rounding only
    assert np.count_nonzero(difference) < 0.03 * difference.size


def test_bilinear_is_exact_for_20_m_on_10_m(rasters):
    path, pixels = rasters[20]
    grid = _grid("EPSG:32631", 10)
    np.testing.assert_array_equal(read_window(path, grid, resampling="bilinear"), _gdal(pixels, 20, grid, "bilinear"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    crs=st.sampled_from(["EPSG:32631", "EPSG:32632"]),
    resolution=st.sampled_from([10, 20, 60]),
    method=st.sampled_from(["nearest", "bilinear"]),
    target=st.sampled_from([10, 20, 30]),
    rows=st.lists(st.integers(1, 200), max_size=3, unique=True),
    cols=st.lists(st.integers(1, 200), max_size=3, unique=True),
)
def test_any_cut_into_blocks_gives_the_same_pixels(rasters, crs, resolution, method, target, rows, cols):
    path, _ = rasters[resolution]
    grid = _grid(crs, target)
    whole = read_window(path, grid, resampling=method)
    parts = np.zeros_like(whole)
    ys = [0, *sorted(r for r in rows if r < grid.shape[0]), grid.shape[0]]
    xs = [0, *sorted(c for c in cols if c < grid.shape[1]), grid.shape[1]]
    for y in map(slice, ys[:-1], ys[1:]):
        for x in map(slice, xs[:-1], xs[1:]):
            parts[y, x] = read_window(path, grid[y, x], resampling=method)
    np.testing.assert_array_equal(parts, whole)


def test_a_grid_half_a_pixel_off_is_interpolated_not_shifted(rasters):
    path, pixels = rasters[10]
    grid = GeoBox((50, 50), Affine(10, 0, LEFT + 605, 0, -10, TOP - 605), "EPSG:32631")
    got = read_window(path, grid, resampling="bilinear")
    wanted = _gdal(pixels, 10, grid, "bilinear")
    assert np.abs(got.astype(int) - wanted).max() <= 1


def test_a_coarser_grid_gets_the_mean_of_the_pixels_with_data(rasters):
    path, pixels = rasters[10]
    grid = GeoBox((60, 60), Affine(30, 0, LEFT, 0, -30, TOP), "EPSG:32631")
    got = read_window(path, grid, resampling="bilinear")
    cells = pixels.reshape(60, 3, 60, 3).swapaxes(1, 2).reshape(60, 60, 9).astype(float)
    with np.errstate(invalid="ignore"):
        wanted = np.floor(cells.sum(-1) / (cells != 0).sum(-1) + 0.5)
    np.testing.assert_array_equal(got, np.nan_to_num(wanted).astype(np.uint16))


def test_classes_are_never_averaged(rasters, tmp_path, world):
    classes = np.random.default_rng(0).choice(np.array([4, 8, 11], np.uint8), (90, 90))
    path = world.write_tif(tmp_path / "scl.tif", classes, resolution=20, origin=(LEFT, TOP), crs="EPSG:32631")
    for crs in ("EPSG:32631", "EPSG:32632"):
        got = read_window(str(path), _grid(crs, 10), resampling="nearest")
        assert set(np.unique(got)) == {0, 4, 8, 11}


def test_outside_the_file_there_is_nodata(rasters):
    path, _ = rasters[10]
    far = GeoBox((8, 8), Affine(10, 0, LEFT + 1e5, 0, -10, TOP), "EPSG:32631")
    assert (read_window(path, far, resampling="nearest") == 0).all()
    assert (read_window(path, far, resampling="bilinear", nodata=7) == 7).all()


def test_scenes_meet_across_the_antimeridian(tmp_path, world):
    pixels = _pixels(200, seed=3)
    # zone 1 begins at 180 degrees; the grid is zone 60's and reaches beyond it
    path = world.write_tif(tmp_path / "a.tif", pixels, resolution=10, origin=(176000.0, 8100000.0), crs="EPSG:32701")
    area = box(176000, 8098000, 178000, 8100000, "EPSG:32701").to_crs("EPSG:32760").boundingbox
    grid = GeoBox.from_bbox(area, "EPSG:32760", resolution=10)
    got = read_window(str(path), grid, resampling="nearest")
    assert 0.85 < np.count_nonzero(got) / np.count_nonzero(pixels) < 1.1


def test_rotated_grids_are_refused(rasters):
    path, _ = rasters[10]
    turned = GeoBox((8, 8), Affine(10, 0, LEFT, 0, -10, TOP) * Affine.rotation(10), "EPSG:32631")
    with pytest.raises(GridError, match="rotated"):
        read_window(path, turned)


def test_unknown_resampling_is_refused(rasters):
    path, _ = rasters[10]
    with pytest.raises(GridError, match="cubic"):
        read_window(path, _grid("EPSG:32631", 10), resampling="cubic")


# --- faults ---


def _code(href, **more):
    with pytest.raises(ReadError) as caught:
        read_window(str(href), GeoBox((8, 8), Affine(10, 0, LEFT, 0, -10, TOP), "EPSG:32631"), **more)
    return caught.value


def test_a_missing_file_says_so(tmp_path):
    error = _code(tmp_path / "gone.tif", where="item A, asset B04")
    assert error.code == "asset-missing"
    assert error.where == "item A, asset B04"


def test_a_truncated_file_is_corrupt_not_zero(tmp_path, rasters):
    path, _ = rasters[10]
    content = Path(path).read_bytes()
    for keep in (10, len(content) // 2):
        broken = tmp_path / f"{keep}.tif"
        broken.write_bytes(content[:keep])
        with pytest.raises(ReadError) as caught:
            read_window(str(broken), _grid("EPSG:32631", 10))
        assert caught.value.code == "asset-corrupt"


def test_noise_in_the_middle_of_a_file_is_corrupt(tmp_path, rasters):
    path, _ = rasters[10]
    content = bytearray(Path(path).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8))
    broken = tmp_path / "noise.tif"
    broken.write_bytes(content)
    with pytest.raises(ReadError) as caught:
        read_window(str(broken), _grid("EPSG:32631", 10))
    assert caught.value.code == "asset-corrupt"


def test_wrong_layouts_are_told_from_corruption(tmp_path, rasters):
    path, _ = rasters[10]
    error = _code(path, dtypes=("uint8",))
    assert error.code == "asset-layout"
    assert "uint16" in error.what
    with rasterio.open(path) as file:
        profile, pixels = file.profile, file.read(1)
    two = tmp_path / "two.tif"
    with rasterio.open(two, "w", **{**profile, "count": 2}) as file:
        file.write(np.stack([pixels, pixels]))
    assert "2 bands" in _code(two).what
    bare = tmp_path / "bare.tif"
    with rasterio.open(bare, "w", **{**profile, "crs": None}) as file:
        file.write(pixels, 1)
    assert "no CRS" in _code(bare).what
    turned = tmp_path / "turned.tif"
    with rasterio.open(turned, "w", **{**profile, "transform": profile["transform"] * Affine.rotation(5)}) as file:
        file.write(pixels, 1)
    assert "rotated" in _code(turned).what


def test_a_virtual_raster_that_calls_itself_tif_reads_nothing(tmp_path, rasters):
    path, pixels = rasters[10]
    disguised = tmp_path / "innocent.tif"
    disguised.write_text(
        f'<VRTDataset rasterXSize="180" rasterYSize="180"><SRS>EPSG:32631</SRS>'
        f"<GeoTransform>{LEFT}, 10, 0, {TOP}, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{path}</SourceFilename>'
        f"<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(disguised) as file:  # GDAL itself would read it
        assert (file.read(1) == pixels).all()
    assert _code(disguised).code == "asset-corrupt"


@pytest.mark.parametrize(
    "href",
    [
        "/vsicurl/http://localhost/a.tif",
        "//vsizip/a.zip/a.tif",
        "GTIFF_DIR:1:/etc/passwd",
        "ftp://x/a.tif",
        "zip://a.tif",
    ],
)
def test_gdals_own_addresses_are_refused(href):
    assert _code(href).code == "href-refused"


def test_files_beside_the_raster_decide_nothing(tmp_path, rasters, world):
    path, _ = rasters[10]
    copy = tmp_path / "a.tif"
    copy.write_bytes(Path(path).read_bytes())
    grid = GeoBox((180, 180), Affine(10, 0, LEFT, 0, -10, TOP), "EPSG:32631")
    before = read_window(str(copy), grid)
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:4326</SRS><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform></PAMDataset>"
    )
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    np.testing.assert_array_equal(read_window(str(copy), grid), before)


class _Server(http.server.BaseHTTPRequestHandler):
    status = 503
    content = b""

    def _answer(self, *, body):
        if self.status != 200:
            self.send_error(self.status)
            return
        start, stop = 0, len(self.content) - 1
        asked = self.headers.get("Range")
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or stop), stop)
        part = self.content[start : stop + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop}/{len(self.content)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    # the retries of GDAL itself would take seconds
    quick = {**gdal_settings(), "GDAL_HTTP_MAX_RETRY": "0"}
    monkeypatch.setattr("geoeco.gdal.gdal_settings", lambda *_: quick)
    handler = type("Handler", (_Server,), {})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("status", [500, 503, 429, 403])
def test_a_server_in_trouble_is_worth_another_try(server, status):
    handler, address = server
    handler.status = status
    with pytest.raises(TransientError):
        read_window(f"{address}/{status}.tif", GeoBox((8, 8), Affine(10, 0, LEFT, 0, -10, TOP), "EPSG:32631"))


def test_not_found_is_final(server):
    handler, address = server
    handler.status = 404
    assert _code(f"{address}/404.tif").code == "asset-missing"


def test_nobody_listening_is_worth_another_try(server):
    with pytest.raises(TransientError):
        read_window("http://127.0.0.1:9/a.tif", GeoBox((8, 8), Affine(10, 0, LEFT, 0, -10, TOP), "EPSG:32631"))


def test_an_asset_is_read_over_http_and_may_come_back(server, rasters):
    handler, address = server
    path, _ = rasters[10]
    grid = _grid("EPSG:32631", 10)
    handler.content = Path(path).read_bytes()
    handler.status = 503
    with pytest.raises(TransientError):
        read_window(f"{address}/back.tif", grid)
    handler.status = 200
    np.testing.assert_array_equal(read_window(f"{address}/back.tif", grid), read_window(path, grid))


def test_the_cache_setting_is_bytes_for_gdal_and_bounded():
    with rasterio.Env(**gdal_settings(cache_mib=48)):
        assert rasterio.env.getenv()["GDAL_CACHEMAX"] == 48 << 20
        assert rasterio._env.get_gdal_config("GDAL_CACHEMAX") == 48 << 20


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def test_keys_in_the_environment_start_no_session_of_a_cloud_for_files(rasters, keys, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("a session was started")

    monkeypatch.setattr(rasterio.session, "AWSSession", refuse)
    path, _ = rasters[10]
    assert np.isfinite(read_window(path, _grid("EPSG:32631", 10))).any()


def test_an_asset_in_a_bucket_is_read_with_the_keys_of_the_environment(rasters, keys, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_S3_ENDPOINT": f"{host}:{port}",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    path, _ = rasters[10]
    client = boto3.client("s3")
    client.create_bucket(Bucket="scenes")
    client.upload_file(path, "scenes", "B04.tif")
    grid = _grid("EPSG:32631", 10)
    try:
        there = read_window("s3://scenes/B04.tif", grid)
    finally:
        server.stop()
    np.testing.assert_array_equal(there, read_window(path, grid))
