"""Rows of numbers as a file: CSV or Parquet, by the suffix."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..store import DiffsslError

NUMBER_SUFFIXES = (".csv", ".parquet")


class MissingPackage(DiffsslError):
    """A format needs a package that is not installed."""


def require_writer(path: Path) -> None:
    """Raise ``MissingPackage`` if :func:`write_numbers` would, before there is something to lose."""
    if path.suffix == ".parquet":
        _parquet()


def write_numbers(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows that have the same names; None is an empty field of CSV, a null of Parquet.

    Args:
        rows: at least one, name -> number or text.
        path: of the file, which is replaced; ``.csv`` or ``.parquet``.

    Raises:
        MissingPackage: Parquet without pyarrow.
    """
    if path.suffix == ".parquet":
        _write_parquet(rows, path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    pyarrow, parquet = _parquet()
    parquet.write_table(pyarrow.table({name: _column(rows, name) for name in rows[0]}), path)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackage("Parquet is written by pyarrow: pip install 'diffssl[hf]', or choose a .csv file") from error
    return pyarrow, parquet


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Values of one type: pools are numbers or ``cls``."""
    values = [row[name] for row in rows]
    return [str(value) for value in values] if len({type(value) for value in values} & {int, str}) > 1 else values
