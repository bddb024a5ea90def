"""Removing settings from a store: their commits first, so that a kill at any moment leaves no reader with half of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .choice import Choice, choose, matching
from .errors import UnknownFeatures
from .feature_store import FeatureStore
from .forget import forget
from .key import ArrayKey, FeatureKey, ThumbnailKey
from .layout import JOURNAL, ROOT
from .progress import progress_bar
from .shard import shard_file_bytes

_REMOVERS = 16  # hides the latency of a network file system
_PART = 1024
_SHARD = re.compile(r"c\.(\d+)\.0\.0\.0")


@dataclass(frozen=True)
class Dropping:
    """What will be removed.

    Attributes:
        keys: split -> settings, or thumbnails.
        shards: files of shards.
        bytes: of those files, as long as they are whole.
    """

    keys: Mapping[str, Sequence[ArrayKey]]
    shards: Sequence[str]
    bytes: int

    @property
    def arrays(self) -> int:
        """Number of arrays."""
        return sum(map(len, self.keys.values()))


def plan_drop(store: FeatureStore, choice: Choice) -> Dropping:
    """Find what a choice means, with what a drop that was killed has left; change nothing.

    Raises:
        UnknownFeatures: there is nothing of that name; with what there is.
    """
    there = {split: sorted({*store.folders(split), *store.keys(split)}, key=lambda key: key.order) for split in store.splits}
    keys = matching(store, choice, there)
    # A drop that was killed at its end has removed some of its settings whole, and the others have no commits any more.
    killed = any(keys.values()) and not any(key in store.keys(split) for split, own in keys.items() for key in own)
    keys = keys if killed else choose(store, choice, there)
    if not any(keys.values()):
        raise UnknownFeatures(store.path, f"there are no settings to drop in {', '.join(keys)}")
    return _dropping(store, keys)


def plan_drop_thumbnails(store: FeatureStore, splits: Sequence[str] | None) -> Dropping:
    """As :func:`plan_drop`, for the thumbnails of some splits; None for all. Raises ``UnknownFeatures`` without any."""
    there = choose(store, Choice(splits=splits), dict.fromkeys(store.splits, ()))
    keys = {split: [key] for split in there if (key := store.thumbnail(split)) is not None}
    if not keys:
        raise UnknownFeatures(store.path, f"there are no thumbnails to drop in {', '.join(there)}")
    return _dropping(store, keys)


def _dropping(store: FeatureStore, keys: Mapping[str, Sequence[ArrayKey]]) -> Dropping:
    shards = []
    n_bytes = 0
    for split, own in keys.items():
        for key in own:
            layout = store.layout(key, split)
            numbers = _shard_numbers(store, f"{split}/{key.array}")
            shards += [layout.shard_name(f"{split}/{key.array}", number) for number in numbers]
            n_bytes += sum(shard_file_bytes(layout, number) for number in numbers)
    return Dropping(keys, shards, n_bytes)


def drop(store: FeatureStore, plan: Dropping) -> None:
    """Carry out a plan: commits, then shards, then documents and, where there are such, empty folders.

    Killed at any moment, the settings are either whole, or gone for every reader and removed by the same drop again.
    Rows of a split stay, whatever is dropped of it. The store must be opened anew to see the difference.
    """
    groups = _empty_groups(store, plan)
    arrays = [f"{folder}/{ROOT}" for folder in _folders(plan)]  # last: by them, a drop after a kill finds what is left
    commits = sum(len(store.journal.names(split)) for split, own in plan.keys.items() if own)
    with progress_bar(commits + len(plan.shards) + len(groups) + len(arrays), " files", "drop") as bar:
        for split, own in plan.keys.items():
            if own:
                forget(store, split, {key.path: None for key in own}, bar.update)
        for names in (plan.shards, groups, arrays):
            _remove(store, names, bar.update)
    for folder in [*_folders(plan), *(f"{JOURNAL}/{split}" for split in plan.keys)]:
        store.storage.prune(folder)


def _folders(plan: Dropping) -> list[str]:
    return [f"{split}/{key.array}" for split, own in plan.keys.items() for key in own]


def _empty_groups(store: FeatureStore, plan: Dropping) -> list[str]:
    """Documents of the groups of blocks and pools, and of images, that will have no arrays."""
    documents = []
    for split, own in plan.keys.items():
        settings = [key for key in own if isinstance(key, FeatureKey)]
        for depth in (2, 1):
            kept = {key.array.rsplit("/", depth)[0] for key in store.folders(split) if key not in own}
            gone = dict.fromkeys(key.array.rsplit("/", depth)[0] for key in settings)
            documents += [f"{split}/{group}/{ROOT}" for group in gone if group not in kept]
        images, _, thumbnail = ThumbnailKey.array.rpartition("/")
        if len(own) > len(settings) and store.storage.folders(f"{split}/{images}") == [thumbnail]:
            documents.append(f"{split}/{images}/{ROOT}")
    return documents


def _shard_numbers(store: FeatureStore, array: str) -> list[int]:
    """Numbers of the shards that are in an array's folder, committed or not."""
    names = map(_SHARD.fullmatch, store.storage.names(array))
    return sorted(int(match[1]) for match in names if match is not None)


def _remove(store: FeatureStore, names: Sequence[str], progress: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(_REMOVERS) as pool:
        for start in range(0, len(names), _PART):
            part = names[start : start + _PART]
            list(pool.map(store.storage.remove, part))
            progress(len(part))
