"""Errors of diffssl: wrong data or wrong state, with what to do next.

A wrong *call* (bad argument) is a ``ValueError``. Everything else that a user can meet is one of::

    DiffsslError
    ├── StoreError                 carries the path of the store
    │   ├── StoreNotFound          there is no store at the path
    │   ├── UnsupportedFormat      the store was written by a newer diffssl
    │   ├── UnknownFeatures        the store has no such split or setting
    │   ├── IncompleteFeatures     rows that were asked for are not committed yet
    │   ├── CorruptStore           committed data is damaged, missing or NaN
    │   ├── IdentityMismatch       the store belongs to another data set, backbone or preprocessing
    │   └── StorageFull            the disk cannot hold what is about to be written, or is full
    ├── ClusterError               there is no such cluster, or its workers cannot be used
    ├── ExtractError               see ``extract/errors.py``
    └── ProbeError                 see ``probe/errors.py``

The command lines turn a ``DiffsslError`` into one line on stderr and exit code 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class DiffsslError(Exception):
    """Base of every error that diffssl raises about data or state."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors have arguments of their own, and cross from a Dask worker to the user as they are.
        return _rebuild, (type(self), self.args, self.__dict__)


class ClusterError(DiffsslError):
    """There is no such cluster of processes, or its workers cannot be used."""


class StoreError(DiffsslError):
    """Something is wrong with a feature store.

    Attributes:
        path: where the store is.
    """

    def __init__(self, path: Path | str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class StoreNotFound(StoreError):
    """There is no feature store at the path."""


class UnsupportedFormat(StoreError):
    """The store has a format number that this version cannot read."""


class UnknownFeatures(StoreError):
    """A split or a setting was asked for that the store does not have."""


class IncompleteFeatures(StoreError):
    """Rows that were asked for are not committed yet."""


class CorruptStore(StoreError):
    """Committed data is damaged, missing or NaN."""


class IdentityMismatch(StoreError):
    """The store belongs to something else than what is being written or read.

    Attributes:
        differences: (field, in the store, now) for every field that differs.
    """

    def __init__(self, path: Path | str, message: str, differences: Sequence[tuple[str, object, object]]) -> None:
        lines = "".join(f"\n  {field}: store has {theirs!r}, now {ours!r}" for field, theirs, ours in differences)
        super().__init__(path, message + lines)
        self.differences = list(differences)


class StorageFull(StoreError):
    """The disk cannot hold what is about to be written, or is full."""


def _rebuild(kind: type[DiffsslError], args: tuple[Any, ...], state: Mapping[str, Any]) -> DiffsslError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
