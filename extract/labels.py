"""Labels of a flat folder, from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from .errors import DataError

_HEADER = ["file", "label"]


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
