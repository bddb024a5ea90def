"""Where test rows come from: the store that was trained on, or another of the same features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL, FeatureStore, Identity, digest
from .data import ProbeData
from .errors import OtherFeatures
from .inputs import FitInput, read_keys
from .protocol import Protocol, RowSet, scored_rows, scored_split
from .targets import Targets, read_targets

_MAY_DIFFER = {"noise.seed"}


@dataclass(frozen=True)
class Tested:
    """The rows that fits are scored on.

    Attributes:
        store: where they are.
        targets: their answers, as numbers of the classes that were trained.
        rows: which; None for those of the protocol.
        notes: what people should know about them.
    """

    store: FeatureStore
    targets: Targets
    rows: RowSet | None = None
    notes: Sequence[str] = ()

    def scored(self, protocol: Protocol) -> Protocol:
        """A protocol that is scored on these rows."""
        if self.rows is None:
            return protocol
        ((split, rows),) = self.rows.items()
        names = self.store.data_id(split), rows.tolist(), self.targets.values[split][rows].tolist()
        notes = [note for note in protocol.notes if not note.startswith("test:")]
        return replace(protocol, test=self.rows, notes=[*notes, *self.notes], digest=digest([protocol.digest, *names]))

    def data(self, one: FitInput) -> ProbeData:
        """Features of these rows; where draws take turns, of all draws that their store has."""
        copies = None
        if one.copies is not None:
            split = scored_split(self.store)
            there = set(self.store.keys(split))
            draws = sorted({key.draw for key in there if key.crop == 0})
            shared = [draw for draw in draws if all(replace(key, draw=draw) in there for key in one.keys)]
            copies = {split: tuple((draw, 0) for draw in shared)}
        return ProbeData(self.store, one.keys, self.targets, copies)

    def ids_and_labels(self, protocol: Protocol) -> tuple[NDArray[np.object_], NDArray[Any]]:
        """(n,) ids and (n, ...) answers of the test rows, in order."""
        ids = [self.store.ids(split)[rows] for split, rows in protocol.test.items()]
        labels = [self.targets.values[split][rows] for split, rows in protocol.test.items()]
        return np.concatenate(ids), np.concatenate(labels)


def same_store(store: FeatureStore, targets: Targets) -> Tested:
    """The test rows of the store that is trained on."""
    return Tested(store, targets)


def tested_elsewhere(
    path: Path | str, store: FeatureStore, targets: Targets, labels: Path | None, inputs: Sequence[FitInput], limit: int | None
) -> Tested:
    """The test rows of another store; its classes are matched by name, and rows of unknown ones are left out and counted.

    Raises:
        OtherFeatures: its features are not those of ``store``.
        UnknownFeatures, IncompleteFeatures: it lacks settings that are read.
    """
    other = FeatureStore.open(path)
    check_same_features(store.identity, other, str(store.path))
    split = scored_split(other)
    own = other_targets(other, targets, labels, split)
    read = read_keys([replace(one, copies=None) for one in inputs], [split])[split]
    trained = [store.data_id(name) for name in store.splits if name != "test"]
    rows, notes = scored_rows(other, read, own, limit, trained)
    return Tested(other, own, rows, notes)


def check_same_features(identity: Identity, other: FeatureStore, where: str) -> None:
    """Raise ``OtherFeatures`` unless a store has the features of an identity; another noise seed alone is fine."""
    differences = [found for found in identity.differences(other.identity) if found[0] not in _MAY_DIFFER]
    if differences:
        listed = "; ".join(f"{name}: {here!r} there, {there!r} here" for name, here, there in differences)
        raise OtherFeatures(f"{other.path}: its features are not those of {where}, so heads mean nothing to them ({listed})")


def other_targets(other: FeatureStore, targets: Targets, labels: Path | None, split: str) -> Targets:
    """Answers of another store's rows, as numbers of the classes in ``targets``."""
    if labels is not None:
        return read_targets(labels, targets.task, other, [split], targets.names)
    number = {name: i for i, name in enumerate(targets.names)}
    places = np.array([number.get(name, NO_LABEL) for name in other.classes] + [NO_LABEL], dtype=np.int64)  # -1 finds the last
    return Targets("classify", targets.names, {split: places[other.labels(split)]})
