"""Rows of numbers as CSV and Parquet."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from diffssl.analysis.number_file import MissingPackage, require_writer, write_numbers

ROWS: list[dict[str, Any]] = [
    {"store": "a, b.zarr", "timestep": 10, "pool": 1, "value": 0.1 + 0.2},
    {"store": "vit", "timestep": None, "pool": "cls", "value": None},
]


def test_csv_keeps_every_digit_and_leaves_blank_what_is_not_there(tmp_path: Path) -> None:
    write_numbers(ROWS, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read[1] == {"store": "vit", "timestep": "", "pool": "cls", "value": ""}
    assert read[0]["store"] == "a, b.zarr"
    assert float(read[0]["value"]) == 0.1 + 0.2


def test_parquet_has_types_and_nulls(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_numbers(ROWS, tmp_path / "a.parquet")
    read = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert read == [ROWS[0] | {"pool": "1"}, ROWS[1]]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    require_writer(tmp_path / "a.csv")
    for action in (require_writer, lambda path: write_numbers(ROWS, path)):
        with pytest.raises(MissingPackage, match=r"pip install 'diffssl\[hf\]'"):
            action(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())
