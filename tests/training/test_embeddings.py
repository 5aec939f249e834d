"""Embeddings of chips: the encoder's own answer, computed once, and NaN where there is nothing to see."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

from geoeco.errors import InputError, OutputError  # noqa: E402
from geoeco.sampling import chips_fingerprint  # noqa: E402
from geoeco.training import Normalisation, embed_chips, location_features  # noqa: E402

from .drawn_chips import Means, bundle_of, draw_store  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Ten locations: one lacks two seasons, one has a chip with data at its edge only."""
    return draw_store(
        tmp_path_factory.mktemp("drawn"), locations=10, size=12, without={3: (1, 3)}, invalid={5: (0,), 6: (0, 1, 2, 3)}
    )


@pytest.fixture
def small_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip


def test_an_embedding_is_what_the_encoder_gives_for_the_image(drawn, tmp_path):
    found = embed_chips(bundle_of(Means()), drawn.store, tmp_path)
    assert found.dims == ("sample", "season", "feature")
    assert found.dtype == np.float32
    assert found["name"].values.tolist() == drawn.chips["name"].values.tolist()
    assert found["season"].values.tolist() == ["spring", "summer", "autumn", "winter"]
    expected = np.nan_to_num(drawn.chips["chips"].values).mean(axis=(3, 4))
    seen = drawn.chips["reason"].values == ""
    np.testing.assert_allclose(found.values[seen], expected[seen], atol=1e-6)


def test_seasons_that_are_not_there_are_nan_and_no_others(drawn, tmp_path):
    found = embed_chips(bundle_of(Means()), drawn.store, tmp_path)
    np.testing.assert_array_equal(np.isnan(found.values).any(axis=2), drawn.chips["reason"].values != "")
    np.testing.assert_array_equal(np.isnan(found.values).all(axis=2), drawn.chips["reason"].values != "")


def test_a_window_without_a_valid_pixel_is_nan_though_its_chip_is_there(drawn, tmp_path):
    """The encoder would see a field of zeros and have an answer to it."""
    found = embed_chips(bundle_of(Means(), size=8), drawn.store, tmp_path)
    assert np.isnan(found.values[5, 0]).all()
    assert np.isfinite(found.values[5, 1:]).all()
    assert np.isnan(found.values[6]).all()


def test_larger_chips_are_cut_at_their_centre(drawn, tmp_path):
    found = embed_chips(bundle_of(Means(), size=4), drawn.store, tmp_path)
    np.testing.assert_allclose(
        found.values[0], drawn.chips["chips"].values[0, :, :, 4:8, 4:8].mean(axis=(2, 3)), atol=1e-6
    )


def test_smaller_chips_are_enlarged_bicubically_to_the_size_that_the_model_knows(drawn, tmp_path):
    module = Means()
    found = embed_chips(bundle_of(module, size=18), drawn.store, tmp_path)
    assert {shape[2:] for shape in module.batches} == {(18, 18)}
    image = torch.from_numpy(drawn.chips["chips"].values[0])
    expected = torch.nn.functional.interpolate(image, scale_factor=1.5, mode="bicubic").mean(dim=(2, 3))
    np.testing.assert_allclose(found.values[0], expected.numpy(), atol=1e-5)


def test_the_input_is_scaled_as_the_bundle_says(drawn, tmp_path):
    scaled = dataclasses.replace(bundle_of(Means()), normalisation=Normalisation((0.1, 0.2, 0.3), (0.5, 1.0, 2.0)))
    plain = embed_chips(bundle_of(Means()), drawn.store, tmp_path).values
    found = embed_chips(scaled, drawn.store, tmp_path).values
    np.testing.assert_allclose(found, (plain - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0], atol=1e-5)


def test_bands_come_in_the_order_of_the_model_and_ndvi_is_computed(drawn, tmp_path):
    """A model that is fed bands in another order than its own sees another world (trap 32)."""
    found = embed_chips(bundle_of(Means(), bands=("B08", "B04", "ndvi")), drawn.store, tmp_path).values
    plain = embed_chips(bundle_of(Means()), drawn.store, tmp_path).values
    np.testing.assert_allclose(found[..., :2], plain[..., [2, 1]], atol=1e-6)
    red, nir = drawn.chips["chips"].values[0, :, 1], drawn.chips["chips"].values[0, :, 2]
    np.testing.assert_allclose(found[0, :, 2], ((nir - red) / (nir + red)).mean(axis=(1, 2)), atol=1e-5)


def test_every_batch_has_one_shape_and_neighbours_do_not_matter(drawn, tmp_path, small_net):
    module = Means()
    embed_chips(bundle_of(module), drawn.store, tmp_path / "a", batch=12)
    assert module.batches == [(12, 3, 12, 12)] * 4
    whole = embed_chips(bundle_of(small_net), drawn.store, tmp_path, batch=12).values
    few = draw_store(
        tmp_path / "few", locations=10, size=12, without={3: (1, 3), **dict.fromkeys(range(4, 10), (0, 1, 2))}
    )
    alone = embed_chips(bundle_of(small_net), few.store, tmp_path, batch=12).values
    np.testing.assert_array_equal(alone[:4], whole[:4])


def test_the_module_is_in_evaluation_mode(drawn, tmp_path, small_net):
    before = {name: value.clone() for name, value in small_net.state_dict().items()}
    embed_chips(bundle_of(small_net), drawn.store, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in small_net.state_dict().items())


def test_the_second_call_reads_what_the_first_has_written(drawn, tmp_path):
    first = embed_chips(bundle_of(Means()), drawn.store, tmp_path)
    module = Means()
    again = embed_chips(bundle_of(module), drawn.store, tmp_path)
    assert module.batches == []
    assert again.identical(first)
    assert again.attrs["bundle"] == bundle_of(Means()).fingerprint()
    assert again.attrs["store"] == chips_fingerprint(drawn.store)


def test_another_model_window_or_season_has_embeddings_of_its_own(drawn, tmp_path):
    changed = Means()
    with torch.no_grad():
        changed.gain.mul_(2)
    keys = {
        embed_chips(bundle_of(Means()), drawn.store, tmp_path).attrs["key"],
        embed_chips(bundle_of(changed), drawn.store, tmp_path).attrs["key"],
        embed_chips(bundle_of(Means(), size=8), drawn.store, tmp_path).attrs["key"],
        embed_chips(bundle_of(Means()), drawn.store, tmp_path, seasons=("winter", "spring")).attrs["key"],
        embed_chips(bundle_of(Means()), drawn.store, tmp_path, batch=8).attrs["key"],
    }
    assert len(keys) == 5
    assert {path.name for path in tmp_path.iterdir()} == keys


def test_other_pixels_are_other_embeddings_though_the_table_is_the_same(drawn, tmp_path):
    other = draw_store(
        tmp_path / "other",
        locations=10,
        size=12,
        without={3: (1, 3)},
        invalid={5: (0,), 6: (0, 1, 2, 3)},
        brightness=0.1,
    )
    tables = [Path(store, "chips.parquet").read_bytes() for store in (drawn.store, other.store)]
    assert tables[0] == tables[1]
    first = embed_chips(bundle_of(Means()), drawn.store, tmp_path / "out")
    second = embed_chips(bundle_of(Means()), other.store, tmp_path / "out")
    assert first.attrs["key"] != second.attrs["key"]
    np.testing.assert_allclose(np.nanmean((second - first).values[..., 0]), 0.1 * 10.2 / 10.5, atol=0.01)


def test_a_store_is_known_wherever_it_lies(drawn, tmp_path):
    shutil.copytree(drawn.store, tmp_path / "moved")
    assert chips_fingerprint(str(tmp_path / "moved")) == chips_fingerprint(drawn.store)


@pytest.mark.parametrize("damage", ["record", "chunk", "cut"])
def test_what_is_half_written_is_made_again(drawn, tmp_path, damage):
    first = embed_chips(bundle_of(Means()), drawn.store, tmp_path).load()
    folder = Path(first.attrs["folder"])
    (chunk,) = (path for path in (folder / "embeddings.zarr").rglob("c/*/*/*") if path.is_file())
    if damage == "record":
        (folder / "embeddings.json").unlink()
        chunk.write_bytes(chunk.read_bytes()[:-5])
    elif damage == "chunk":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-5])
    module = Means()
    again = embed_chips(bundle_of(module), drawn.store, tmp_path)
    assert module.batches
    assert again.identical(first)


def test_a_record_that_cannot_be_read_counts_as_none(drawn, tmp_path):
    first = embed_chips(bundle_of(Means()), drawn.store, tmp_path).load()
    (Path(first.attrs["folder"]) / "embeddings.json").write_text("{")
    assert embed_chips(bundle_of(Means()), drawn.store, tmp_path).identical(first)


def test_embeddings_that_were_changed_are_not_scored(drawn, tmp_path):
    folder = Path(embed_chips(bundle_of(Means()), drawn.store, tmp_path).attrs["folder"])
    (chunk,) = (path for path in (folder / "embeddings.zarr").rglob("c/*/*/*") if path.is_file())
    content = chunk.read_bytes()
    for at in range(0, len(content), 77):
        chunk.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(OutputError, match="damaged"):
            location_features(embed_chips(bundle_of(Means()), drawn.store, tmp_path))


def test_a_folder_may_be_remote(drawn):
    out = "memory://embeddings-of-a-test"
    first = embed_chips(bundle_of(Means()), drawn.store, out)
    module = Means()
    assert embed_chips(bundle_of(module), drawn.store, out).identical(first)
    assert module.batches == []


def test_the_record_says_what_the_numbers_were_made_of(drawn, tmp_path):
    found = embed_chips(bundle_of(Means(), name="means"), drawn.store, tmp_path)
    record = json.loads((Path(found.attrs["folder"]) / "embeddings.json").read_text())
    assert record["model"] == "means"
    assert record["size"] == 12
    assert record["bundle"] == found.attrs["bundle"]


def test_a_location_is_the_mean_of_its_seasons_one_of_them_or_all_in_a_row(drawn, tmp_path):
    found = embed_chips(bundle_of(Means()), drawn.store, tmp_path).load()
    mean = location_features(found)
    np.testing.assert_allclose(mean.values[3], found.values[3, [0, 2]].mean(axis=0), atol=1e-6)
    assert np.isfinite(mean.values).all()
    row = location_features(found, "concatenate")
    assert row.shape == (10, 12)
    np.testing.assert_array_equal(row.values[0], found.values[0].ravel())
    assert np.isnan(row.values[3]).all()
    winter = location_features(found, "winter")
    np.testing.assert_array_equal(winter.values, found.values[:, 3])
    with pytest.raises(InputError, match="no season 'monsoon'"):
        location_features(found, "monsoon")


def test_a_model_for_other_imagery_is_refused_before_a_pixel_is_read(drawn, tmp_path):
    """Bands that the store lacks are never filled with zeros (trap 39)."""
    with pytest.raises(InputError, match="no band 'B01'"):
        embed_chips(bundle_of(Means(), bands=("B01", "B02")), drawn.store, tmp_path)
    with pytest.raises(InputError, match="pixels of 20 m"):
        embed_chips(bundle_of(Means(), resolution=20.0), drawn.store, tmp_path)
    with pytest.raises(InputError, match="units of 'DN'"):
        embed_chips(bundle_of(Means(), units="DN"), drawn.store, tmp_path)
    with pytest.raises(InputError, match="no season"):
        embed_chips(bundle_of(Means()), drawn.store, tmp_path, seasons=("monsoon",))
    with pytest.raises(OutputError):
        embed_chips(bundle_of(Means()), tmp_path / "nowhere", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_maps_or_infinite_numbers_is_refused(drawn, tmp_path):
    with pytest.raises(InputError, match="no feature vector"):
        embed_chips(bundle_of(torch.nn.Conv2d(3, 2, 1)), drawn.store, tmp_path)
    diverged = Means()
    with torch.no_grad():
        diverged.gain.fill_(torch.inf)
    with pytest.raises(OutputError, match="not finite"):
        embed_chips(bundle_of(diverged), drawn.store, tmp_path)
