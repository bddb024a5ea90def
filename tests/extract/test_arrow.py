from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import DataError
from diffssl.extract.arrow import ArrowTable, ParquetTable, Table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Row = dict[str, Any]
Make = Callable[..., list[Path]]

KINDS = {"arrow": ArrowTable, "parquet": ParquetTable}

each_kind = pytest.mark.parametrize("kind", KINDS)


def rows(count: int) -> list[Row]:
    """Rows with every kind of nothing among them."""
    rng = np.random.default_rng(0)
    found: list[Row] = [{"image": {"bytes": rng.bytes(1000 + i), "path": f"{i}.png"}, "label": i % 3} for i in range(count)]
    found[3]["image"] = None
    found[5]["image"] = {"bytes": None, "path": "5.png"}
    found[6]["image"] = {"bytes": b"six", "path": None}
    found[7]["label"] = None
    return found


@pytest.fixture
def write(tmp_path: Path) -> Make:
    """Rows in two files, in groups of four rows."""

    def make(kind: str, content: Sequence[Row]) -> list[Path]:
        paths = []
        for i, part in enumerate((content[:11], content[11:])):
            table = pa.Table.from_pylist(part, schema=pa.schema(SCHEMA))
            paths.append(tmp_path / f"{i}.{kind}")
            if kind == "parquet":
                pq.write_table(table, paths[-1], row_group_size=4)
            else:
                with pa.ipc.new_stream(paths[-1], table.schema) as stream:
                    stream.write_table(table, max_chunksize=4)
        return paths

    return make


SCHEMA = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]


@each_kind
def test_rows_of_several_files(write: Make, kind: str) -> None:
    content = rows(20)
    table: Table = KINDS[kind](write(kind, content))
    assert table.rows == 20
    assert table.schema.names == ["image", "label"]
    assert table.column("label") == [row["label"] for row in content]
    assert table.column("image", "path") == [(row["image"] or {}).get("path") for row in content]
    for i in np.random.default_rng(1).permutation(20).tolist():
        assert table.image("image", i) == (content[i]["image"] or {}).get("bytes")
    assert table.without_bytes("image") == 2
    assert table.note("image") is None


@each_kind
def test_files_that_are_damaged(write: Make, kind: str, tmp_path: Path) -> None:
    paths = write(kind, rows(20))
    (tmp_path / "bad").write_bytes(paths[0].read_bytes()[:-900])
    (tmp_path / "text").write_text("text")
    for name in ("bad", "text", "nowhere"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as"):
            KINDS[kind]([paths[1], tmp_path / name])


@each_kind
def test_files_of_other_columns(write: Make, kind: str, tmp_path: Path) -> None:
    paths = write(kind, rows(20))
    other = pa.table({"text": ["a"]})
    if kind == "parquet":
        pq.write_table(other, tmp_path / "other")
    else:
        with pa.ipc.new_stream(tmp_path / "other", other.schema) as stream:
            stream.write_table(other)
    with pytest.raises(DataError, match=r"other: has the columns text \(string\), but .*0\..* has image \(struct"):
        KINDS[kind]([paths[0], tmp_path / "other"])


def test_files_are_closed(write: Make) -> None:
    """A data set may have more files than a process may have open."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    tables = [KINDS[kind](write(kind, rows(20))) for kind in KINDS]
    assert [table.image("image", 19) is not None for table in tables] == [True, True]
    assert descriptors() == before


def test_row_groups_are_kept_up_to_a_limit(write: Make) -> None:
    content = rows(20)
    table = ParquetTable(write("parquet", content), kept_bytes=9000)
    kept: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        order = np.random.default_rng(2).integers(0, 20, 200).tolist()
        for i, image in zip(order, pool.map(lambda i: table.image("image", i), order), strict=True):
            assert image == (content[i]["image"] or {}).get("bytes")
            kept.append(len(table._kept))
    assert max(kept) <= 4
    assert table.note("image") is not None
    assert "row group (about 0.00" in str(table.note("image"))
    assert ParquetTable(write("parquet", content), kept_bytes=0).image("image", 6) == b"six"


def test_a_file_that_was_damaged_after_it_was_listed(write: Make) -> None:
    paths = write("parquet", rows(20))
    table = ParquetTable(paths)
    raw = bytearray(paths[0].read_bytes())
    raw[:4000] = b"\xff" * 4000
    paths[0].write_bytes(raw)
    with pytest.raises(OSError, match=r"0\.parquet"):
        table.image("image", 0)
