"""The commits of a store: which row blocks are there, with which checksums, and which samples were left out.

A commit is one JSON file ``journal/<split>/<row block>-t<timestep>-<digest of the content>.json`` that appears
atomically after all its shards are on disk; that of thumbnails has ``images`` in place of the timestep. Nothing else
marks a row block as present. Several commits may name one row block (two writers, or later settings); a shard is good
if its checksum is in any of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .contract import Storage
from .errors import CorruptStore
from .header import RESTORE
from .identity import canonical_json, digest
from .key import ArrayKey, FeatureKey, ThumbnailKey, array_key
from .layout import JOURNAL
from .rows import LeftOut

_READERS = 16  # hides the latency of a network file system, or of object storage
_PART = 64


@dataclass(frozen=True)
class Commit:
    """One unit of work that is on disk: some arrays of one (split, row block, timestep), or the thumbnails of a row block.

    Attributes:
        split: name of the split.
        row_block: number of the row block.
        timestep: the timestep, or None for an encoder without and for thumbnails.
        arrays: path of a setting or of thumbnails -> checksum of each of the row block's shards, in order.
        left_out: row number in the split -> sample that could not be decoded, with the reason.
        limit: the run was asked for the first ``limit`` rows of the split; None for all.
        command: command line of the run that wrote it, so that an error can name what completes the store.
        versions: versions and device of the writer.
    """

    split: str
    row_block: int
    timestep: int | None
    arrays: Mapping[str, list[str]]
    left_out: Mapping[int, LeftOut] = field(default_factory=dict)
    limit: int | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON value of the commit; thumbnails have a field of their own, which readers of features pass over."""
        images = {path: sums for path, sums in self.arrays.items() if isinstance(array_key(path), ThumbnailKey)}
        return {
            "split": self.split,
            "row_block": self.row_block,
            "timestep": self.timestep,
            "arrays": {path: sums for path, sums in self.arrays.items() if path not in images},
            **({"images": images} if images else {}),
            "left_out": [[row, bad.id, bad.reason] for row, bad in sorted(self.left_out.items())],
            "limit": self.limit,
            "command": self.command,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Commit:
        """Invert :meth:`to_json`; unknown fields are ignored."""
        names = ("split", "row_block", "timestep", "limit", "command", "versions")
        arrays = {**value["arrays"], **value.get("images", {})}
        left_out = {row: LeftOut(name, reason) for row, name, reason in value["left_out"]}
        return cls(**{name: value[name] for name in names}, arrays=arrays, left_out=left_out)

    @property
    def name(self) -> str:
        """File of the commit, named by its content: writing the same commit twice is writing it once."""
        value = self.to_json()
        what = "images" if "images" in value else f"t{'none' if self.timestep is None else self.timestep}"
        return f"{JOURNAL}/{self.split}/{self.row_block:06d}-{what}-{digest(value, 8)}.json"


def larger(limit: int | None, other: int | None) -> int | None:
    """The larger of two limits; None is no limit."""
    return None if limit is None or other is None else max(limit, other)


class Journal:
    """All commits of a store, in memory, by split and array.

    Args:
        storage: of the store.
        unreadable: where to put commits that cannot be read, by name; None to raise instead.
    """

    def __init__(self, storage: Storage, unreadable: dict[str, CorruptStore] | None = None) -> None:
        self._storage = storage
        self._unreadable = unreadable
        self._seen: set[str] = set()
        # split -> array path -> row block -> for each of its shards, the checksums it may have
        self._checksums: dict[str, dict[str, dict[int, list[set[str]]]]] = {}
        self._left_out: dict[str, dict[str, dict[int, LeftOut]]] = {}
        self._wanted: dict[str, dict[str, int | None]] = {}
        self._commands: dict[str, dict[str, str]] = {}

    def refresh(self, splits: Iterable[str]) -> None:
        """Read the commits that appeared since the last call. Raises ``CorruptStore`` for one that cannot be read."""
        splits = list(splits)
        settled = False
        while not settled:
            names = [name for split in splits for name in self.names(split) if name not in self._seen]
            for name, commit in self._read_all(sorted(names)):
                try:
                    self._add(commit)
                except CorruptStore as error:
                    self._pass_over(name, error)
                self._seen.add(name)
            # A commit that was removed between the two calls may have a successor that is not in the list.
            settled = self._seen.issuperset(names)

    def names(self, split: str) -> list[str]:
        """Files of a split's commits as they are now."""
        return [f"{JOURNAL}/{split}/{name}" for name in self._storage.names(f"{JOURNAL}/{split}") if name.endswith(".json")]

    def each(self, split: str) -> Iterator[tuple[str, Commit]]:
        """(file, commit) of a split as they are on disk now, by name. Raises as :meth:`refresh`."""
        return self._read_all(sorted(self.names(split)))

    def write(self, commit: Commit) -> None:
        """Make a commit: everything it names must be on disk by now."""
        self._storage.create(commit.name, canonical_json(commit.to_json()))
        self._seen.add(commit.name)
        self._add(commit)

    def keys(self, split: str) -> list[FeatureKey]:
        """Settings of a split that have at least one commit."""
        return [key for key in self.arrays(split) if isinstance(key, FeatureKey)]

    def thumbnail(self, split: str) -> ThumbnailKey | None:
        """Thumbnails of a split, if they have at least one commit; all commits have one size, which is asked before."""
        return next((key for key in self.arrays(split) if isinstance(key, ThumbnailKey)), None)

    def arrays(self, split: str) -> list[ArrayKey]:
        """All of a split that has at least one commit: settings, sorted, then thumbnails."""
        found = [array_key(path) for path in self._checksums.get(split, {})]
        settings = sorted((key for key in found if isinstance(key, FeatureKey)), key=lambda key: key.order)
        return [*settings, *(key for key in found if isinstance(key, ThumbnailKey))]

    def row_blocks(self, split: str, key: ArrayKey) -> dict[int, list[set[str]]]:
        """Committed row blocks of an array -> for each of their shards, the checksums it may have."""
        return self._checksums.get(split, {}).get(key.path, {})

    def left_out(self, split: str, key: ArrayKey) -> dict[int, LeftOut]:
        """Rows of an array that could not be decoded."""
        return self._left_out.get(split, {}).get(key.path, {})

    def wanted(self, split: str, key: ArrayKey) -> int | None:
        """The first so many rows that runs were asked for; None for all, 0 for an array without commits."""
        return self._wanted.get(split, {}).get(key.path, 0)

    def command(self, split: str, key: ArrayKey) -> str | None:
        """Command line of the newest run that is known to have written the array."""
        return self._commands.get(split, {}).get(key.path)

    def commits(self) -> int:
        """Number of commits read so far."""
        return len(self._seen)

    def _read_all(self, names: Sequence[str]) -> Iterator[tuple[str, Commit]]:
        """Read commits side by side; those that were removed meanwhile are left out."""
        size = max(1, min(_PART, -(-len(names) // _READERS)))
        parts = [names[start : start + size] for start in range(0, len(names), size)]
        with ThreadPoolExecutor(_READERS) as pool:
            for part, commits in zip(parts, pool.map(lambda part: [self._read(name) for name in part], parts), strict=True):
                for name, commit in zip(part, commits, strict=True):
                    if isinstance(commit, CorruptStore):
                        self._pass_over(name, commit)
                    elif commit is not None:
                        yield name, commit

    def _pass_over(self, name: str, error: CorruptStore) -> None:
        if self._unreadable is None:
            raise error
        self._unreadable[name] = error
        self._seen.add(name)

    def _read(self, name: str) -> Commit | CorruptStore | None:
        """A commit, what is wrong with it, or None if it is not there any more."""
        try:
            raw = self._storage.read(name)
        except FileNotFoundError:
            return None
        try:
            value = json.loads(raw)
            if not name.endswith(f"-{digest(value, 8)}.json"):
                raise ValueError("its content is not what its name says")
            return Commit.from_json(value)
        except (ValueError, KeyError, TypeError) as error:
            corrupt = CorruptStore(str(self._storage), f"the commit {name} cannot be read ({error!r}); {RESTORE}")
            corrupt.__cause__ = error
            return corrupt

    def _add(self, commit: Commit) -> None:
        split = commit.split
        for path, checksums in commit.arrays.items():
            blocks = self._checksums.setdefault(split, {}).setdefault(path, {})
            shards = blocks.setdefault(commit.row_block, [set() for _ in checksums])
            if len(shards) != len(checksums):
                raise CorruptStore(
                    str(self._storage),
                    f"commits of row block {commit.row_block} of {split}, {path}, name {len(shards)} and {len(checksums)} "
                    f"shards, the latter {commit.name}; {RESTORE}",
                )
            for known, checksum in zip(shards, checksums, strict=True):
                known.add(checksum)
            self._left_out.setdefault(split, {}).setdefault(path, {}).update(commit.left_out)
            wanted = self._wanted.setdefault(split, {})
            before = wanted.get(path, 0)
            wanted[path] = larger(before, commit.limit)
            if commit.command is not None:
                self._commands.setdefault(split, {})[path] = commit.command
