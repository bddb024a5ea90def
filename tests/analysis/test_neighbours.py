from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.analysis import pieces
from diffssl.analysis.neighbours import nearest
from diffssl.analysis.pictures import NoPicture
from diffssl.store import FeatureKey, FeatureStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 4)


def written_out(features: NDArray[Any], queries: list[int], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of all rows at once; NaN rows are nobody's neighbour."""
    vectors = features.astype(np.float64).mean(axis=(2, 3))
    good = np.isfinite(vectors).all(axis=1)
    z = (vectors - vectors[good].mean(axis=0)) / vectors[good].std(axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similar = np.where(good, z[queries] @ z.T, -np.inf)
    similar[np.arange(len(queries)), queries] = -np.inf
    order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similar, order, 1)


@pytest.mark.parametrize("size", [1 << 10, 1 << 24])
def test_the_nearest_by_cosine(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(pieces, "_BYTES", size)
    store = make_store({"all": 150}, [KEY], left_out={KEY: ["c00/all-00004.png", "c02/all-00010.png"]})
    queries = [5, 149, 70]
    if set(queries) & set(store.journal.left_out("all", KEY)):
        queries = [6, 148, 71]
    rows, similar = nearest(store, KEY, "all", queries, 7)
    wanted_rows, wanted = written_out(store.read(KEY, "all"), queries, 7)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_allclose(similar, wanted, atol=1e-8)
    assert (np.diff(similar, axis=1) <= 0).all()


def test_classes_that_are_far_apart_are_found(make_store: MakeStore) -> None:
    store = make_store({"all": 160}, [KEY], separation=40)
    rows, _ = nearest(store, KEY, "all", list(range(20)), 5)
    labels = store.labels("all")
    assert (labels[rows] == labels[:20, None]).mean() > 0.95


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    copies=st.lists(st.integers(0, 5), min_size=70, max_size=70), k=st.integers(1, 69), size=st.sampled_from([32, 512, 1 << 24])
)
def test_ties_are_in_row_order(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, copies: list[int], k: int, size: int
) -> None:
    """70 rows, each one of six vectors: whatever the pieces, equal rows come by number."""
    monkeypatch.setattr(pieces, "_BYTES", size)
    vectors = np.random.default_rng(0).normal(size=(6, 8, 1, 1))
    key = FeatureKey(1, 10, 1)
    name = f"{abs(hash((tuple(copies), k, size)))}.zarr"
    store = make_store({"all": 70}, [key], name=name, features=lambda *_: vectors[copies])
    rows, similar = nearest(store, key, "all", [0, 33], k)
    for own, values, query in zip(rows, similar, (0, 33), strict=True):
        assert len(set(own.tolist())) == k
        assert query not in own
        same = np.flatnonzero(np.array(copies) == copies[query])
        first = [row for row in same if row != query][:k]
        assert own.tolist()[: len(first)] == first
        assert sorted(zip(-values, own, strict=True)) == list(zip(-values, own, strict=True))


def test_a_channel_that_never_changes_counts_nothing(make_store: MakeStore) -> None:
    def features(constant: float) -> Callable[..., NDArray[Any]]:
        def make(_: FeatureKey, __: str, labels: NDArray[np.int32]) -> NDArray[Any]:
            values = np.random.default_rng(1).normal(size=(len(labels), 8, 1, 1))
            values[:, 3] = constant
            return values

        return make

    key = FeatureKey(1, 10, 1)
    found = [
        nearest(make_store({"all": 99}, [key], name=f"{c}.zarr", features=features(c), dtype="float32"), key, "all", [4], 9)
        for c in (0.0, 0.1, 1000.3)
    ]
    for rows, similar in found[1:]:
        np.testing.assert_array_equal(rows, found[0][0])
        np.testing.assert_allclose(similar, found[0][1], atol=1e-8)


def test_as_many_as_there_are(make_store: MakeStore) -> None:
    store = make_store({"all": 100}, [KEY])
    assert nearest(store, KEY, "all", [0], 99)[0].shape == (1, 99)
    with pytest.raises(NoPicture, match=r"all has 100 rows with features at block 1, .*, so an image has no 100 neighbours"):
        nearest(store, KEY, "all", [0], 100)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        nearest(store, KEY, "all", [0], 0)


def test_an_image_without_features_has_none(make_store: MakeStore) -> None:
    store = make_store({"all": 100}, [KEY], left_out={KEY: ["c00/all-00004.png"]})
    (row,) = store.journal.left_out("all", KEY)
    with pytest.raises(NoPicture, match="could not be decoded"):
        nearest(store, KEY, "all", [row], 3)
