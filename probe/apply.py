"""Heads that were kept, scored on the test rows of stores. Nothing is fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..store import FeatureStore, digest
from .data import ProbeData
from .fit import Fit
from .protocol import scored_rows, scored_split
from .records import scored_record
from .saved import load_heads
from .spec import ProbeSpec
from .table import scores_table
from .targets import Targets
from .train import pick_device
from .transfer import check_same_features, other_targets

Echo = Callable[[str], object]


def apply_heads(folder: Path, stores: Sequence[str], spec: ProbeSpec, echo: Echo = print) -> list[dict[str, Any]]:
    """Score every head of a folder on the test split (else val, else all) of every store, and print a table.

    Classes are matched by name; rows of classes that a head does not know are left out and counted.

    Args:
        folder: of the heads.
        stores: paths or URLs.
        spec: its ``labels``, ``limit`` and ``device`` are used.
        echo: called with each line for people.

    Raises:
        OtherFeatures: a store has not the features that a head was fitted on.
        DiffsslError: a store lacks what a head reads, or has no rows to score.
    """
    device = pick_device(spec.device)
    found = []
    for path in stores:
        store = FeatureStore.open(path)
        split = scored_split(store)
        for head in load_heads(folder):
            check_same_features(head.identity, store, str(head.path))
            known = Targets(head.about["task"], head.about["names"], {})
            targets = other_targets(store, known, spec.labels, split)
            trained = {name: own for name, own in head.about["result"]["data_id"].items() if name != "test"}
            rows, notes = scored_rows(store, head.keys, targets, spec.limit, trained.values())
            scores, labels = head.scores(ProbeData(store, head.keys, targets), rows, device)
            fitted = Fit({}, [scores], labels, head.about["log_odds"])
            rng = np.random.default_rng(int(digest([head.path.name, store.data_id(split)], 4), 16))
            found.append({"store": str(path), "notes": notes} | scored_record(head.about["result"], fitted, targets, rng))
    for note in dict.fromkeys(note for record in found for note in record["notes"]):
        echo(note)
    for line in scores_table(found):
        echo(line)
    return found
