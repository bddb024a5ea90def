"""Which rows train, select and test: the protocol behind every number. See ``docs/protocol.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL, FeatureKey, FeatureStore, salted_fractions
from .errors import NothingToProbe, TooFewRows

HELD_OUT = 0.1
TEST = 0.2
_HELD_OUT_SALT = "diffssl-heldout"
_TEST_SALT = "diffssl-test"

RowSet = Mapping[str, NDArray[np.int64]]  # split -> ascending row numbers


@dataclass(frozen=True)
class Protocol:
    """Rows of each role.

    Attributes:
        fit: train candidates on these.
        select: choose among them, and among settings, on these.
        refit: train what was chosen on these.
        test: score it on these, once.
        moments: features are standardised with the mean and deviation of these.
        digest: of which rows with which labels have which role; part of a result's key.
        notes: what was used, in words, to print and to record.
    """

    fit: RowSet
    select: RowSet
    refit: RowSet
    test: RowSet
    moments: RowSet
    digest: str
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


def make_protocol(store: FeatureStore, keys: Sequence[FeatureKey], limit: int | None, refit: bool = True) -> Protocol:
    """Assign rows to roles, the same for all settings.

    Hyper-parameters and the setting are chosen on the val split if the store has train, val and test; else on 10 % of
    the training rows, by a salted hash of the id. A store without test is tested on val; one with the single split
    ``all`` on a fifth of it, by another salted hash.

    Raises:
        NothingToProbe: no split to train or test on.
        TooFewRows: no labelled rows, or fewer than two classes.
    """
    splits = used_splits(store)
    notes: list[str] = []
    usable = {split: _usable(store, keys, split, limit, notes) for split in splits}
    train_split, test_split = splits[0], splits[-1]
    train, test = usable[train_split], usable[test_split]
    if train_split == test_split:
        train, test = _divide(store, train_split, train, TEST, _TEST_SALT)
        notes.append(f"test: a fifth of {train_split}, by a salted hash of the id ({len(test)} rows)")
    elif test_split == "val":
        notes.append(f"test: the split val, since there is no test ({len(test)} rows)")
    else:
        notes.append(f"test: the split test ({len(test)} rows)")
    if len(splits) == 3:
        fit, selection_split, selection = train, "val", usable["val"]
        notes.append(f"selection: the split val ({len(selection)} rows)")
    else:
        fit, held_out = _divide(store, train_split, train, HELD_OUT, _HELD_OUT_SALT)
        selection_split, selection = train_split, _one_of_each_class(store, train_split, fit, held_out)
        fit = np.setdiff1d(train, selection)
        notes.append(f"selection: 10 % of the training rows, by a salted hash of the id ({len(selection)} rows)")
    everything = {train_split: train} if selection_split == train_split else {train_split: train, "val": selection}
    roles: dict[str, RowSet] = {
        "fit": {train_split: fit},
        "select": {selection_split: selection},
        "refit": everything if refit else {train_split: fit},
        "test": {test_split: test},
    }
    protocol = Protocol(
        **roles,
        moments={train_split: train},
        digest=_digest(store, roles),
        notes=[*notes, f"train: {len(fit)} rows, {size(roles['refit'])} for the final fit"],
    )
    _check(store, protocol)
    return protocol


def _usable(
    store: FeatureStore, keys: Sequence[FeatureKey], split: str, limit: int | None, notes: list[str]
) -> NDArray[np.int64]:
    """Rows of a split that are there, decoded and labelled."""
    total = store.n_rows(split)
    n_rows = store.wanted_rows(keys, split) if limit is None else min(limit, total)
    store.require(keys, split, range(n_rows))
    if n_rows < total:
        notes.append(f"{split}: the first {n_rows} of {total} rows")
    bad = {row for key in keys for row in store.journal.left_out(split, key) if row < n_rows}
    keep = store.labels(split)[:n_rows] != NO_LABEL
    if not keep.all():
        notes.append(f"{split}: {int((~keep).sum())} rows without a label are left out")
    if bad:
        notes.append(f"{split}: {len(bad)} rows that could not be decoded are left out")
    keep[sorted(bad)] = False
    return np.flatnonzero(keep)


def _divide(
    store: FeatureStore, split: str, rows: NDArray[np.int64], fraction: float, salt: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rest, chosen) rows, by the salted hash of their ids."""
    chosen = salted_fractions(store.ids(split)[rows], salt) < fraction
    return rows[~chosen], rows[chosen]


def _one_of_each_class(
    store: FeatureStore, split: str, fit: NDArray[np.int64], held_out: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Held-out rows such that every class with two rows has one on each side: the first row in row order moves."""
    labels = store.labels(split)
    for_class = {int(label) for label in labels[fit]}, {int(label) for label in labels[held_out]}
    chosen = set(held_out.tolist())
    for label in sorted(for_class[0] - for_class[1]):
        rows = fit[labels[fit] == label]
        if len(rows) > 1:
            chosen.add(int(rows[0]))
    for label in sorted(for_class[1] - for_class[0]):
        chosen.remove(int(held_out[labels[held_out] == label][0]))
    return np.array(sorted(chosen), dtype=np.int64)


def _digest(store: FeatureStore, roles: Mapping[str, RowSet]) -> str:
    total = blake2b(digest_size=16)
    for name, role in roles.items():
        for split, rows in sorted(role.items()):
            total.update(f"{name} {split} {len(rows)} ".encode())
            total.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
            total.update(np.ascontiguousarray(store.labels(split)[rows], dtype="<i4").tobytes())
    return total.hexdigest()


def _check(store: FeatureStore, protocol: Protocol) -> None:
    for name in ("fit", "select", "test"):
        role: RowSet = getattr(protocol, name)
        if not size(role):
            raise TooFewRows(f"{store.path}: no labelled rows to {name} on; is the data labelled, and --limit large enough?")
    for split, rows in protocol.fit.items():
        classes = np.unique(store.labels(split)[rows])
        if len(classes) < 2:
            raise TooFewRows(
                f"{store.path}: the {len(rows)} training rows have {len(classes)} class; a classifier needs at least two"
            )
