"""SettingData: moments, batches and order against numpy, and memory that stays bounded."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import diffssl.probe.data
import numpy as np
import pytest
from diffssl.probe import ProbeError
from diffssl.probe.data import Moments, SettingData
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]
RowSet = Mapping[str, NDArray[np.int64]]
Batches = Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]

KEY = FeatureKey(1, 10, 1)
N = 300  # four row blocks of 64 and one of 44


def numbered(_key: FeatureKey, split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
    """The number of the row, and what its label is: so that any mix-up shows."""
    rows = np.arange(len(labels), dtype=np.float64)
    values = np.stack([rows, labels, -rows, np.full(len(labels), 7.0)], axis=1)
    return values.reshape(-1, 4, 1, 1) + (1000 if split == "val" else 0)


def plain(dimension: int) -> Moments:
    """Moments that change nothing."""
    return Moments(np.zeros(dimension), np.ones(dimension))


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store({"train": N, "val": 100}, features=numbered, channels=4, dtype="float32")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, slice]]:
    """Every read of features from a store."""
    calls: list[tuple[str, slice]] = []
    read = FeatureStore.read

    def watch(self: FeatureStore, key: FeatureKey, split: str, rows: slice = slice(None)) -> NDArray[Any]:
        calls.append((split, rows))
        return read(self, key, split, rows)

    monkeypatch.setattr(FeatureStore, "read", watch)
    return calls


def some_rows() -> RowSet:
    rng = np.random.default_rng(0)
    return {"train": np.flatnonzero(rng.random(N) < 0.4), "val": np.arange(50, 100)}


def collect(batches: Batches) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    features, labels = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(labels)


# Moments


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e6])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_moments_are_exact_whatever_the_mean(make_store: MakeStore, mean: float, memory: int) -> None:
    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        return mean + np.random.default_rng(len(labels)).normal(size=(len(labels), 5, 2, 2))

    key = FeatureKey(1, 10, 2)
    store = make_store({"train": N, "val": 100}, [key], features=features, channels=5, dtype="float32")
    rows = some_rows()
    moments = SettingData(store, key, memory).moments(rows)
    values = np.concatenate([store.read(key, split)[rows[split]] for split in rows]).reshape(-1, 20).astype(np.float64)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.scale, values.std(axis=0), rtol=1e-12)
    assert moments.mean.dtype == moments.scale.dtype == np.float64


def test_moments_of_float16_do_not_overflow(make_store: MakeStore) -> None:
    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        return 6e4 + 1e3 * np.random.default_rng(0).normal(size=(len(labels), 3, 1, 1))

    store = make_store({"train": N}, features=features, channels=3)
    moments = SettingData(store, KEY).moments({"train": np.arange(N)})
    values = store.xy(KEY, "train")[0].astype(np.float64)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.scale, values.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 6e4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_constant_feature_is_not_divided_by_its_deviation(make_store: MakeStore, value: float, dtype: str) -> None:
    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        return np.full((len(labels), 2, 1, 1), value)

    store = make_store({"train": N}, features=features, channels=2, dtype=dtype)
    data = SettingData(store, KEY)
    rows = {"train": np.arange(N)}
    moments = data.moments(rows)
    assert moments.scale.tolist() == [1, 1]
    assert not data.load(rows, moments)[0].any()


# Order


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_rows_and_labels_come_aligned_and_in_order(store: FeatureStore, memory: int) -> None:
    rows = some_rows()
    features, labels = collect(SettingData(store, KEY, memory).in_order(rows, plain(4)))
    expected = np.concatenate([rows["train"], rows["val"]])
    stored = np.concatenate([store.labels(split)[rows[split]] for split in rows])
    offset = np.repeat([0, 1000], [len(rows["train"]), len(rows["val"])])
    assert features.dtype == np.float32
    assert features[:, 0].tolist() == (expected + offset).tolist()
    assert features[:, 1].tolist() == (stored + offset).tolist()
    assert labels.tolist() == stored.tolist()
    assert labels.dtype == np.int64


def test_rows_come_a_row_block_at_a_time(store: FeatureStore) -> None:
    parts = list(SettingData(store, KEY).in_order({"train": np.arange(10, N)}, plain(4)))
    assert [len(labels) for _, labels in parts] == [54, 64, 64, 64, 44]


def test_all_at_once_is_the_same_in_double_precision(make_store: MakeStore) -> None:
    key = FeatureKey(2, 10, 4)
    store = make_store({"train": N, "val": 100}, [key])
    data, rows = SettingData(store, key), some_rows()
    moments = data.moments(rows)
    features, labels = data.load(rows, moments)
    pairs = {split: store.xy(key, split) for split in rows}
    values = np.concatenate([pairs[split][0][rows[split]] for split in rows]).astype(np.float64)
    assert features.dtype == np.float64
    assert np.array_equal(features, (values - moments.mean) / moments.scale)
    assert labels.tolist() == np.concatenate([pairs[split][1][rows[split]] for split in rows]).tolist()
    assert data.dimension == features.shape[1] == 128
    streamed = collect(data.in_order(rows, moments))
    np.testing.assert_allclose(streamed[0], features, atol=1e-5)
    assert streamed[1].tolist() == labels.tolist()


def test_rows_that_do_not_fit_in_memory_at_once_are_refused_with_the_way_out(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"train": np.arange(N)}
    bytes_needed = 2 * 8 * N * 4
    pages = {"SC_PHYS_PAGES": bytes_needed, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert len(SettingData(store, KEY).load(rows, plain(4))[0]) == N
    pages["SC_PHYS_PAGES"] -= 1
    with pytest.raises(ProbeError, match=r"block 1, timestep 10, pool 1: .*--head linear.*--limit"):
        SettingData(store, KEY).load(rows, plain(4))


# Batches


def batches(
    store: FeatureStore, rows: RowSet, size: int, count: int, memory: int = 1 << 30, seed: int = 0
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    data = SettingData(store, KEY, memory)
    return list(islice(data.shuffled(rows, plain(4), size, np.random.default_rng(seed)), count))


def row_numbers(drawn: list[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> list[int]:
    return [int(number) for features, _ in drawn for number in features[:, 0]]


@pytest.mark.parametrize("buffer", [1, 100 * 16, 1 << 28], ids=["a block", "a few", "everything"])
@pytest.mark.parametrize("size", [1, 7, 32, 60, 128])
def test_every_epoch_visits_every_row_once(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, size: int, buffer: int
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", buffer)
    rows = some_rows()
    epoch = [int(row) + (1000 if split == "val" else 0) for split, numbers in rows.items() for row in numbers]
    epochs = 4
    drawn = batches(store, rows, size, -(-epochs * len(epoch) // size))
    assert all(len(features) == len(labels) == size for features, labels in drawn)
    numbers = row_numbers(drawn)
    seen = [numbers[i * len(epoch) : (i + 1) * len(epoch)] for i in range(epochs)]
    for one in seen:
        assert sorted(one) == sorted(epoch)
        assert one != sorted(one)
    assert len({tuple(one) for one in seen}) == epochs


def test_labels_stay_with_their_rows(store: FeatureStore) -> None:
    for features, labels in batches(store, {"train": np.arange(N)}, 32, 30):
        assert features[:, 1].tolist() == labels.tolist()
        assert (labels == store.labels("train")[features[:, 0].astype(int)]).all()


def test_rows_of_different_blocks_are_mixed(store: FeatureStore) -> None:
    counts = [
        len({int(row) // 64 for row in features[:, 0]}) for features, _ in batches(store, {"train": np.arange(N)}, 32, 20)
    ]
    assert min(counts) >= 3


def test_row_blocks_come_in_a_new_order_every_epoch(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 1)
    rows = row_numbers(batches(store, {"train": np.arange(256)}, 64, 20))
    orders = [tuple(row // 64 for row in rows[epoch * 256 : (epoch + 1) * 256 : 64]) for epoch in range(5)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 1


def test_batches_are_standardised(make_store: MakeStore) -> None:
    store = make_store({"train": N}, separation=0.0)
    data, rows = SettingData(store, KEY), {"train": np.arange(N)}
    moments = data.moments(rows)
    features = next(data.shuffled(rows, moments, N, np.random.default_rng(0)))[0]
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("memory", [0, 64 * 16, 3 * 64 * 16])
def test_batches_do_not_depend_on_what_is_kept_in_memory(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 100 * 16)
    for (features, labels), (others, own) in zip(
        batches(store, some_rows(), 32, 40), batches(store, some_rows(), 32, 40, memory), strict=True
    ):
        assert np.array_equal(features, others)
        assert np.array_equal(labels, own)


def test_batches_depend_on_the_generator(store: FeatureStore) -> None:
    rows = some_rows()
    one, same, other = (row_numbers(batches(store, rows, 32, 10, seed=seed)) for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize("size", [20, 21, 1000])
def test_a_batch_has_all_rows_if_they_are_fewer(store: FeatureStore, size: int) -> None:
    rows = {"train": np.arange(100, 120)}
    for features, _ in batches(store, rows, size, 5):
        assert sorted(features[:, 0]) == list(range(100, 120))


# Memory


def test_what_fits_in_memory_is_read_once(store: FeatureStore, reads: list[tuple[str, slice]]) -> None:
    data, rows = SettingData(store, KEY), {"train": np.arange(N)}
    moments = data.moments(rows)
    collect(data.in_order(rows, moments))
    list(islice(data.shuffled(rows, moments, 64, np.random.default_rng(0)), 30))
    assert sorted(rows.start for _, rows in reads) == [0, 64, 128, 192, 256]


def test_no_more_is_kept_than_memory_allows(store: FeatureStore, reads: list[tuple[str, slice]]) -> None:
    data, rows = SettingData(store, KEY, memory=2 * 64 * 16), {"train": np.arange(N)}
    collect(data.in_order(rows, plain(4)))
    reads.clear()
    collect(data.in_order(rows, plain(4)))
    assert Counter(split for split, _ in reads) == {"train": 3}


def test_memory_for_all_rows_keeps_them_in_whatever_parts_they_are_asked_for(
    store: FeatureStore, reads: list[tuple[str, slice]]
) -> None:
    data = SettingData(store, KEY, memory=N * 16)
    last_of_blocks = np.array([63, 127, 191, 255, 299])
    collect(data.in_order({"train": np.setdiff1d(np.arange(N), last_of_blocks)}, plain(4)))
    collect(data.in_order({"train": last_of_blocks}, plain(4)))
    reads.clear()
    collect(data.in_order({"train": np.arange(N)}, plain(4)))
    assert reads == []


def test_memory_does_not_grow_with_the_rows(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = 256
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 512 * 4 * channels)

    def peak(n: int) -> int:
        store = make_store({"train": n}, channels=channels, name=f"{n}.zarr", row_block=128)
        store.labels("train")
        data, rows = SettingData(store, KEY, memory=0), {"train": np.arange(n)}
        tracemalloc.start()
        moments = data.moments(rows)
        for _ in data.in_order(rows, moments):
            pass
        for _ in islice(data.shuffled(rows, moments, 64, np.random.default_rng(0)), 2 * n // 64):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = peak(1024), peak(10240)
    assert many < 10240 * channels * 2  # less than the features as they are stored
    assert many < 1.25 * few
