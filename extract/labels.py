"""Class names of images: from a CSV file, or from labels that are integers or names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from .errors import DataError

_HEADER = ["file", "label"]
_DIGITS = 5


def label_table(table: Path | None, files: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Class name of each file, and what people should know about it.

    Args:
        table: CSV whose first line is ``file,label``; None for no labels.
        files: names of the images.

    Raises:
        DataError: the table cannot be read, names a file twice, or names a file that is not there.
    """
    if table is None:
        return [None] * len(files), ["no labels (no --labels and no labels.csv in the folder)"]
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a UTF-8 CSV file ({error})") from error
    if not lines or [cell.strip() for cell in lines[0]] != _HEADER:
        raise DataError(f"{table}: the first line must be 'file,label', got {','.join(lines[0]) if lines else 'nothing'!r}")
    labels: dict[str, str | None] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(_HEADER) or line[0] in labels:
            raise DataError(f"{table}, line {number}: expected a new file name and its label, got {line}")
        labels[line[0]] = line[1] if line[1].strip() else None  # an empty cell is no label
    strangers = labels.keys() - set(files)
    if strangers:
        raise DataError(f"{table}: names {len(strangers)} images that are not in the folder, such as {min(strangers)!r}")
    notes = [f"labels from {table}"]
    without = sum(labels.get(name) is None for name in files)
    notes += [f"{without} of {len(files)} images have no label in {table}"] if without else []
    return [labels.get(name) for name in files], notes


def class_names(labels: Sequence[int | str | None], where: str) -> tuple[list[str | None], list[str]]:
    """Class names of labels that are all integers or all names, and what people should know about them.

    An integer becomes five digits (``00007``), the same in every split and data set, so that classes, which are sorted as text,
    are sorted by number. No label is None, -1, or an empty name.

    Raises:
        DataError: integers and names are mixed, or an integer has no five digits.
    """
    kept = [None if label == -1 or (isinstance(label, str) and not label.strip()) else label for label in labels]
    integers = {label for label in kept if isinstance(label, int)}
    texts = {label for label in kept if isinstance(label, str)}
    if integers and texts:
        raise DataError(f"{where}: labels are integers ({min(integers)}) and names ({min(texts)!r}); use one kind")
    if integers and (min(integers) < 0 or max(integers) >= 10**_DIGITS):
        wrong = min(integers) if min(integers) < 0 else max(integers)
        raise DataError(f"{where}: the label {wrong} is not between 0 and {10**_DIGITS - 1} (-1 for none); use names")
    name = {label: f"{label:0{_DIGITS}d}" for label in integers} | {text: text for text in texts}  # one object a class
    without = sum(label is None for label in kept)
    notes = ["no labels"] if without == len(kept) else []
    notes += [f"{without} of {len(kept)} images have no label"] if 0 < without < len(kept) else []
    first = min(integers, default=0)
    notes += [f"labels are integers: their classes are called {first:0{_DIGITS}d} and so on"] if integers else []
    return [None if label is None else name[label] for label in kept], notes
