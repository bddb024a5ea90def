"""Images listed in a JSONL manifest: one object a line, with a path and, if wanted, a label, a split and an id."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any

from ..store.progress import progress_bar
from .errors import DataError
from .folders import missing_files
from .labels import class_names
from .listing import Listing, is_split_name
from .readers import WholeFiles
from .stamps import Stamp, local_stamp

_FIELDS = ("path", "label", "split", "id")


@dataclass
class _Split:
    """The lines of one split, a column each; ``ids`` has the very objects of ``paths`` where a line has no id."""

    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))


def list_manifest(path: Path, seen: dict[str, Stamp]) -> dict[str, Listing]:
    """The splits of a manifest; the one split "all" if no line has a split.

    A line is ``{"path": …, "label": …, "split": …, "id": …}``, of which only the path must be there. Relative paths are below
    the folder of the manifest; without an id, the path as it is written is the id; either all lines have a label (or a split)
    or none has. Other fields are ignored, and named in a note.

    Args:
        path: of the manifest.
        seen: gets its stamp.

    Raises:
        DataError: with the number of the line that is wrong, or what is missing.
    """
    seen[str(path)] = local_stamp(path.stat())
    splits: dict[str, _Split] = {}
    ids: dict[str, set[str]] = {}
    extra: set[str] = set()
    given: dict[str, bool] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        entry = _entry(line, where)
        extra |= entry.keys() - set(_FIELDS)
        for name in ("label", "split"):
            if given.setdefault(name, name in entry) != (name in entry):
                has, had = ("has a", "had none") if name in entry else ("has no", "had one")
                raise DataError(f"{where}: {has} {name!r}, and the lines before {had}; all lines have one, or none has")
        name = intern(entry.get("split", "all"))
        split = splits.setdefault(name, _Split())
        sample = entry.get("id", entry["path"])
        if sample in ids.setdefault(name, set()):
            raise DataError(f"{where}: an earlier line of the split {name!r} has the id {sample!r}; ids must be unique")
        ids[name].add(sample)
        label = entry.get("label")
        split.paths.append(entry["path"])
        split.ids.append(sample)
        split.labels.append(intern(label) if isinstance(label, str) else label)
        split.numbers.append(number)
    if not splits:
        raise DataError(f'{path}: has no lines; a line is {{"path": …}}')
    notes = [f"the fields {', '.join(sorted(extra))} of {path.name} are ignored"] if extra else []
    return {name: _listing(path, split, notes) for name, split in splits.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with something on them, and their numbers."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file, progress_bar(size, "B", "read the manifest", delay=2) as bar:
            bar.unit_scale = True
            for number, raw in enumerate(file, start=1):
                bar.update(len(raw))
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {number}: is not UTF-8 ({error})") from error
                if line:
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _entry(line: str, where: str) -> Mapping[str, Any]:
    """The fields of a line, without those that are null. Raises ``DataError``."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise DataError(f'{where}: expected an object such as {{"path": …}}, got {line[:40]!r}')
    entry = {name: value for name, value in entry.items() if value is not None}
    for name in ("path", "split", "id"):
        value = entry.get(name, "-")
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: {name!r} must be text, got {value!r}")
    if "path" not in entry:
        raise DataError(f"{where}: has no 'path', but {', '.join(map(repr, entry)) or 'nothing'}")
    if not is_split_name(entry.get("split", "all")):
        raise DataError(f"{where}: {entry['split']!r} cannot be the name of a split; use letters, digits, - and _")
    label = entry.get("label", 0)
    if isinstance(label, bool) or not isinstance(label, (int, str)) or (isinstance(label, str) and not label.strip()):
        raise DataError(f"{where}: a label is a name or an integer, got {label!r}; leave it out of all lines if there are none")
    return entry


def _listing(path: Path, split: _Split, notes: list[str]) -> Listing:
    root = path.parent
    missing = missing_files(root, split.paths)
    if missing:
        first = missing[0]
        raise DataError(
            f"{path}, line {split.numbers[first]}: there is no file {root / split.paths[first]}, nor for {len(missing) - 1} "
            f"other lines of {len(split.paths)}; relative paths are below {root}"
        )
    names, more = class_names(split.labels, str(path))
    absolute = sum(sample.startswith("/") for sample in split.ids)
    if absolute:
        more.append(
            f"{absolute} ids are absolute paths, which change with the place of the images; write relative paths, or ids"
        )
    return Listing(split.ids, names, WholeFiles(root, split.paths), [*more, *notes])
