"""What older results do not say, from the store they are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffssl.analysis.costs import add_costs
from diffssl.analysis.table import NoResults
from diffssl.probe import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]
NEW = ("gflop", "bytes", "log_snr")


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store({"train": 100, "test": 60}, [FeatureKey(b, 10, 1, draw) for b in (1, 2) for draw in (0, 1)])


@pytest.mark.parametrize("options", [{}, {"concat": True}, {"mix_copies": True}], ids=str)
def test_old_lines_get_what_new_ones_have(store: FeatureStore, options: dict[str, Any]) -> None:
    results = probe(ProbeSpec(Path(store.path), ["linear"], steps=2, device="cpu", **options), lambda _: None)
    assert all(set(NEW) <= set(line) for line in results)
    old = [{name: value for name, value in line.items() if name not in NEW} for line in results]
    assert add_costs(old, [store.path]) == results
    assert add_costs(results, [store.path]) == results
    assert add_costs(old, []) == old


def test_a_store_of_other_features_is_refused(store: FeatureStore, make_store: MakeStore) -> None:
    results = probe(ProbeSpec(Path(store.path), ["linear"], steps=2, device="cpu"), lambda _: None)
    other = make_store({"train": 100, "test": 60}, name="other.zarr", seed=1)
    with pytest.raises(NoResults, match=r"other\.zarr: none of the results"):
        add_costs(results, [store.path, other.path])
