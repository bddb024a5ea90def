"""Tables of images in Arrow and Parquet files, through pyarrow, row by row without reading the whole.

An Arrow file is mapped into memory, so that reading an image touches its bytes and no others. Of a Parquet file at least a
row group must be read; the last ones are kept, up to a limit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from .errors import DataError

KEPT_BYTES = 1 << 28


class Table(Protocol):
    """Rows of several files, one after the other.

    Attributes:
        schema: the pyarrow schema, the same for all files.
        rows: how many.
    """

    schema: Any
    rows: int

    def column(self, *path: str) -> list[Any]:
        """(rows,) values of a column, or of a field of a struct."""
        ...

    def without_bytes(self, name: str) -> int:
        """How many rows of a column of images have no ``bytes``, as far as is known."""
        ...

    def image(self, name: str, row: int) -> bytes | None:
        """The field ``bytes`` of a column of images; None if it is null. Raises ``OSError``."""
        ...

    def note(self, name: str) -> str | None:
        """What people should know about reading a column of images."""
        ...


def import_pyarrow() -> Any:
    """pyarrow, or a ``DataError`` that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Arrow and Parquet files are read by pyarrow: pip install 'diffssl[hf]'") from error
    return pyarrow


class ArrowTable:
    """Arrow files in the format of streams, as ``datasets`` saves them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        pyarrow = import_pyarrow()
        tables = []
        for path in paths:
            try:
                with pyarrow.memory_map(str(path)) as source:  # what is mapped stays so when the file is closed
                    tables.append(pyarrow.ipc.open_stream(source).read_all())
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: cannot be read as an Arrow stream ({error})") from error
        _check_schemas(paths, [table.schema for table in tables])
        self.schema = tables[0].schema
        self._table = pyarrow.concat_tables(tables)
        self.rows = len(self._table)
        self._starts = list(accumulate((len(chunk) for chunk in self._table.column(0).chunks), initial=0))

    def column(self, *path: str) -> list[Any]:
        """(rows,) values of a column, or of a field of a struct."""
        column = self._table.column(path[0])
        if len(path) == 1:
            return list(column.to_pylist())
        return [value for chunk in column.chunks for value in _field(chunk, path[1]).to_pylist()]

    def without_bytes(self, name: str) -> int:
        """How many rows of a column of images have no ``bytes``."""
        return sum(int(_field(chunk, "bytes").null_count) for chunk in self._table.column(name).chunks)

    def image(self, name: str, row: int) -> bytes | None:
        """The field ``bytes`` of a column of images; None if it is null."""
        piece = bisect_right(self._starts, row) - 1
        content: bytes | None = (self._table.column(name).chunk(piece)[row - self._starts[piece]].as_py() or {}).get("bytes")
        return content

    def note(self, name: str) -> str | None:  # noqa: ARG002
        """Nothing: images are read in place."""
        return None


class ParquetTable:
    """Parquet files, of which row groups are read.

    Args:
        paths: of the files.
        kept_bytes: of row groups that are kept in memory, the last ones used; one is kept whatever its size.
    """

    def __init__(self, paths: Sequence[Path], kept_bytes: int = KEPT_BYTES) -> None:
        self._pyarrow = import_pyarrow()
        self._paths = list(paths)
        self._footers = []
        schemas = []
        for path in paths:
            try:
                with self._pyarrow.parquet.ParquetFile(path) as file:
                    self._footers.append(file.metadata)
                    schemas.append(file.schema_arrow)
            except (self._pyarrow.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
        _check_schemas(paths, schemas)
        self.schema = schemas[0]
        self._groups = [(i, group) for i, footer in enumerate(self._footers) for group in range(footer.num_row_groups)]
        sizes = [self._footers[i].row_group(group).num_rows for i, group in self._groups]
        self._starts = list(accumulate(sizes, initial=0))
        self.rows = self._starts[-1]
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()  # least recently used first
        self._lock = Lock()

    def column(self, *path: str) -> list[Any]:
        """(rows,) values of a column, or of a field of a struct."""
        values: list[Any] = []
        for number in range(len(self._groups)):
            column = self._read(number, ".".join(path))
            if len(path) == 1:
                values += column.to_pylist()
            else:
                values += [value for chunk in column.chunks for value in _field(chunk, path[1]).to_pylist()]
        return values

    def without_bytes(self, name: str) -> int:
        """How many rows of a column of images have no ``bytes``, as far as the files say so."""
        known = [column.statistics for column in self._columns(f"{name}.bytes")]
        return sum(one.null_count for one in known if one is not None and one.has_null_count)

    def image(self, name: str, row: int) -> bytes | None:
        """The field ``bytes`` of a column of images; None if it is null. Raises ``OSError``."""
        number = bisect_right(self._starts, row) - 1
        with self._lock:  # two threads that want one row group read it once
            group = self._kept.pop((name, number), None)
            if group is None:
                group = self._read(number, f"{name}.bytes")
            self._kept[name, number] = group
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)
        content: bytes | None = (group[row - self._starts[number]].as_py() or {}).get("bytes")
        return content

    def note(self, name: str) -> str | None:
        """What it costs to read images in random order, if they do not fit into what is kept."""
        sizes = [column.total_uncompressed_size for column in self._columns(f"{name}.bytes")]
        if sum(sizes) <= self._kept_bytes:
            return None
        size = sum(sizes) / len(sizes) / 1e6
        return (
            f"rows are in random order, and of Parquet a whole row group (about {size:.3g} MB) is read for an image; a data "
            "set saved by datasets' save_to_disk is read in place, and faster"
        )

    def _columns(self, path: str) -> list[Any]:
        """What the footers say about one column of each row group."""
        groups = [self._footers[i].row_group(group) for i, group in self._groups]
        columns = [group.column(c) for group in groups for c in range(group.num_columns)]
        return [column for column in columns if column.path_in_schema == path]

    def _read(self, number: int, column: str) -> Any:
        i, group = self._groups[number]
        try:
            with self._pyarrow.parquet.ParquetFile(self._paths[i], metadata=self._footers[i]) as file:
                return file.read_row_group(group, columns=[column], use_threads=False).column(0)
        except (self._pyarrow.ArrowInvalid, OSError) as error:
            raise OSError(f"{self._paths[i]}: row group {group} cannot be read ({error})") from error


def _field(chunk: Any, name: str) -> Any:
    """A field of an array of structs, null where the struct is."""
    return chunk.flatten()[chunk.type.get_field_index(name)]


def _check_schemas(paths: Sequence[Path], schemas: Sequence[Any]) -> None:
    for path, schema in zip(paths, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise DataError(f"{path}: has the columns {_columns(schema)}, but {paths[0]} has {_columns(schemas[0])}")


def _columns(schema: Any) -> str:
    return ", ".join(f"{one.name} ({one.type})" for one in schema)
