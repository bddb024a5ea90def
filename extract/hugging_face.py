"""Hugging Face data sets on disk: as ``save_to_disk`` leaves them, or as Parquet files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from .arrow import ArrowTable, ParquetTable, Table, import_pyarrow
from .errors import DataError
from .labels import class_names
from .listing import Listing, is_split_name
from .patterns import is_pattern, matching_files, refuse_mixed_splits

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(-[0-9a-f]+)?")
_SPLITS = {"train", "val", "valid", "validation", "test"}
_OPTIONS = ("image", "label")
_DIGITS = 8


def list_hugging_face(source: str) -> dict[str, Listing]:
    """The splits of a data set.

    Args:
        source: folder of ``save_to_disk``; folder, file or pattern of Parquet files; then, if wanted,
            ``?image=COLUMN&label=COLUMN``.

    Raises:
        DataError: with what is wrong and the way out.
    """
    path, options = _options(source)
    import_pyarrow()
    splits, notes = _tables(path)
    listings = {split: _listing(table, f"hf:{path}, {split}", options) for split, table in splits.items()}
    if "validation" in listings and "val" not in listings:
        listings = {"val" if split == "validation" else split: listing for split, listing in listings.items()}
        notes = [*notes, "the split 'validation' is called val"]
    return {
        split: Listing(one.ids, one.class_names, one.read, [*one.notes, *(notes if i == 0 else [])])
        for i, (split, one) in enumerate(listings.items())
    }


def _options(source: str) -> tuple[str, dict[str, str]]:
    path, mark, query = source.rpartition("?")
    if not mark or "=" not in query:
        return source, {}
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = options.keys() - set(_OPTIONS)
    if unknown:
        raise DataError(f"hf:{source}: there is no option {min(unknown)!r}; the options are {', '.join(_OPTIONS)}")
    return path, options


def _tables(text: str) -> tuple[dict[str, Table], list[str]]:
    """A table for each split, and notes."""
    path = Path(text)
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits", [])
        return {str(name): _saved(path / str(name)) for name in names}, []
    if (path / "state.json").is_file():
        return {"all": _saved(path)}, []
    files = matching_files(text) if is_pattern(text) else sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.suffix == ".parquet" and file.is_file() for file in files):
        raise DataError(
            f"hf:{text}: is neither a data set saved by datasets' save_to_disk, nor Parquet files (a folder that has them, or "
            "a pattern such as '…/train-*.parquet')"
        )
    splits, notes = _by_split(files)
    if "all" in splits:
        refuse_mixed_splits(f"hf:{text}", files)
    if notes and path.is_dir():
        raise DataError(f"hf:{text}: {notes[0]}; download the others, or give a pattern of those that you want")
    return {split: ParquetTable(own) for split, own in splits.items()}, notes


def _saved(folder: Path) -> Table:
    files = [folder / str(entry["filename"]) for entry in _json(folder / "state.json").get("_data_files", [])]
    if not files:
        raise DataError(f"{folder}: state.json names no data files; save the data set again")
    return ArrowTable(files)


def _by_split(files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Files by the split in their names (``train-00000-of-00005.parquet``, ``test.parquet``), and what is missing of them."""
    shards = [_SHARD.fullmatch(file.stem) for file in files]
    names = [match[1] if match else file.stem for match, file in zip(shards, files, strict=True)]
    if not all(is_split_name(name) and (match or name in _SPLITS) for name, match in zip(names, shards, strict=True)):
        return {"all": list(files)}, []
    splits: dict[str, list[Path]] = {}
    for name, file in zip(names, files, strict=True):
        splits.setdefault(name, []).append(file)
    totals = {name: int(match[2]) for name, match in zip(names, shards, strict=True) if match}
    notes = [
        f"{len(splits[name])} of the {total} files of {name} are there"
        for name, total in totals.items()
        if len(splits[name]) != total
    ]
    return splits, notes


def _listing(table: Table, where: str, options: Mapping[str, str]) -> Listing:
    image = _image_column(table.schema, where, options.get("image"))
    paths = table.column(image, "path")
    ids, notes = _ids(paths, table.rows)
    classes, more = _classes(table, where, options.get("label"))
    cost = table.note(image)
    elsewhere = DataError(
        f"{where}: has images that are not in it but in files of their own; embed them (datasets does so in save_to_disk), or "
        "list the files in a manifest"
    )
    if sum(path is not None for path in paths) > table.rows - table.without_bytes(image):
        raise elsewhere

    def read(row: int) -> bytes:
        content = table.image(image, row)
        if content is None and paths[row] is not None:
            raise elsewhere
        return content or b""  # which cannot be decoded, and is recorded so

    return Listing(ids, classes, read, [*notes, *more, *([cost] if cost else [])])


def _image_column(schema: Any, where: str, wanted: str | None) -> str:
    pyarrow = import_pyarrow()
    found = [
        field.name
        for field in schema
        if pyarrow.types.is_struct(field.type) and {"bytes", "path"} <= {child.name for child in field.type}
    ]
    if wanted is not None:
        found = [name for name in found if name == wanted]
    if len(found) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        which = f"no column of images called {wanted!r}" if wanted is not None else f"{len(found)} columns of images"
        raise DataError(f"{where}: has {which}, and one is needed; choose it by ?image=COLUMN. The columns are {columns}")
    return str(found[0])


def _ids(paths: Sequence[str | None], rows: int) -> tuple[list[str], list[str]]:
    """The images' own paths where they are good for ids, else row numbers; and a note that says which."""
    own = [path for path in paths if path and not path.startswith("/")]
    if len(own) == rows and len(set(own)) == rows:
        return own, ["ids are the paths of the images in the data set"]
    why = "not unique" if len(own) == rows else "missing or absolute"
    return [f"{row:0{_DIGITS}d}" for row in range(rows)], [f"ids are row numbers: the paths of the images are {why}"]


def _classes(table: Table, where: str, wanted: str | None) -> tuple[list[str | None], list[str]]:
    """Class name of each row, and what people should know about it."""
    pyarrow = import_pyarrow()
    types = {field.name: field.type for field in table.schema}
    named = _class_labels(table.schema)
    column = wanted
    if column is None and len(named) > 1:
        raise DataError(f"{where}: has the labels {', '.join(named)}; choose by ?label=COLUMN")
    if column is None:
        column = next(iter(named), "label" if "label" in types else None)
    if column is None:
        return [None] * table.rows, [f"no labels: no column is called label; ?label=COLUMN takes one of {', '.join(types)}"]
    kind = types.get(column)
    if kind is None or not (pyarrow.types.is_integer(kind) or _is_text(kind)):
        got = "not there" if kind is None else f"{kind}, not integers or text"
        raise DataError(f"{where}: the label {column!r} is {got}; the columns are {', '.join(types)}")
    values, names = table.column(column), named.get(column)
    if names is not None:
        numbers = {value for value in values if value is not None}
        if len(set(names)) < len(names) or not numbers <= set(range(-1, len(names))):
            high = max(numbers, default=-1)
            raise DataError(f"{where}: {column!r} has numbers up to {high}, and {len(set(names))} different names of classes")
        values = [None if value is None or value == -1 else names[value] for value in values]
    classes, notes = class_names(values, where)
    return classes, [f"labels from the column {column}", *notes]


def _is_text(kind: Any) -> bool:
    types = import_pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """Names of classes of the columns of integers that have some, from what datasets wrote into the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    integers = {field.name for field in schema if import_pyarrow().types.is_integer(field.type)}
    return {
        name: [str(one) for one in feature["names"]]
        for name, feature in features.items()
        if name in integers and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, got {type(content).__name__}")
    return content
