"""Images in uncompressed tars: class folders, or WebDataset samples; one tar, or many that are parts of one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath
from threading import Lock

from ..store.progress import progress_bar
from .archive import Archives, open_archives
from .errors import DataError
from .headers import read_headers, refuse_compressed
from .images import SUFFIXES
from .listing import SPLITS, Listing, ignored_files
from .webdataset import LABEL_FILES, Shard, are_samples, in_shards, list_samples, read_shard

FOLDERS, SAMPLES = "tar", "wds"  # how tars can be read, as it is written before their names

_THREADS = 8  # hides the latency of shared storage


def list_tars(paths: Sequence[str], where: str, kind: str | None = None) -> Listing:
    """Tars that are one split.

    Args:
        paths: or URLs of the tars, all in folders or all in one bucket.
        where: what was given, for messages.
        kind: ``"tar"`` for class folders, ``"wds"`` for WebDataset samples, None to see what they are.

    Raises:
        DataError: with what is wrong and the way out.
    """
    shards, archives, samples = _read(paths, where, kind)
    if samples:
        return list_samples(shards, archives, where)
    shards, notes = _without_common_folder(shards, where)
    return _listing(shards, archives, where, notes + _others(shards))


def list_tar_splits(path: str) -> dict[str, Listing]:
    """Splits inside one tar: top folders named train, val, test; else the one split "all". Raises ``DataError``."""
    shards, archives, samples = _read([path], path, None)
    tops = {name.split("/", 1)[0] for name in shards[0].names}
    if samples:
        own = sorted(tops & set(SPLITS))
        if len(own) > 1:
            raise DataError(
                f"{path}: has WebDataset samples in its folders {' and '.join(own)}; make a tar of each, or write wds:{path} "
                "for one split of all"
            )
        return {"all": list_samples(shards, archives, path)}
    notes = _others(shards)
    if not tops & set(SPLITS):
        shards, more = _without_common_folder(shards, path)
        notes += more
    shard = shards[0]
    by_split: dict[str, list[int]] = {}
    stray: list[str] = []
    for i, name in enumerate(shard.names):
        top, _, rest = name.partition("/")
        if top in SPLITS and "/" in rest:
            by_split.setdefault(top, []).append(i)
        else:
            stray.append(name)
    if not by_split:
        return {"all": _listing(shards, archives, path, notes)}
    if stray:
        raise DataError(f"{path}: has images outside its folders train, val and test (such as {stray[0]!r})")
    parts = {split: _below(shard, rows) for split, rows in sorted(by_split.items())}
    return {split: _listing([part], archives, path, notes) for split, part in parts.items()}


def _read(paths: Sequence[str], where: str, kind: str | None) -> tuple[list[Shard], Archives, bool]:
    """The images of tars, the archives to read them from, and whether they are WebDataset samples."""
    for path in paths:
        refuse_compressed(path)
        if not path.endswith(".tar"):
            folder = path.rpartition("/")[0] or "."
            raise DataError(f"{path}: is not a .tar; give one, or a pattern of many, such as '{folder}/*.tar'")
    archives = open_archives(paths)
    lock = Lock()
    labelled = kind != FOLDERS
    with (
        progress_bar(sum(map(archives.size, range(len(paths)))), "B", "list", delay=2) as bar,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="diffssl-list") as pool,
    ):
        bar.unit_scale = True

        def progress(n_bytes: int) -> None:
            with lock:
                bar.update(n_bytes)

        def read(number: int) -> Shard:
            members = read_headers(archives, number, LABEL_FILES if labelled else {}, progress)
            return read_shard(paths[number], members, labelled)

        shards = list(pool.map(read, range(len(paths))))
    if not any(shard.names for shard in shards):
        raise DataError(f"{where}: no images found; known suffixes are {', '.join(SUFFIXES)}")
    return shards, archives, kind == SAMPLES or (kind is None and are_samples(shards, where))


def _others(shards: Sequence[Shard]) -> list[str]:
    """Notes about the files that are no images."""
    others: Counter[str] = Counter()
    for shard in shards:
        for suffix, count in shard.others.items():
            others[suffix if suffix == "no suffix" else f".{suffix.rpartition('.')[2]}"] += count
    return ignored_files(others)


def _below(shard: Shard, rows: Sequence[int]) -> Shard:
    """Some images of a shard, named below their top folder."""
    names = [shard.names[i].split("/", 1)[1] for i in rows]
    return replace(shard, names=names, spans=shard.spans[list(rows)])


def _without_common_folder(shards: list[Shard], where: str) -> tuple[list[Shard], list[str]]:
    """Images named below the one folder above all class folders, if there is one, and a note that says so.

    ``train/airplane/1.jpg`` becomes ``airplane/1.jpg``, so that a tar of a folder has the ids of the folder.
    """
    tops = {name.split("/", 1)[0] for shard in shards for name in shard.names}
    if len(tops) > 1 or any(name.count("/") < 2 for shard in shards for name in shard.names):
        return shards, []
    below = [_below(shard, range(len(shard.names))) for shard in shards]
    return below, [f"ids are the names below {min(tops)}/ in {PurePosixPath(where).name}"]


def _listing(shards: Sequence[Shard], archives: Archives, where: str, notes: Sequence[str]) -> Listing:
    names = [name for shard in shards for name in shard.names]
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        raise DataError(f"{where}: has images beside class folders (such as {flat[0]!r}, {len(flat)} in all)")
    if flat:
        notes = [*notes, "no labels: they come from class folders in the tar, never from a table in it"]
    folders = {name: name for name in {name.split("/", 1)[0] for name in names}}  # one object a class
    classes = [None if flat else folders[name.split("/", 1)[0]] for name in names]
    return Listing(names, classes, in_shards(shards, archives), notes)
