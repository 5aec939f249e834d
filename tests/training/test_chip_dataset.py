"""Season chips as a torch data set: the same numbers, in torchgeo's dictionaries, in any process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra ml")

import segmentation_models_pytorch as smp  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchgeo.datasets import NonGeoDataset  # noqa: E402

from geoeco.errors import InputError, OutputError, ReadError  # noqa: E402
from geoeco.sampling import SEASONS, open_chips  # noqa: E402
from geoeco.training import ChipDataset  # noqa: E402
from tests.training.stores import pixels, store_of  # noqa: E402


def test_a_sample_holds_the_chips_of_the_store(chips):
    dataset = ChipDataset(chips.store)
    stored = open_chips(chips.store)
    assert isinstance(dataset, NonGeoDataset)
    assert len(dataset) == stored.sizes["sample"] >= 4
    assert dataset.seasons == SEASONS
    for position, sample in enumerate(dataset[i] for i in range(len(dataset))):
        expected = stored["chips"].isel(sample=position).values
        assert sample["image"].shape == (4, 5, 64, 64)
        assert sample["image"].dtype == torch.float32
        np.testing.assert_array_equal(sample["image"].numpy(), np.nan_to_num(expected, nan=0.0))
        np.testing.assert_array_equal(sample["valid"].numpy(), np.isfinite(expected).all(axis=1))
        assert sample["lonlat"].tolist() == [
            stored["lon"].values[position],
            stored["lat"].values[position],
        ]


def test_no_value_of_a_sample_is_nan(chips):
    for sample in (ChipDataset(chips.store)[i] for i in range(len(ChipDataset(chips.store)))):
        assert all(torch.isfinite(value.double()).all() for value in sample.values())


def test_the_day_of_year_is_that_of_the_image(chips):
    stored = open_chips(chips.store)
    dataset = ChipDataset(chips.store)
    for position in range(len(dataset)):
        sample = dataset[position]
        dates = stored["date"].isel(sample=position)
        for season in range(4):
            if sample["present"][season]:
                assert int(sample["day_of_year"][season]) == int(dates[season].dt.dayofyear)
            else:
                assert sample["day_of_year"][season] == 0
                assert not sample["valid"][season].any()


def test_names_bands_and_seasons_are_taken_in_the_order_asked_for(chips):
    whole = ChipDataset(chips.store)
    part = ChipDataset(
        chips.store, names=whole.names[2:0:-1], bands=["B08", "B04"], seasons=["autumn", "spring"], size=32
    )
    assert part.names == (whole.names[2], whole.names[1])
    assert part.all_bands == ("B08", "B04")
    expected = whole[2]["image"][[2, 0]][:, [3, 2], 16:48, 16:48]
    assert torch.equal(part[0]["image"], expected)


def test_random_windows_follow_the_seed_and_lie_in_the_chip(chips):
    dataset = ChipDataset(chips.store, size=40, crop="random")
    torch.manual_seed(5)
    first = [dataset[0]["image"] for _ in range(6)]
    torch.manual_seed(5)
    again = [dataset[0]["image"] for _ in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(first[0], other) for other in first[1:])
    whole = ChipDataset(chips.store)[0]["image"]
    windows = whole.unfold(2, 40, 1).unfold(3, 40, 1)
    for window in first:
        assert (windows == window[:, :, None, None]).all(dim=(0, 1, 4, 5)).any()


def test_an_index_beyond_the_end_is_an_index_error_and_a_negative_one_counts_back(chips):
    dataset = ChipDataset(chips.store)
    assert torch.equal(dataset[-1]["image"], dataset[len(dataset) - 1]["image"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_transforms_see_the_whole_sample(chips):
    seen = []

    def transform(sample):
        seen.append(set(sample))
        return {"image": sample["image"] * 2}

    doubled = ChipDataset(chips.store, transforms=transform)[0]
    assert seen == [{"image", "valid", "present", "day_of_year", "season", "lonlat", "index"}]
    assert torch.equal(doubled["image"], 2 * ChipDataset(chips.store)[0]["image"])


def test_it_travels_without_an_open_store(chips):
    dataset = ChipDataset(chips.store)
    before = dataset[1]["image"]
    body = pickle.dumps(dataset)
    assert len(body) < 10_000
    assert torch.equal(pickle.loads(body)[1]["image"], before)


@pytest.mark.slow  # test_reading_processes_change_nothing holds a training to the same
def test_workers_that_were_spawned_give_the_same_samples(chips):
    dataset = ChipDataset(chips.store, bands=["B04", "B08"])
    dataset[0]
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    images = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(images, torch.stack([dataset[i]["image"] for i in range(len(dataset))]))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(dataset)))


def test_what_the_store_lacks_is_named_with_what_it_has(chips, tmp_path):
    with pytest.raises(InputError, match="no band 'B05'") as caught:
        ChipDataset(chips.store, bands=["B04", "B05"])
    assert "B11" in caught.value.what_to_do
    with pytest.raises(InputError, match="no location 'nowhere'"):
        ChipDataset(chips.store, names=["nowhere"])
    with pytest.raises(InputError, match="windows of 65 pixels do not fit"):
        ChipDataset(chips.store, size=65)
    with pytest.raises(InputError, match="crop is 'middle'"):
        ChipDataset(chips.store, crop="middle")
    with pytest.raises(OutputError, match="no store of chips"):
        ChipDataset(tmp_path / "none")


def test_a_unet_of_segmentation_models_learns_land_cover_from_its_samples(chips):
    """The dictionaries fit a public network: seasons and bands become its channels, ``valid`` its weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = ChipDataset(chips.store)
    stored = open_chips(chips.store)
    batch = torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])
    cover = np.stack(
        [chips.cover_of(float(x0), float(y1), 64) for x0, y1 in zip(stored["x0"], stored["y1"], strict=True)]
    )
    target = torch.from_numpy(cover.astype(np.int64))
    classes = int(target.max()) + 1
    network = smp.Unet(
        "resnet18", encoder_weights=None, in_channels=4 * 5, classes=classes, decoder_channels=(64, 32, 16, 8, 8)
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    weights = batch["valid"].all(dim=1).float()
    assert weights.mean() > 0.3

    def loss_of(images):
        loss = torch.nn.functional.cross_entropy(network(images), target, reduction="none")
        return (loss * weights).sum() / weights.sum()

    images = batch["image"].flatten(1, 2) / 0.3
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = loss_of(images)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_damaged_table_is_told(tmp_path):
    store = store_of(tmp_path / "store", pixels(2))
    (tmp_path / "store" / "chips.parquet").write_bytes(b"nonsense")
    with pytest.raises(OutputError, match=r"chips\.parquet is damaged"):
        ChipDataset(store)


def test_a_flipped_byte_of_a_chip_is_told_and_not_learned_from(tmp_path):
    store = store_of(tmp_path / "store", pixels(2))
    dataset = ChipDataset(store)
    before = dataset[0]["image"]
    (shard,) = (tmp_path / "store" / "chips.zarr" / "chips" / "c" / "0" / "1").rglob("0/0/0")
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    with pytest.raises(ReadError, match="a shard is damaged") as caught:
        ChipDataset(store)[0]
    assert str(shard) in caught.value.where
    assert torch.equal(ChipDataset(store, seasons=["spring"])[0]["image"], before[:1])
