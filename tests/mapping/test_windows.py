"""A cell's embedding is what the model makes of its window, and nothing of how the work is cut gets into it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn import functional

from geoeco.cubes import create_rasters, open_rasters, write_rasters
from geoeco.errors import GridError, InputError, OutputError
from geoeco.mapping import Embedder, Lattice, embed
from geoeco.training import ModelBundle
from tests.mapping.conftest import BANDS, region, tiny_bundle

Make = Callable[..., xr.DataArray]


def embedder(composites: xr.DataArray, bundle: ModelBundle, **settings: object) -> Embedder:
    lattice = Lattice(region(*composites.shape[-2:]), bundle.size, 8, side=4)
    return Embedder.of(composites, BANDS, lattice, bundle, **{"min_valid": 0.5, **settings})


def by_hand(pixels: np.ndarray, bundle: ModelBundle, row: int, col: int, stride: int, window: int) -> np.ndarray:
    """The module on one window, cut by plain slices: what is invalid or beyond the edge is 0."""
    halo = (window - stride) // 2
    padded = np.pad(pixels, ((0, 0), (halo, window), (halo, window)), constant_values=np.nan)
    cut = padded[:, row * stride : row * stride + window, col * stride : col * stride + window]
    red, nir = cut[1], cut[2]
    image = np.nan_to_num(np.stack([*cut, (nir - red) / (nir + red)]))
    mean, std = (np.array(v)[:, None, None] for v in (bundle.normalisation.mean, bundle.normalisation.std))
    tensor = torch.from_numpy(((image - mean) / std).astype(np.float32))[None]
    with torch.no_grad():
        found: np.ndarray = bundle.module(tensor)[0].numpy()
    return found


def test_a_cell_is_the_model_on_the_window_around_it(composites: Make, bundle: ModelBundle) -> None:
    source = composites()
    made = embedder(source, bundle).block((0, 12), (0, 10))
    pixels = source.to_numpy()
    for row, col in ((1, 1), (9, 7), (10, 6), (9, 3)):
        valid = [
            by_hand(pixels[p], bundle, row, col, 8, 32)
            for p in range(2)
            if np.isfinite(pixels[p][:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]).all()
        ]
        assert len(valid) == made["n_periods"][row, col] >= 1
        np.testing.assert_allclose(made["features"][:, row, col], np.mean(valid, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", [2, 4, 5])
def test_a_map_in_blocks_equals_the_whole_to_the_last_bit(composites: Make, bundle: ModelBundle, cut: int) -> None:
    work = embedder(composites(), bundle)
    whole = work.block((0, 12), (0, 10))
    for top in range(0, 12, cut):
        for left in range(0, 10, cut):
            rows, cols = (top, min(top + cut, 12)), (left, min(left + cut, 10))
            part = work.block(rows, cols)
            for name, values in part.items():
                assert values.tobytes() == whole[name][..., slice(*rows), slice(*cols)].tobytes(), name


def test_a_map_from_a_store_equals_one_from_memory(composites: Make, bundle: ModelBundle, tmp_path) -> None:
    source = composites()
    numbered = source.assign_coords(period=[1, 2], band=[1, 2, 3]).to_dataset(name="reflectance")
    create_rasters(str(tmp_path / "c.zarr"), numbered, region(), shard=32, chunk=16)
    for top in range(0, 90, 32):
        for left in range(0, 75, 32):
            y, x = (top, min(top + 32, 90)), (left, min(left + 32, 75))
            write_rasters(str(tmp_path / "c.zarr"), numbered.isel(y=slice(*y), x=slice(*x)), y, x)
    stored = open_rasters(str(tmp_path / "c.zarr"))["reflectance"]
    found, expected = (embedder(s, bundle).block((2, 9), (1, 8)) for s in (stored, source))
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("network", ["test_resnet", "test_convnext", "test_vit"])
def test_on_a_cpu_neither_place_nor_neighbours_in_a_batch_matter(network: str) -> None:
    size = 160 if network == "test_vit" else 32
    module = tiny_bundle(network, size).module
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = torch.randn(16, 4, size, size, generator=torch.Generator().manual_seed(1))
        turned = torch.arange(15, -1, -1)
        alone = torch.cat([images[5:6], torch.zeros(15, 4, size, size)])
        with torch.inference_mode():
            features = module(images)
            assert torch.equal(module(images[turned]), features[turned])
            assert torch.equal(module(alone)[0], features[5])
    finally:
        torch.set_num_threads(threads)


def test_single_cells_are_those_of_the_map(composites: Make, bundle: ModelBundle) -> None:
    work = embedder(composites(), bundle)
    whole = work.block((0, 12), (0, 10))["features"]
    cells = np.array([(0, 0), (11, 9), (4, 2), (3, 7), *((r, c) for r in range(5, 12) for c in range(6, 9))])
    np.testing.assert_array_equal(work.at(cells), whole[:, cells[:, 0], cells[:, 1]].T)


def test_nodata_stays_nodata(composites: Make, bundle: ModelBundle) -> None:
    source = composites()
    made = embed(source, bundle, stride=8, min_valid=0.3)
    valid = np.isfinite(source).all("band").to_numpy()
    seen = np.zeros((2, 12, 10), bool)
    part = np.zeros((2, 12, 10))
    padded = np.pad(valid, ((0, 0), (12, 40), (12, 40)))
    for row in range(12):
        for col in range(10):
            own = valid[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].any(axis=(1, 2))
            part[:, row, col] = padded[:, row * 8 : row * 8 + 32, col * 8 : col * 8 + 32].mean(axis=(1, 2))
            seen[:, row, col] = own & (part[:, row, col] >= 0.3)
    np.testing.assert_array_equal(np.isfinite(made).all("feature"), seen.any(axis=0))
    np.testing.assert_array_equal(np.isnan(made).all("feature"), ~seen.any(axis=0))
    np.testing.assert_array_equal(made["n_periods"], seen.sum(axis=0))
    np.testing.assert_allclose(made["valid_fraction"], part.mean(axis=0), atol=1e-6)


def test_features_of_periods_are_put_one_after_another_where_all_are_there(
    composites: Make, bundle: ModelBundle
) -> None:
    source = composites()
    both = embed(source, bundle, stride=8, combine="concat")
    single = [embed(source.isel(period=p), bundle, stride=8) for p in range(2)]
    joined = np.concatenate(single)
    joined[:, np.isnan(joined).any(axis=0)] = np.nan
    np.testing.assert_array_equal(both, joined)


def test_a_period_without_data_leaves_the_others_as_they_are(composites: Make, bundle: ModelBundle) -> None:
    source = composites()
    empty = source.copy()
    empty[1] = np.nan
    np.testing.assert_array_equal(embed(empty, bundle, stride=8), embed(source.isel(period=0), bundle, stride=8))
    nothing = embed(empty.isel(period=1), bundle, stride=8)
    assert nothing.shape == (96, 12, 10)
    assert np.isnan(nothing).all()


def test_small_windows_are_enlarged_as_in_the_evaluation_of_bundles(composites: Make, bundle: ModelBundle) -> None:
    source = composites(holes=False).isel(period=0)
    made = embed(source, bundle, stride=8, window=16)
    pixels = source.to_numpy()[:, 36:52, 28:44]
    red, nir = pixels[1], pixels[2]
    image = torch.from_numpy(np.stack([*pixels, (nir - red) / (nir + red)]))[None]
    expected = bundle(functional.interpolate(image, size=(32, 32), mode="bicubic"))[0].numpy()
    np.testing.assert_allclose(made.isel(y=5, x=4), expected, rtol=1e-4, atol=1e-5)


def test_a_sample_is_drawn_once_for_a_seed_and_holds_data_only(composites: Make, bundle: ModelBundle) -> None:
    work = embedder(composites(), bundle)
    sample = work.sample(30, seed=5)
    assert sample.shape == (30, 96)
    assert np.isfinite(sample).all()
    np.testing.assert_array_equal(sample, work.sample(30, seed=5))
    assert not np.array_equal(sample, work.sample(30, seed=6))
    known = work.block((0, 12), (0, 10))["features"].reshape(96, -1).T
    assert {row.tobytes() for row in sample} <= {row.tobytes() for row in known}
    assert len({row.tobytes() for row in sample}) == 30


def test_the_map_lies_on_the_coarser_grid(composites: Make, bundle: ModelBundle) -> None:
    made = embed(composites(), bundle, stride=8)
    assert made.odc.geobox == Lattice(region(), 32, 8).cells
    assert made.rio.bounds()[0] == 500_000
    assert made.rio.bounds()[3] == 5_600_000
    assert made.rio.resolution() == (80, -80)
    assert made.attrs["kind"] == "continuous"
    assert made.attrs["units"] == "1"


def test_a_model_that_does_not_fit_is_refused(composites: Make, bundle: ModelBundle) -> None:
    source = composites()
    with pytest.raises(InputError, match="needs the band B04"):
        embed(source.sel(band=["B02", "B08"]), bundle, stride=8)
    with pytest.raises(InputError, match="in units of '1'"):
        embed(source.assign_attrs(units="DN"), bundle, stride=8)
    with pytest.raises(InputError, match="pixels of 20 m"):
        embed(source, tiny_bundle(resolution=20.0), stride=8)
    with pytest.raises(InputError, match="for classification"):
        embed(source, tiny_bundle(task="classification"), stride=8)
    with pytest.raises(InputError, match="larger than the 32"):
        embed(source, bundle, stride=8, window=40)
    with pytest.raises(InputError, match="do not fit in a region"):
        embed(source.isel(y=slice(0, 30)), bundle, stride=8)
    with pytest.raises(InputError, match="from 0 to 1"):
        embed(source, bundle, stride=8, min_valid=2)
    with pytest.raises(InputError, match="dimensions"):
        embed(source.expand_dims("ensemble"), bundle, stride=8)
    with pytest.raises(InputError, match="'mean' or 'concat'"):
        embed(source, bundle, stride=8, combine="max")  # type: ignore[arg-type]


def test_windows_are_in_metres(composites: Make, bundle: ModelBundle) -> None:
    degrees = composites().drop_vars("spatial_ref").rio.write_crs("EPSG:4326")
    with pytest.raises(GridError, match="in metres"):
        embed(degrees, bundle, stride=8)


def test_a_model_that_diverged_makes_no_map(composites: Make) -> None:
    broken = tiny_bundle()
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    with pytest.raises(OutputError, match="not finite"):
        embed(composites(), broken, stride=8)
