"""ProbeData: moments, batches, order and copies against numpy, and memory that stays bounded."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import diffssl.probe.data
import numpy as np
import pytest
import torch
from diffssl.probe import ProbeError
from diffssl.probe.data import Batches, Buffer, Copy, Moments, ProbeData
from diffssl.probe.targets import Targets, store_targets
from diffssl.store import FeatureKey, FeatureStore, IncompleteFeatures
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]
RowSet = Mapping[str, NDArray[np.int64]]
Pairs = Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]

CPU = torch.device("cpu")
KEY = FeatureKey(1, 10, 1)
COPIES = [(0, 0), (1, 0), (0, 1)]  # (draw, crop)
ALL = 1 << 30  # memory for everything
N = 300  # four row blocks of 64 and one of 44


def numbered(_key: FeatureKey, split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
    """The number of the row, and what its label is: so that any mix-up shows."""
    rows = np.arange(len(labels), dtype=np.float64)
    values = np.stack([rows, labels, -rows, np.full(len(labels), 7.0)], axis=1)
    return values.reshape(-1, 4, 1, 1) + (1000 if split == "val" else 0)


def copied(key: FeatureKey, split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
    """The same, with which copy it is in place of the constant."""
    values = numbered(key, split, labels)
    values[:, 3] = 10 * key.draw + key.crop
    return values


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store({"train": N, "val": 100}, features=numbered, channels=4, dtype="float32")


@pytest.fixture
def copies(make_store: MakeStore) -> FeatureStore:
    """A store of draws and crops; val has no crops."""
    keys = [FeatureKey(1, 10, 1, draw, crop) for draw, crop in COPIES]
    make_store({"val": 100}, keys[:2], features=copied, channels=4, dtype="float32")
    return make_store({"train": N}, keys, features=copied, channels=4, dtype="float32")


def data_of(
    store: FeatureStore,
    keys: Sequence[FeatureKey] = (KEY,),
    memory: int = ALL,
    copies: Mapping[str, Sequence[Copy]] | None = None,
) -> ProbeData:
    return ProbeData(store, keys, store_targets(store, store.splits), copies, memory)


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


def collect(batches: Pairs) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
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
    moments = data_of(store, [key], memory).moments(rows)
    values = np.concatenate([store.read(key, split)[rows[split]] for split in rows]).reshape(-1, 20).astype(np.float64)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moments.scale, values.std(axis=0), rtol=1e-12)
    assert moments.mean.dtype == moments.scale.dtype == np.float64


def test_moments_of_float16_do_not_overflow(make_store: MakeStore) -> None:
    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        return 6e4 + 1e3 * np.random.default_rng(0).normal(size=(len(labels), 3, 1, 1))

    store = make_store({"train": N}, features=features, channels=3)
    moments = data_of(store).moments({"train": np.arange(N)})
    values = store.xy(KEY, "train")[0].astype(np.float64)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.scale, values.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 6e4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_constant_feature_is_not_divided_by_its_deviation(make_store: MakeStore, value: float, dtype: str) -> None:
    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        return np.full((len(labels), 2, 1, 1), value)

    store = make_store({"train": N}, features=features, channels=2, dtype=dtype)
    data = data_of(store)
    rows = {"train": np.arange(N)}
    moments = data.moments(rows)
    assert moments.scale.tolist() == [1, 1]
    assert not data.load(rows, moments)[0].any()


# Order


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_rows_and_labels_come_aligned_and_in_order(store: FeatureStore, memory: int) -> None:
    rows = some_rows()
    features, labels = collect(data_of(store, memory=memory).in_order(rows, Moments.none(4)))
    expected = np.concatenate([rows["train"], rows["val"]])
    stored = np.concatenate([store.labels(split)[rows[split]] for split in rows])
    offset = np.repeat([0, 1000], [len(rows["train"]), len(rows["val"])])
    assert features.dtype == np.float32
    assert features[:, 0].tolist() == (expected + offset).tolist()
    assert features[:, 1].tolist() == (stored + offset).tolist()
    assert labels.tolist() == stored.tolist()
    assert labels.dtype == np.int64


def test_rows_come_a_row_block_at_a_time(store: FeatureStore) -> None:
    parts = list(data_of(store).in_order({"train": np.arange(10, N)}, Moments.none(4)))
    assert [len(labels) for _, labels in parts] == [54, 64, 64, 64, 44]


def test_all_at_once_is_the_same_in_double_precision(make_store: MakeStore) -> None:
    key = FeatureKey(2, 10, 4)
    store = make_store({"train": N, "val": 100}, [key])
    data, rows = data_of(store, [key]), some_rows()
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
    bytes_needed = 2 * 2 * 8 * N * 4  # twice in float64, in half of the memory
    pages = {"SC_PHYS_PAGES": bytes_needed, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert len(data_of(store).load(rows, Moments.none(4))[0]) == N
    pages["SC_PHYS_PAGES"] -= 1
    with pytest.raises(ProbeError, match=r"block 1, timestep 10, pool 1: .*a head that streams, such as linear.*--limit"):
        data_of(store).load(rows, Moments.none(4))


# Batches


def cut(buffers: Iterator[Buffer], size: int, seed: int = 0) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """Batches out of buffers, as a trainer cuts them."""
    batches = Batches(size, np.random.default_rng([seed, 1]))
    for buffer in buffers:
        for features, targets in batches.cut(buffer):
            yield features.numpy(), targets.numpy()


def endless(data: ProbeData, rows: RowSet, size: int, seed: int = 0) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    return cut(data.buffers(rows, Moments.none(data.dimension), np.random.default_rng(seed), CPU), size, seed)


def batches(
    store: FeatureStore, rows: RowSet, size: int, count: int, memory: int = ALL, seed: int = 0
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    return list(islice(endless(data_of(store, memory=memory), rows, size, seed), count))


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
    data, rows = data_of(store), {"train": np.arange(N)}
    moments = data.moments(rows)
    features = next(cut(data.buffers(rows, moments, np.random.default_rng(0), CPU), N))[0]
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize("memory", [0, ALL])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("standardised", [True, False])
def test_batches_are_bit_for_bit_what_numpy_makes_of_whole_arrays(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, memory: int, dtype: str, standardised: bool
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 100 * 4 * 33)

    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        values = np.random.default_rng(0).lognormal(1.0, 2.0, size=(len(labels), 33, 1, 1))
        values[:, 0, 0, 0] = np.arange(len(labels))
        return values

    store = make_store({"train": N}, features=features, channels=33, dtype=dtype)
    data, rows = data_of(store, memory=memory), {"train": np.arange(N)}
    moments = data.moments(rows) if standardised else Moments.none(33)
    whole = store.xy(KEY, "train")[0].astype(np.float32)
    expected = (whole - moments.mean.astype(np.float32)) / moments.scale.astype(np.float32)
    place = {tuple(row): i for i, row in enumerate(expected)}
    seen = []
    for values, labels in islice(cut(data.buffers(rows, moments, np.random.default_rng(0), CPU), 32), 40):
        assert values.dtype == np.float32
        numbers = [place[tuple(row)] for row in values]
        assert labels.tolist() == store.labels("train")[numbers].tolist()
        seen += numbers
    assert sorted(seen[:N]) == list(range(N))


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


@pytest.mark.parametrize("size", [20, 21, 50])
@pytest.mark.parametrize("memory", [0, ALL])
def test_a_batch_is_full_even_if_an_epoch_is_shorter(store: FeatureStore, size: int, memory: int) -> None:
    rows = {"train": np.arange(100, 120)}
    drawn = batches(store, rows, size, 6, memory)
    assert {len(features) for features, _ in drawn} == {size}
    numbers = row_numbers(drawn)
    for epoch in range(len(numbers) // 20):
        assert sorted(numbers[epoch * 20 : (epoch + 1) * 20]) == list(range(100, 120))


def test_two_who_cut_the_same_buffers_have_orders_of_their_own(store: FeatureStore) -> None:
    buffers = data_of(store).buffers({"train": np.arange(N)}, Moments.none(4), np.random.default_rng(0), CPU)
    shared = list(islice(buffers, 2))
    one, same, other = (row_numbers(list(cut(iter(shared), 30, seed))) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert sorted(one) == sorted(other)


# Several settings


TWO = [FeatureKey(1, 10, 2), FeatureKey(2, 10, 4), FeatureKey(3, 10, 1)]


@pytest.mark.parametrize("memory", [0, ALL])
def test_settings_stand_side_by_side_in_their_order(make_store: MakeStore, memory: int) -> None:
    store, rows = make_store({"train": N, "val": 100}, TWO), some_rows()
    for keys in (TWO, TWO[::-1]):
        data = data_of(store, keys, memory)
        arrays = {split: np.hstack([store.xy(key, split)[0] for key in keys]) for split in rows}
        expected = np.concatenate([arrays[split][rows[split]] for split in rows])
        assert data.shapes == [store.layout(key, "train").row_shape for key in keys]
        assert data.dimension == expected.shape[1] == 32 + 128 + 8
        assert np.array_equal(collect(data.in_order(rows, Moments.none(168)))[0], expected)
        assert np.array_equal(data.load(rows, Moments.none(168))[0], expected)
        np.testing.assert_allclose(data.moments(rows).mean, expected.mean(axis=0, dtype=np.float64), atol=1e-12)
        count = len(expected)
        drawn, labels = next(endless(data, rows, count))
        order = np.lexsort(drawn.T)
        assert np.array_equal(drawn[order], expected[np.lexsort(expected.T)])
        found = {tuple(row): label for row, label in zip(expected, data.load(rows, Moments.none(168))[1], strict=True)}
        assert [found[tuple(row)] for row in drawn] == labels.tolist()


def test_settings_are_named(make_store: MakeStore) -> None:
    assert str(data_of(make_store({"train": 70}, TWO), TWO[:2])) == f"{TWO[0]}; {TWO[1]}"


# Answers


@pytest.mark.parametrize("memory", [0, ALL])
def test_several_answers_a_row_stay_with_their_row(store: FeatureStore, memory: int) -> None:
    answers = {
        split: np.stack([np.arange(n), -np.arange(n)], axis=1).astype(np.float32) for split, n in (("train", N), ("val", 100))
    }
    answers["train"][7, 1] = np.nan
    data = ProbeData(store, [KEY], Targets("regress", ["a", "b"], answers), memory=memory)
    rows = some_rows()
    expected = np.concatenate([answers[split][rows[split]] for split in rows])
    for _, targets in (collect(data.in_order(rows, Moments.none(4))), data.load(rows, Moments.none(4))):
        assert targets.dtype == np.float32
        assert np.array_equal(targets, expected, equal_nan=True)
    for features, targets in islice(endless(data, rows, 32), 12):
        numbers = np.where(features[:, 0] >= 1000, features[:, 0] - 1000, features[:, 0])
        assert targets.shape == (32, 2)
        assert np.array_equal(targets[:, 0], numbers)


# Copies


BY_SPLIT = {"train": COPIES, "val": COPIES[:2]}
CODES = {(draw, crop): 10 * draw + crop for draw, crop in COPIES}


def test_moments_are_those_of_all_copies(copies: FeatureStore) -> None:
    rows = some_rows()
    moments = data_of(copies, copies=BY_SPLIT).moments(rows)
    values = [
        copies.read(FeatureKey(1, 10, 1, draw, crop), split)[rows[split]].reshape(-1, 4)
        for split, own in BY_SPLIT.items()
        for draw, crop in own
    ]
    everything = np.concatenate(values).astype(np.float64)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.scale, everything.std(axis=0), rtol=1e-12)


def test_without_copies_the_setting_itself_is_read(copies: FeatureStore) -> None:
    data = data_of(copies, [FeatureKey(1, 10, 1, 1, 0)])
    assert data.copies("train") == [None]
    features = collect(data.in_order({"train": np.arange(N)}, Moments.none(4)))[0]
    assert set(features[:, 3]) == {10.0}


@pytest.mark.parametrize("copy", [None, *COPIES])
def test_rows_come_in_order_of_the_copy_that_is_asked_for(copies: FeatureStore, copy: Copy | None) -> None:
    features, labels = collect(data_of(copies, copies=BY_SPLIT).in_order({"train": np.arange(N)}, Moments.none(4), copy))
    assert features[:, 0].tolist() == list(range(N))
    assert labels.tolist() == copies.labels("train").tolist()
    assert set(features[:, 3]) == {CODES[copy or COPIES[0]]}


def test_all_copies_of_every_row_come_if_they_are_asked_for(copies: FeatureStore) -> None:
    data, rows = data_of(copies, copies=BY_SPLIT), some_rows()
    expected = sorted(
        (int(row) + (1000 if split == "val" else 0), code)
        for split, own in BY_SPLIT.items()
        for row in rows[split]
        for code in (CODES[copy] for copy in own)
    )
    features, labels = data.load(rows, Moments.none(4), every=True)
    streamed, own_labels = collect(data.in_order(rows, Moments.none(4), every=True))
    for values, own in ((features, labels), (streamed, own_labels)):
        assert sorted((int(row[0]), int(row[3])) for row in values) == expected
        assert (values[:, 1] % 1000).tolist() == own.tolist()
    assert len(data.load(rows, Moments.none(4))[0]) == sum(map(len, rows.values()))


def test_memory_for_all_copies_is_reckoned_with(copies: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": np.arange(N)}
    pages = {"SC_PHYS_PAGES": 2 * 2 * 8 * N * 4 * len(COPIES) - 1, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(ProbeError, match="do not fit in memory at once"):
        data_of(copies, copies=BY_SPLIT).load(rows, Moments.none(4), every=True)
    pages["SC_PHYS_PAGES"] += 1
    assert len(data_of(copies, copies=BY_SPLIT).load(rows, Moments.none(4), every=True)[0]) == N * len(COPIES)


@pytest.mark.parametrize("buffer", [1, 100 * 16, 1 << 28], ids=["a block", "a few", "everything"])
@pytest.mark.parametrize("memory", [0, ALL])
def test_copies_take_turns_by_row_block_and_epoch(
    copies: FeatureStore, monkeypatch: pytest.MonkeyPatch, memory: int, buffer: int
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", buffer)
    drawn = list(islice(endless(data_of(copies, memory=memory, copies=BY_SPLIT), {"train": np.arange(N)}, N), 6))
    seen: dict[tuple[int, int], set[int]] = {}
    for epoch, (features, labels) in enumerate(drawn):
        assert sorted(features[:, 0]) == list(range(N))
        assert features[:, 1].tolist() == labels.tolist()
        for row, code in features[:, [0, 3]].astype(int):
            seen.setdefault((row // 64, epoch), set()).add(code)
    assert all(len(codes) == 1 for codes in seen.values())  # all rows of a row block together
    turns = [[seen[block, epoch].pop() for epoch in range(6)] for block in range(5)]
    for turn in turns:
        assert sorted(turn[:3]) == sorted(turn[3:]) == sorted(CODES.values())
        assert turn[:3] == turn[3:]
    for epoch in range(6):
        assert {turn[epoch] for turn in turns} == set(CODES.values())  # an epoch sees all of them


@pytest.mark.parametrize("memory", [0, 64 * 16, 5 * 64 * 16])
def test_batches_of_copies_do_not_depend_on_what_is_kept_in_memory(
    copies: FeatureStore, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 100 * 16)
    one, other = (
        list(islice(endless(data_of(copies, memory=own, copies=BY_SPLIT), some_rows(), 32), 40)) for own in (ALL, memory)
    )
    for (features, labels), (others, own) in zip(one, other, strict=True):
        assert np.array_equal(features, others)
        assert np.array_equal(labels, own)


# Memory


def test_what_fits_in_memory_is_read_once(store: FeatureStore, reads: list[tuple[str, slice]]) -> None:
    data, rows = data_of(store), {"train": np.arange(N)}
    moments = data.moments(rows)
    collect(data.in_order(rows, moments))
    list(islice(cut(data.buffers(rows, moments, np.random.default_rng(0), CPU), 64), 30))
    assert sorted(rows.start for _, rows in reads) == [0, 64, 128, 192, 256]


def test_no_more_is_kept_than_memory_allows(store: FeatureStore, reads: list[tuple[str, slice]]) -> None:
    data, rows = data_of(store, memory=2 * 64 * 16), {"train": np.arange(N)}
    collect(data.in_order(rows, Moments.none(4)))
    reads.clear()
    collect(data.in_order(rows, Moments.none(4)))
    assert Counter(split for split, _ in reads) == {"train": 3}


def test_memory_for_all_rows_keeps_them_in_whatever_parts_they_are_asked_for(
    store: FeatureStore, reads: list[tuple[str, slice]]
) -> None:
    data = data_of(store, memory=N * 16)
    last_of_blocks = np.array([63, 127, 191, 255, 299])
    collect(data.in_order({"train": np.setdiff1d(np.arange(N), last_of_blocks)}, Moments.none(4)))
    collect(data.in_order({"train": last_of_blocks}, Moments.none(4)))
    reads.clear()
    collect(data.in_order({"train": np.arange(N)}, Moments.none(4)))
    assert reads == []


def test_rows_that_fit_lie_on_the_device_once(store: FeatureStore) -> None:
    """And others in two memories that take turns, of which one is filled while the other is used."""
    rows, places = {"train": np.arange(N)}, []
    resident, streamed = (
        data_of(store, memory=memory).buffers(rows, Moments.none(4), np.random.default_rng(0), CPU)
        for memory in (N * 16, N * 16 - 1)
    )
    for _ in range(4):
        one, other = next(resident), next(streamed)
        places.append((one.features.data_ptr(), other.features.data_ptr()))
        for own, same in zip(one.rows(one.index), other.rows(other.index), strict=True):
            assert torch.equal(own, same)
    assert len({place for place, _ in places}) == 1
    assert [place for _, place in places[:2]] == [place for _, place in places[2:]]
    assert len({place for _, place in places}) == 2


# Reading ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("diffssl-read")]


def test_the_next_buffer_is_read_meanwhile_and_no_more(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[str, slice]]
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 1)
    data, rows = data_of(store, memory=0), {"train": np.arange(N)}
    streams: tuple[Any, ...] = (
        data.buffers(rows, Moments.none(4), np.random.default_rng(0), CPU),
        data.in_order(rows, Moments.none(4)),
    )
    for stream in streams:
        reads.clear()
        next(stream)
        deadline = time.monotonic() + 10
        while len(reads) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(reads) == 2
        stream.close()
        assert readers() == []


@pytest.mark.parametrize("memory", [0, ALL])
def test_what_goes_wrong_in_reading_is_raised(make_store: MakeStore, memory: int) -> None:
    data = data_of(make_store({"train": N}, only_blocks=[0, 1, 2]), memory=memory)
    rows = {"train": np.arange(N)}
    with pytest.raises(IncompleteFeatures):
        list(data.in_order(rows, Moments.none(8)))
    with pytest.raises(IncompleteFeatures):
        list(islice(data.buffers(rows, Moments.none(8), np.random.default_rng(0), CPU), 9))
    assert readers() == []


def test_memory_does_not_grow_with_the_rows(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = 256
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 512 * 4 * channels)

    def peak(n: int) -> float:
        """In buffers."""
        store = make_store({"train": n}, channels=channels, name=f"{n}.zarr", row_block=128)
        data, rows = data_of(store, memory=0), {"train": np.arange(n)}
        tracemalloc.start()
        moments = data.moments(rows)
        for _ in data.in_order(rows, moments):
            pass
        for _ in islice(cut(data.buffers(rows, moments, np.random.default_rng(0), CPU), 64), 2 * n // 64):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used / (512 * 2 * channels)

    few, many = peak(1024), peak(10240)
    assert few > 2
    assert many < 4.5  # one in use, one ready, and the next in parts and as a whole; the features as stored are 20
