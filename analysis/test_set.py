"""The test rows of a result, found again in a store: which they are, and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..probe.predictions import test_rows_digest
from ..probe.protocol import scored_rows, scored_split
from ..probe.targets import store_targets
from ..store import DiffsslError, FeatureKey, FeatureStore


class OtherRows(DiffsslError):
    """A store does not have the test rows of a result."""


@dataclass(frozen=True)
class TestSet:
    """What a result was tested on.

    Attributes:
        split: of the store.
        rows: (n,) row numbers in the split, in the order of the result's hits.
        ids: (n,) of the rows.
        labels: (n,) int64 class numbers.
        classes: names by number.
    """

    __test__ = False  # pytest collects what is named so

    split: str
    rows: NDArray[np.int64]
    ids: NDArray[np.object_]
    labels: NDArray[np.int64]
    classes: Sequence[str]


def find_test_set(line: Mapping[str, Any], store: FeatureStore) -> TestSet:
    """The test rows of a result, checked against its digest of their ids and labels.

    Any store with the same samples will do, whatever its backbone. A result knows how many test rows there were, so its
    ``--limit`` need not be known: test rows are in row order.

    Args:
        line: as probing writes it.
        store: with the samples.

    Raises:
        OtherRows: the store's test rows, or their labels, are others, or the result does not say which it had.
        IncompleteFeatures: rows of the store are not committed.
    """
    split = scored_split(store)
    targets = store_targets(store, [split])
    ids, labels = store.ids(split), targets.values[split]
    trained = [store.data_id(split)] if split == "all" and line["data_id"].get("all") == store.data_id(split) else []
    there = store.keys(split)
    own = [key for key in settings_of(line) if key in there]
    # Rows that are left out in one setting are left out of all that a run reads, which are these or more.
    for keys in (own, there):
        if keys:
            rows = scored_rows(store, keys, targets, None, trained)[0][split][: line["n_test"]]
            if test_rows_digest(ids[rows], labels[rows]) == line.get("test_rows"):
                return TestSet(split, rows, ids[rows], labels[rows], store.classes)
    raise OtherRows(
        f"{store.path}: its split {split} does not have the {line['n_test']} test rows of {line['head']} on "
        f"{line['specification']['setting']} with the same labels; give the store that was probed, or probe it again"
    )


def settings_of(line: Mapping[str, Any]) -> list[FeatureKey]:
    """The settings that a fit read, in order; copies apart."""
    places = [line["block"], line["timestep"], line["pool"]]
    columns = places if isinstance(line["block"], list) else [[value] for value in places]
    copy = line["draw"], line["crop"]
    return [FeatureKey(block, timestep, pool, *copy) for block, timestep, pool in zip(*columns, strict=True)]
