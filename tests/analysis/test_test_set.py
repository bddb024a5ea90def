"""The test rows of a result, found again in a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffssl.analysis.test_set import OtherRows, find_test_set
from diffssl.probe import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]
KEYS = [FeatureKey(block, 10, 1) for block in (1, 2)]


def probed(store: FeatureStore, **options: Any) -> list[dict[str, Any]]:
    return probe(ProbeSpec(Path(store.path), ["linear"], steps=2, device="cpu", **options), lambda _: None)


@pytest.mark.parametrize(
    ("rows", "options", "split", "n"),
    [
        ({"train": 100, "test": 60}, {}, "test", 60),
        ({"train": 100, "test": 60}, {"limit": 50}, "test", 50),
        ({"train": 100, "val": 60}, {}, "val", 60),
        ({"train": 100, "val": 40, "test": 60}, {}, "test", 60),
        ({"all": 150}, {}, "all", None),
        ({"all": 150}, {"limit": 120}, "all", None),
        ({"train": 100, "test": 60}, {"concat": True}, "test", 60),
    ],
    ids=str,
)
def test_rows_are_found_whatever_the_splits_and_limit(
    make_store: MakeStore, rows: dict[str, int], options: dict[str, Any], split: str, n: int | None
) -> None:
    store = make_store(rows, KEYS)
    result = probed(store, **options)[0]
    found = find_test_set(result, store)
    assert found.split == split
    assert len(found.rows) == len(found.labels) == len(found.ids) == (n or result["n_test"])
    assert found.ids.tolist() == store.ids(split)[found.rows].tolist()
    assert found.labels.tolist() == store.labels(split)[found.rows].tolist()


def test_rows_that_any_setting_of_the_run_lacks_are_left_out(make_store: MakeStore) -> None:
    bad = "c01/test-00001.png"
    store = make_store({"train": 100, "test": 60}, KEYS, left_out={KEYS[0]: [bad]})
    for result in probed(store):  # also that of the setting that has the row
        found = find_test_set(result, store)
        assert len(found.rows) == 59
        assert bad not in found.ids.tolist()
    (alone,) = probed(store, blocks={2: set()})
    assert bad in find_test_set(alone, store).ids.tolist()


def test_another_store_of_the_same_samples_will_do(make_store: MakeStore) -> None:
    (result, *_) = probed(make_store({"train": 100, "test": 60}, KEYS))
    other = make_store({"train": 100, "test": 60}, [FeatureKey(3, None, 1)], name="other.zarr")
    assert len(find_test_set(result, other).rows) == 60


def test_a_store_of_other_rows_is_refused(make_store: MakeStore) -> None:
    (result, *_) = probed(make_store({"train": 100, "test": 60}, KEYS))
    other = make_store({"train": 100, "test": 50}, KEYS, name="other.zarr")
    with pytest.raises(OtherRows, match="does not have the 60 test rows of linear on b1/p1/t10"):
        find_test_set(result, other)
    with pytest.raises(OtherRows, match="probe it again"):
        find_test_set({**result, "test_rows": None}, other)
