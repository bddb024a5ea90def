"""What older results do not say about their settings, from the stores they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..probe.inputs import FitInput, input_fields
from ..store import FeatureStore
from .table import NoResults
from .test_set import settings_of


def add_costs(results: Sequence[Mapping[str, Any]], stores: Sequence[Path | str]) -> list[Mapping[str, Any]]:
    """Results with ``gflop``, ``bytes`` and ``log_snr`` of their settings, from the store with the same features.

    Results that have them, or whose store is not given, stay as they are.

    Raises:
        NoResults: a store is of none of the results.
        DiffsslError: a store cannot be read.
    """
    by_features = {store.feature_id: store for store in map(FeatureStore.open, stores)}
    strange = [store.path for name, store in by_features.items() if all(r["feature_id"] != name for r in results)]
    if strange:
        raise NoResults(f"{', '.join(strange)}: none of the results is of these features; give the store that was probed")
    found: list[Mapping[str, Any]] = []
    for r in results:
        store = by_features.get(r["feature_id"])
        if store is not None and not {"gflop", "bytes", "log_snr"} <= r.keys():
            r = {**r, **input_fields(store, _input(r))}
        found.append(r)
    return found


def _input(line: Mapping[str, Any]) -> FitInput:
    """What a fit read, from its result."""
    copies = line["specification"].get("copies")
    if copies is not None:
        copies = {split: tuple((draw, crop) for draw, crop in own) for split, own in copies.items()}
    return FitInput(tuple(settings_of(line)), copies)
