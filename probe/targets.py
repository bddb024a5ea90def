"""What is to be predicted: the store's classes, or any other answers from a file of labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL, FeatureStore, digest
from .errors import LabelsError

TASKS = ("classify", "multilabel", "regress")
_SHOWN = 3


@dataclass(frozen=True)
class Targets:
    """Answers for every row of some splits.

    Attributes:
        task: ``classify``, ``multilabel`` or ``regress``.
        names: of the classes, the labels or the numbers.
        values: split -> (n,) int64 class numbers, -1 for none; or (n, K) float32, NaN where unknown.
        source: ``store``, or the digest of the file.
        notes: what people should know.
    """

    task: str
    names: Sequence[str]
    values: Mapping[str, NDArray[Any]]
    source: str = "store"
    notes: Sequence[str] = field(default=())

    def known(self, split: str) -> NDArray[np.bool_]:
        """(n,) whether a row has an answer, or one of its answers."""
        values = self.values[split]
        known: NDArray[np.bool_] = values != NO_LABEL if self.task == "classify" else ~np.isnan(values).all(axis=1)
        return known


def store_targets(store: FeatureStore, splits: Sequence[str]) -> Targets:
    """The classes that the store has of its rows."""
    return Targets("classify", store.classes, {split: store.labels(split).astype(np.int64) for split in splits})


def read_targets(
    path: Path, task: str, store: FeatureStore, splits: Sequence[str], classes: Sequence[str] | None = None
) -> Targets:
    """Answers from a CSV file.

    Its first line names the columns: ``id``, optionally ``split``, and the answers: one column of class names for
    ``classify``; columns of 0 and 1 for ``multilabel``; columns of numbers for ``regress``. An empty cell is an answer that
    is not known. Ids are matched; what matches nothing is counted in the notes.

    Args:
        path: of the file.
        task: one of ``TASKS``.
        store: whose rows are meant.
        splits: of it.
        classes: names to number classes by, others are not known; None for those in the file.

    Raises:
        LabelsError: the file cannot be read as such, or no id matches.
    """
    columns, lines = _read(path)
    wanted = [name for name in columns if name not in ("id", "split")]
    if not wanted or (task == "classify" and len(wanted) > 1):
        which = f"the columns {', '.join(wanted)}" if wanted else "no column of answers"
        raise LabelsError(f"{path}: has {which}; --task {task} wants {'one' if task == 'classify' else 'at least one'}")
    rows = _by_id(path, lines, store, splits)
    names = wanted if task != "classify" else list(classes or sorted({line[wanted[0]] for line in lines} - {""}))
    numbers = {name: number for number, name in enumerate(names)}
    values: dict[str, NDArray[Any]] = {}
    for split, own in rows.items():
        if task == "classify":
            values[split] = np.full(store.n_rows(split), NO_LABEL, dtype=np.int64)
        else:
            values[split] = np.full((store.n_rows(split), len(names)), np.nan, dtype=np.float32)
        for row, line in own.items():
            if task == "classify":
                values[split][row] = numbers.get(line[wanted[0]], NO_LABEL)
            else:
                values[split][row] = [_number(path, line, name, task) for name in names]
    used = sum(len(own) for own in rows.values())
    notes = [
        f"labels: {path.name}, {task}; {len(own)} of {store.n_rows(split)} rows of {split} have a line there"
        for split, own in rows.items()
    ]
    notes += [f"labels: {len(lines) - used} lines of {path.name} are about none of these rows"] if used < len(lines) else []
    return Targets(task, names, values, digest(path.read_text("utf-8")), notes)


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or ())
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(f"{path}: cannot be read as CSV ({error})") from error
    if "id" not in columns or len(set(columns)) < len(columns):
        raise LabelsError(
            f"{path}: its first line is {','.join(columns)!r}; expected the column id, and one or more of answers, each once"
        )
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise LabelsError(f"{path}, line {number}: has not {len(columns)} cells, as the first line has")
    return columns, lines


def _by_id(
    path: Path, lines: Sequence[dict[str, str]], store: FeatureStore, splits: Sequence[str]
) -> dict[str, dict[int, dict[str, str]]]:
    """Split -> row -> its line. Raises ``LabelsError`` where it is not clear which row a line is about."""
    places = {split: {name: row for row, name in enumerate(store.ids(split))} for split in splits}
    found: dict[str, dict[int, dict[str, str]]] = {split: {} for split in splits}
    for number, line in enumerate(lines, start=2):
        named = line.get("split", "")
        about = [split for split in splits if line["id"] in places[split] and named in ("", split)]
        if len(about) > 1:
            raise LabelsError(
                f"{path}, line {number}: {line['id']!r} is in {' and '.join(about)}; add a column split that says which"
            )
        for split in about:
            row = places[split][line["id"]]
            if row in found[split]:
                raise LabelsError(f"{path}, line {number}: {line['id']!r} is there twice")
            found[split][row] = line
    if lines and not any(found.values()):
        ids = ", ".join(repr(line["id"]) for line in lines[:_SHOWN])
        known = ", ".join(repr(name) for name in list(places[splits[0]])[:_SHOWN])
        raise LabelsError(f"{path}: none of its ids ({ids}, …) is in {store.path}, whose ids are {known}, …")
    return found


def _number(path: Path, line: Mapping[str, str], name: str, task: str) -> float:
    text = line[name].strip()
    try:
        value = float(text) if text else float("nan")
    except ValueError:
        raise LabelsError(f"{path}: {name} of {line['id']!r} is {text!r}, expected a number or nothing") from None
    if task == "multilabel" and text and value not in (0.0, 1.0):
        raise LabelsError(f"{path}: {name} of {line['id']!r} is {text!r}; --task multilabel wants 0 or 1")
    if text and not np.isfinite(value):
        raise LabelsError(f"{path}: {name} of {line['id']!r} is {text!r}, expected a finite number")
    return value
