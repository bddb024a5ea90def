"""Which rows train, select and test: the protocol behind every number. See ``docs/protocol.md``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..store import FeatureKey, FeatureStore, salted_fractions
from .errors import NothingToProbe, TooFewRows
from .subsets import Subset, choose_rows
from .targets import Targets

HELD_OUT = 0.1
TEST = 0.2
_HELD_OUT_SALT = "diffssl-heldout"
_TEST_SALT = "diffssl-test"

RowSet = Mapping[str, NDArray[np.int64]]  # split -> ascending row numbers
ReadIds = Callable[[str], NDArray[np.object_]]  # split -> (n,) ids


@dataclass(frozen=True)
class Protocol:
    """Rows of each role.

    Attributes:
        fit: train candidates on these.
        select: choose among them, and among settings, on these.
        refit: train what was chosen on these.
        test: score it on these, once; rows of the other store where there is a store to test on.
        moments: features are standardised with the mean and deviation of these.
        digest: of which rows with which labels have which role; part of a result's key.
        trained: the same without the test rows: what a fitted head depends on.
        notes: what was used, in words, to print and to record.
    """

    fit: RowSet
    select: RowSet
    refit: RowSet
    test: RowSet
    moments: RowSet
    digest: str
    trained: str
    notes: Sequence[str]

    @property
    def splits(self) -> list[str]:
        """Splits that any role has rows of."""
        return sorted({split for role in (self.fit, self.select, self.test) for split in role})


def size(rows: RowSet) -> int:
    """Number of rows of a role."""
    return sum(len(numbers) for numbers in rows.values())


def used_splits(store: FeatureStore) -> list[str]:
    """Splits that probing reads, the one that trains first. Raises ``NothingToProbe``."""
    if "train" in store.splits and ("test" in store.splits or "val" in store.splits):
        return [split for split in ("train", "val", "test") if split in store.splits]
    if "all" in store.splits:
        return ["all"]
    raise NothingToProbe(
        f"{store.path}: probing needs the splits train and test (or val), or all; the store has "
        f"{', '.join(store.splits) or 'none'}"
    )


def scored_split(store: FeatureStore) -> str:
    """The split that is scored. Raises ``NothingToProbe``."""
    for split in ("test", "val", "all"):
        if split in store.splits:
            return split
    raise NothingToProbe(
        f"{store.path}: scoring needs a split test, val or all; the store has {', '.join(store.splits) or 'none'}"
    )


def make_protocol(
    store: FeatureStore,
    keys: Mapping[str, Sequence[FeatureKey]],
    targets: Targets,
    limit: int | None,
    refit: bool = True,
    subset: Subset | None = None,
    ids: ReadIds | None = None,
) -> Protocol:
    """Assign rows to roles, the same for all settings.

    Hyper-parameters and the setting are chosen on the val split if the store has train, val and test; else on 10 % of
    the training rows, by a salted hash of the id. A store without test is tested on val; one with the single split
    ``all`` on a fifth of it, by another salted hash.

    Args:
        store: to take rows of.
        keys: split -> every setting that any fit reads of it.
        targets: what is to be predicted.
        limit: only the first so many rows of every split.
        refit: whether what was chosen is fitted again on training and held-out rows.
        subset: of the training rows; None for all of them. A val split then chooses only, and is never trained on.
        ids: reads the ids of a split, for protocols of one store that read them once; None for ``store.ids``.

    Raises:
        NothingToProbe: no split to train or test on.
        TooFewRows: no labelled rows, or fewer than two classes.
    """
    splits = used_splits(store)
    ids = ids or store.ids
    notes: list[str] = []
    usable = {split: _usable(store, keys[split], targets, split, limit, notes) for split in splits}
    train_split, tested = splits[0], splits[-1]
    train, test = _tested_apart(ids, train_split, tested, usable, notes)
    if subset is not None:
        train, note = choose_rows(subset, ids(train_split), targets.values[train_split], train)
        notes.append(f"{train_split}: {note}")
    if len(splits) == 3:
        fit, selection_split, selection = train, "val", usable["val"]
        notes.append(f"selection: the split val ({len(selection)} rows)")
    else:
        selection_split = train_split
        fit, selection = _held_out(ids, targets, train_split, train, notes)
    everything = {train_split: train}
    if selection_split != train_split and subset is None:  # few shots are few in the final fit too
        everything["val"] = selection
    roles: dict[str, RowSet] = {
        "fit": {train_split: fit},
        "select": {selection_split: selection},
        "refit": everything if refit else {train_split: fit},
        "test": {tested: test},
    }
    notes.append(f"train: {len(fit)} rows, {size(roles['refit'])} for the final fit")
    learnt = {name: rows for name, rows in roles.items() if name != "test"}
    protocol = Protocol(
        **roles, moments={train_split: train}, digest=_digest(targets, roles), trained=_digest(targets, learnt), notes=notes
    )
    _check(store, targets, protocol)
    return protocol


def scored_rows(
    store: FeatureStore, keys: Sequence[FeatureKey], targets: Targets, limit: int | None, trained: Collection[str]
) -> tuple[RowSet, list[str]]:
    """Rows of a store that heads of another are scored on, and notes about them: all of its test split.

    Args:
        store: to take rows of.
        keys: settings that are read.
        targets: answers.
        limit: only the first so many rows.
        trained: ``data_id`` of the splits that the heads were trained on. Of one split ``all`` of the same samples, the
            fifth that is kept for testing is taken.

    Raises:
        TooFewRows: there are none with an answer, or the heads were trained on them.
    """
    notes: list[str] = []
    split = scored_split(store)
    rows = _usable(store, keys, targets, split, limit, notes)
    if store.data_id(split) in trained:
        if split != "all":
            raise TooFewRows(f"{store.path}: the heads were trained or chosen on the samples of its split {split}")
        _, rows = _divide(store.ids, split, rows, TEST, _TEST_SALT)
        notes.append("the heads were trained on the same samples: the fifth of them that is kept for testing is scored")
    if not len(rows):
        raise TooFewRows(f"{store.path}: no row of {split} has a label that the heads know; classes are matched by name")
    return {split: rows}, [*notes, f"test: the split {split} of {store.path} ({len(rows)} rows)"]


def _usable(
    store: FeatureStore, keys: Sequence[FeatureKey], targets: Targets, split: str, limit: int | None, notes: list[str]
) -> NDArray[np.int64]:
    """Rows of a split that are there, decoded and labelled."""
    total = store.n_rows(split)
    n_rows = store.wanted_rows(keys, split) if limit is None else min(limit, total)
    store.require(keys, split, range(n_rows))
    if n_rows < total:
        notes.append(f"{split}: the first {n_rows} of {total} rows")
    bad = {row for key in keys for row in store.journal.left_out(split, key) if row < n_rows}
    keep = targets.known(split)[:n_rows]
    if not keep.all():
        notes.append(f"{split}: {int((~keep).sum())} rows without a label are left out")
    if bad:
        notes.append(f"{split}: {len(bad)} rows that could not be decoded are left out")
    keep[sorted(bad)] = False
    return np.flatnonzero(keep)


def _tested_apart(
    ids: ReadIds, train_split: str, tested: str, usable: Mapping[str, NDArray[np.int64]], notes: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train and select on, and rows to test on; what was tested on is noted."""
    train, test = usable[train_split], usable[tested]
    if train_split == tested:
        train, test = _divide(ids, train_split, train, TEST, _TEST_SALT)
        notes.append(f"test: a fifth of {train_split}, by a salted hash of the id ({len(test)} rows)")
    elif tested == "val":
        notes.append(f"test: the split val, since there is no test ({len(test)} rows)")
    else:
        notes.append(f"test: the split test ({len(test)} rows)")
    return train, test


def _held_out(
    ids: ReadIds, targets: Targets, split: str, train: NDArray[np.int64], notes: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training rows to fit and to select on; which is noted."""
    fit, selection = _divide(ids, split, train, HELD_OUT, _HELD_OUT_SALT)
    if targets.task == "classify":
        selection = _one_of_each_class(targets.values[split], fit, selection)
        fit = np.setdiff1d(train, selection)
    notes.append(f"selection: 10 % of the training rows, by a salted hash of the id ({len(selection)} rows)")
    return fit, selection


def _divide(
    ids: ReadIds, split: str, rows: NDArray[np.int64], fraction: float, salt: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rest, chosen) rows, by the salted hash of their ids."""
    chosen = salted_fractions(ids(split)[rows], salt) < fraction
    return rows[~chosen], rows[chosen]


def _one_of_each_class(labels: NDArray[np.int64], fit: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Held-out rows such that every class with two rows has one on each side: the first row in row order moves."""
    for_class = {int(label) for label in labels[fit]}, {int(label) for label in labels[held_out]}
    chosen = set(held_out.tolist())
    for label in sorted(for_class[0] - for_class[1]):
        rows = fit[labels[fit] == label]
        if len(rows) > 1:
            chosen.add(int(rows[0]))
    for label in sorted(for_class[1] - for_class[0]):
        chosen.remove(int(held_out[labels[held_out] == label][0]))
    return np.array(sorted(chosen), dtype=np.int64)


def _digest(targets: Targets, roles: Mapping[str, RowSet]) -> str:
    total = blake2b(digest_size=16)
    dtype = "<i4" if targets.task == "classify" else "<f4"
    for name, role in roles.items():
        for split, rows in sorted(role.items()):
            total.update(f"{name} {split} {len(rows)} ".encode())
            total.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
            total.update(np.ascontiguousarray(targets.values[split][rows], dtype=dtype).tobytes())
    return total.hexdigest()


def _check(store: FeatureStore, targets: Targets, protocol: Protocol) -> None:
    for name in ("fit", "select", "test"):
        role: RowSet = getattr(protocol, name)
        if name == "select" and not size(role) and size(protocol.fit):
            raise TooFewRows(
                f"{store.path}: no row is left to choose hyper-parameters on, with {size(protocol.fit)} to train on; "
                "is --limit large enough? Take two rows a class at least, or a store with a val split"
            )
        if not size(role):
            raise TooFewRows(f"{store.path}: no labelled rows to {name} on; is the data labelled, and --limit large enough?")
    for split, rows in protocol.fit.items() if targets.task == "classify" else ():
        classes = np.unique(targets.values[split][rows])
        if len(classes) < 2:
            raise TooFewRows(
                f"{store.path}: the {len(rows)} training rows have {len(classes)} class; a classifier needs at least two"
            )
