"""Batches for loops outside: every row once, aligned, in an order of the seed and the epoch."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffssl.probe.loader
import numpy as np
import pytest
import torch
from diffssl.probe import FeatureLoader
from diffssl.store import FeatureKey, FeatureStore, IncompleteFeatures, UnknownFeatures
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]

DOCS = Path(__file__).parents[2] / "docs" / "heads.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)

KEYS = [FeatureKey(1, 10, 1), FeatureKey(2, 90, 2)]


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    """Features that say whose they are: 200 rows in blocks of 64."""

    def features(key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[np.float64]:
        side = key.pool if isinstance(key.pool, int) else 1
        return np.broadcast_to(np.arange(len(labels))[:, None, None, None] + 1000 * key.block, (len(labels), 8, side, side))

    return make_store({"train": 200, "test": 50}, KEYS, features=features, dtype="float32")


@pytest.fixture(params=["one buffer", "a row block a buffer"])
def buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one buffer":
        monkeypatch.setattr(diffssl.probe.loader, "_BUFFER_BYTES", 1)


def rows(loader: FeatureLoader) -> list[int]:
    return torch.cat([batch.rows for batch in loader]).tolist()


@pytest.mark.usefixtures("buffers")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 32, 60, 200, 256])
def test_an_epoch_visits_every_row_once_and_settings_are_aligned(store: FeatureStore, shuffle: bool, batch_size: int) -> None:
    loader = FeatureLoader(store, KEYS, "train", batch_size, shuffle=shuffle)
    labels = store.labels("train")
    seen: list[int] = []
    batches = list(loader)
    for batch in batches:
        numbers = batch.rows.tolist()
        assert [tuple(values.shape[1:]) for values in batch.features] == [(8, 1, 1), (8, 2, 2)]
        for key, values in zip(KEYS, batch.features, strict=True):
            assert values.dtype == torch.float32
            assert (values == (batch.rows + 1000.0 * key.block).view(-1, 1, 1, 1)).all()
        assert batch.labels.tolist() == labels[numbers].tolist()
        seen += numbers
    assert sorted(seen) == list(range(200))
    assert (seen == list(range(200))) == (not shuffle)
    assert [len(batch.rows) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches[-1].rows) == 200 - batch_size * (len(batches) - 1) > 0
    assert len(loader) == len(batches)


def test_features_are_those_of_the_store_as_single_precision(make_store: MakeStore) -> None:
    store = make_store({"train": 70}, KEYS)
    (batch,) = FeatureLoader(store, KEYS, "train", 70, shuffle=False)
    for key, values in zip(KEYS, batch.features, strict=True):
        assert values.dtype == torch.float32
        np.testing.assert_array_equal(values.numpy(), store.read(key, "train").astype(np.float32))


@pytest.mark.usefixtures("buffers")
def test_the_order_is_a_function_of_seed_and_epoch(store: FeatureStore) -> None:
    loader = FeatureLoader(store, KEYS, "train", seed=3)
    orders = [rows(loader) for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    same = FeatureLoader(store, KEYS, "train", seed=3)
    next(iter(same))  # an epoch that was not finished is an epoch
    assert rows(same) == orders[1]
    assert rows(FeatureLoader(store, KEYS, "train", seed=4)) not in orders


def test_torchs_global_generator_is_not_used(store: FeatureStore) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = rows(FeatureLoader(store, KEYS, "train"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert rows(FeatureLoader(store, KEYS, "train")) == one


def test_it_is_a_good_shuffle_with_one_buffer(store: FeatureStore) -> None:
    """Where a row comes says nothing of where it is on disk."""
    order = rows(FeatureLoader(store, KEYS, "train"))
    assert abs(np.corrcoef(order, range(200))[0, 1]) < 0.25


@pytest.mark.usefixtures("buffers")
def test_left_out_rows_do_not_come(make_store: MakeStore) -> None:
    names = [f"c{number % 2}/{number}.png" for number in range(150)]
    left_out = {KEYS[0]: names[:3], KEYS[1]: names[2:5]}
    store = make_store({"train": names}, KEYS, left_out=left_out)
    loader = FeatureLoader(store, KEYS, "train", 29)
    seen = rows(loader)
    assert sorted(store.ids("train")[seen]) == sorted(names[5:])
    assert len(loader) == 5  # 145 rows
    assert len(rows(FeatureLoader(store, KEYS[:1], "train"))) == 147


def test_a_whole_block_of_left_out_rows(make_store: MakeStore) -> None:
    names = [f"c0/{number}.png" for number in range(10)]
    store = make_store({"train": names}, KEYS, row_block=4)
    bad = store.ids("train")[:4].tolist()
    store = make_store({"train": names}, KEYS, row_block=4, left_out=dict.fromkeys(KEYS, bad), name="bad.zarr")
    loader = FeatureLoader(store, KEYS, "train", 3)
    assert sorted(rows(loader)) == [4, 5, 6, 7, 8, 9]
    assert len(loader) == 2


@pytest.mark.parametrize(("wanted", "there"), [(100, 100), (64, 64), (1000, 200), (None, 200)])
def test_the_first_rows_only(store: FeatureStore, wanted: int | None, there: int) -> None:
    loader = FeatureLoader(store, KEYS, "train", 32, rows=wanted)
    assert sorted(rows(loader)) == list(range(there))
    assert len(loader) == -(-there // 32)


def test_what_was_not_extracted_is_said_at_once(make_store: MakeStore) -> None:
    store = make_store({"train": 200}, KEYS, only_blocks=[0, 1])
    with pytest.raises(IncompleteFeatures):
        FeatureLoader(store, KEYS, "train")
    assert len(rows(FeatureLoader(store, KEYS, "train", rows=128))) == 128
    with pytest.raises(UnknownFeatures):
        FeatureLoader(store, [FeatureKey(3, 10, 1)], "train", rows=10)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        FeatureLoader(store, KEYS, "train", 0)
    limited = make_store({"train": 200}, KEYS, limit=100, name="pilot.zarr")
    assert sorted(rows(FeatureLoader(limited, KEYS, "train"))) == list(range(100))


def test_memory_does_not_grow_with_the_rows(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, key = 256, FeatureKey(1, 10, 1)
    monkeypatch.setattr(diffssl.probe.loader, "_BUFFER_BYTES", 512 * 2 * channels)

    def peak(n: int) -> int:
        store = make_store({"train": n}, [key], channels=channels, name=f"{n}.zarr", row_block=256)
        loader = FeatureLoader(store, [key], "train", 100)
        tracemalloc.start()
        count = sum(len(batch.rows) for _ in range(2) for batch in loader)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 2 * n
        return used

    few, many = peak(1024), peak(8192)
    assert many - few < 0.2 * (8192 - 1024) * channels * 2


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, diffssl.probe; assert 'torch' not in sys.modules; from diffssl.probe import FeatureLoader"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'Loader'"):
        _ = diffssl.probe.Loader


def test_the_example_of_the_docs(make_maps: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop learns, for as many epochs as it says."""
    (example,) = (source for source in EXAMPLES if "FeatureLoader(" in source)
    make_maps([FeatureKey(24, 90, 2), FeatureKey(19, 90, 2)], sizes=(4,) * 24)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCS), "exec"), names)
    assert names["right"] / names["seen"] > 0.6
    assert names["seen"] == 120
