"""Components, whole numbers, clusters and likeness, against other libraries and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from pyproj import Transformer
from scipy.spatial.distance import cdist
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from geoeco.errors import InputError, OutputError
from geoeco.mapping import Clusters, PrincipalComponents, Quantisation, Reduction, cluster, embed, nearest
from geoeco.training import ModelBundle

rng = np.random.default_rng(11)
SAMPLE = (rng.normal(size=(300, 6)) @ rng.normal(size=(6, 40)) + rng.normal(size=40)).astype(np.float32)


def test_components_are_those_of_scikit_learn_up_to_signs() -> None:
    ours, theirs = PrincipalComponents(4).fit(SAMPLE), PCA(4, svd_solver="full").fit(SAMPLE.astype(float))
    signs = np.sign((ours.axes_ * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.transform(SAMPLE), theirs.transform(SAMPLE.astype(float)) * signs, atol=1e-6)
    np.testing.assert_allclose(ours.variance_, theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(ours.share_, theirs.explained_variance_ratio_, rtol=1e-9)


def test_signs_of_components_do_not_turn() -> None:
    axes = PrincipalComponents(4).fit(SAMPLE).axes_
    assert (np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1) > 0).all()
    again = PrincipalComponents(4).fit(SAMPLE[::-1]).axes_
    np.testing.assert_allclose(axes, again, atol=1e-6)


@pytest.mark.parametrize(("n", "cells"), [(41, 300), (5, 5), (0, 300)])
def test_components_that_a_sample_cannot_tell_are_refused(n: int, cells: int) -> None:
    with pytest.raises(InputError, match="principal components"):
        PrincipalComponents(n).fit(SAMPLE[:cells])


def test_whole_numbers_are_within_half_a_step_and_nan_stays() -> None:
    scale = Quantisation.of(SAMPLE, clip=0.01)
    held, clipped = scale.round(SAMPLE)
    assert (np.abs(held - SAMPLE)[~clipped] <= 0.5001 * scale.scale).all()
    assert 0.001 < clipped.mean() <= 0.021
    levels = (held.astype(float) - scale.offset) / scale.scale
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert levels.min() >= -127.001
    assert levels.max() <= 127.001
    assert np.isnan(scale.round(np.array([np.nan, 0.0]))[0][0])


def test_zero_stays_zero_where_values_are_of_both_signs() -> None:
    assert Quantisation.of(SAMPLE).offset == 0
    positive = Quantisation.of(np.abs(SAMPLE) + 3)
    assert positive.offset > 3
    assert Quantisation.of(np.full(9, 2.0)).round(np.full(3, 2.0))[0].tolist() == [2.0] * 3


def test_clusters_are_found_and_numbered_by_size() -> None:
    points, truth = make_blobs([200, 60, 120, 20], centers=rng.normal(size=(4, 5)) * 20, random_state=3)
    made = Clusters(4, seed=1).fit(points)
    labels, distance = made.predict(points)
    assert adjusted_rand_score(truth, labels) == 1.0
    assert made.counts_.tolist() == [200, 120, 60, 20]
    assert np.bincount(labels).tolist() == [0, 200, 120, 60, 20]
    np.testing.assert_allclose(distance, cdist(points, made.centroids_).min(axis=1), rtol=1e-6)


def test_clusters_do_not_change_from_run_to_run_nor_with_the_seed_where_they_are_plain() -> None:
    points, _ = make_blobs([80, 50, 30], centers=rng.normal(size=(3, 5)) * 20, random_state=3)
    first = Clusters(3, seed=1).fit(points)
    assert Clusters(3, seed=1).fit(points).centroids_.tobytes() == first.centroids_.tobytes()
    np.testing.assert_allclose(Clusters(3, seed=2).fit(points).centroids_, first.centroids_, atol=1e-9)


def test_what_is_farther_than_the_sample_was_is_unassigned_and_nodata_is_not_that() -> None:
    points, _ = make_blobs([50, 50], centers=[[0, 0], [9, 9]], random_state=3)
    labels, distance = Clusters(2).fit(points).predict(np.array([[40.0, 40.0], [np.nan, 0.0], points[0]]))
    assert labels[:2].tolist() == [0, 65535]
    assert labels[2] in (1, 2)
    assert np.isnan(distance[1])


@pytest.mark.parametrize("k", [0, 4, 70_000])
def test_clusters_that_a_sample_cannot_tell_are_refused(k: int) -> None:
    with pytest.raises(InputError, match="clusters cannot be found"):
        Clusters(k).fit(np.repeat([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], 30_000, axis=0)[::30_000])


def test_a_reduction_comes_back_from_its_file_and_is_the_same_for_any_group_of_cells() -> None:
    made = Reduction.fit(SAMPLE, dims=5, clusters=3, places=SAMPLE[:2], seed=4)
    content = made.to_bytes()
    assert content == Reduction.fit(SAMPLE, dims=5, clusters=3, places=SAMPLE[:2], seed=4).to_bytes()
    again = Reduction.from_bytes(content)
    features = np.concatenate([SAMPLE[:15], np.full((1, 40), np.nan, np.float32)])
    expected, found = made.derive(features), again.derive(features)
    assert {name: value.shape for name, value in found.items()} == {
        "embedding": (16, 5),
        "pca_rgb": (16, 3),
        "clipped": (16,),
        "cluster": (16,),
        "cluster_distance": (16,),
        "similarity": (16, 2),
    }
    for name, values in expected.items():
        assert values.tobytes() == found[name].tobytes(), name
    assert np.isnan(found["embedding"][15]).all()
    assert np.isnan(found["similarity"][15]).all()
    assert found["cluster"][15] == 65535
    np.testing.assert_allclose(found["similarity"][:15], 1 - cdist(features[:15], SAMPLE[:2], "cosine"), atol=1e-6)


def test_all_features_can_be_kept_as_they_are() -> None:
    made = Reduction.from_bytes(Reduction.fit(SAMPLE, clip=None).to_bytes())
    assert made.clusters is None
    np.testing.assert_array_equal(made.derive(SAMPLE[:16])["embedding"], SAMPLE[:16])


def test_a_file_that_is_no_fit_is_refused() -> None:
    content = Reduction.fit(SAMPLE, dims=5).to_bytes()
    for wrong in (b"", b"nonsense", content[:-40]):
        with pytest.raises(OutputError, match="not the fit"):
            Reduction.from_bytes(wrong, "fit.safetensors")


def test_clusters_and_likeness_of_a_map(composites: Callable[..., xr.DataArray], bundle: ModelBundle) -> None:
    embedding = embed(composites(), bundle, stride=8)
    known = np.isfinite(embedding).all("feature")
    classes = cluster(embedding, 3, seed=1)
    assert classes["cluster"].dtype == np.uint16
    np.testing.assert_array_equal(classes["cluster"] != 65535, known)
    np.testing.assert_array_equal(np.isfinite(classes["distance"]), known)
    assert classes["cluster"].attrs["flag_values"] == [0, 1, 2, 3]
    assert classes["cluster"].rio.crs.to_epsg() == 32631

    x, y = float(embedding.x[6]), float(embedding.y[9])
    likeness = nearest(embedding, *Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y))
    assert float(likeness[9, 6]) == pytest.approx(1, abs=1e-6)
    assert float(likeness.max()) <= 1
    np.testing.assert_array_equal(np.isfinite(likeness), known)
    table = embedding.to_numpy().reshape(96, -1).T
    expected = 1 - cdist(table, table[[9 * 10 + 6]], "cosine")[:, 0].reshape(12, 10)
    np.testing.assert_allclose(likeness, expected, atol=1e-6)
    with pytest.raises(InputError, match="no embedding at"):
        nearest(embedding, *Transformer.from_crs(32631, 4326, always_xy=True).transform(500_280, 5_599_600))
    with pytest.raises(InputError, match="outside the region"):
        nearest(embedding, 10.0, 10.0)
    with pytest.raises(InputError, match="feature, y, x"):
        cluster(embedding.rename(feature="band"), 3)
    with pytest.raises(InputError, match="no data"):
        cluster(embedding.where(False), 3)
