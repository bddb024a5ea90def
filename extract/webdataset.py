"""WebDataset shards: tars whose files belong together by their key, the path up to the first dot of the file's name.

``0001.jpg``, ``0001.cls`` and ``0001.json`` are one sample with the key ``0001``. Labels come from ``.cls``, or from the field
``label``, ``cls`` or ``class`` of ``.json``; captions (``.txt``) and everything else are never labels.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .archive import Archives
from .errors import DataError
from .headers import Members
from .images import SUFFIXES
from .labels import class_names
from .listing import Listing
from .readers import Pieces

LABEL_FILES = {".cls": 1 << 12, ".json": 1 << 24}  # suffix -> most bytes

_FIELDS = ("label", "cls", "class")
_INTEGER = re.compile(r"-?\d+", re.ASCII)

Label = int | str | None


@dataclass(frozen=True)
class Shard:
    """The images of one tar, and what lies beside them.

    Attributes:
        path: or URL of the tar.
        names: (n,) of the images.
        spans: (n, 2) int64, offset and size of each.
        labels: (n,) from the files beside the images; None for none.
        label_source: where all of these labels are from: ``.cls``, or a field of ``.json``; None without labels.
        accompanied: how many images have another file of their key.
        others: suffix of the files that are neither, however long -> how many.
    """

    path: str
    names: list[str]
    spans: NDArray[np.int64]
    labels: list[Label]
    label_source: str | None
    accompanied: int
    others: Mapping[str, int]


def key_of(name: str) -> tuple[str, str]:
    """Key of a file of a shard, and its suffix: all from the first dot of its own name, in small letters."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{suffix.lower()}"


def read_shard(path: str, members: Members, labelled: bool = True) -> Shard:
    """Sort a tar's files into images and what lies beside them, and read the labels there are.

    Args:
        path: or URL of the tar.
        members: of the tar, with the contents of ``LABEL_FILES``.
        labelled: whether to read labels.

    Raises:
        DataError: a file of a label cannot be understood.
    """
    images = [i for i, name in enumerate(members.names) if name.lower().endswith(SUFFIXES)]
    keys = {key_of(members.names[i])[0] for i in images} if len(images) < len(members.names) else set()
    beside: dict[str, dict[str, bytes | int]] = {suffix: {} for suffix in LABEL_FILES}
    accompanied: set[str] = set()
    others: Counter[str] = Counter()
    for i, name in enumerate(members.names):
        if name.lower().endswith(SUFFIXES):
            continue
        key, suffix = key_of(name)
        if key in keys:
            accompanied.add(key)
        if labelled and key in keys and suffix in beside:
            if key in beside[suffix]:
                raise DataError(f"{path}: {name!r} is there twice; make the tar anew")
            beside[suffix][key] = members.contents.get(i, int(members.spans[i, 1]))
        else:
            others[suffix or "no suffix"] += 1
    labels, source = _labels(path, beside)
    for suffix, contents in beside.items():
        if contents and not (source or "").startswith(suffix):
            others[suffix] += len(contents)
    names = [members.names[i] for i in images]
    mine = [labels.get(key_of(name)[0]) if labels else None for name in names]
    return Shard(path, names, members.spans[images], mine, source, len(accompanied), others)


def are_samples(shards: Sequence[Shard], where: str) -> bool:
    """Whether tars are WebDataset shards, by what lies beside their images; else they are folders of images.

    Raises:
        DataError: they can be read either way, with different ids and labels.
    """
    if any(shard.label_source == ".cls" for shard in shards):
        return True
    if not any(shard.accompanied for shard in shards):
        return False
    if any("/" not in name for shard in shards for name in shard.names):
        return True
    example = next(name for shard in shards for name in shard.names)
    raise DataError(
        f"{where}: has images in folders (such as {example!r}) with files beside them; write tar:{where} if the folders are "
        f"classes, wds:{where} if they are WebDataset samples"
    )


def list_samples(shards: Sequence[Shard], archives: Archives, where: str) -> Listing:
    """The samples of shards, which are one split.

    Args:
        shards: in the order of ``archives``.
        archives: to read from.
        where: what was given, for messages.

    Raises:
        DataError: a sample has several images, a name leads out of the archive, or labels are of several kinds.
    """
    shards = [_by_key(shard) for shard in shards]
    names = [shard.names for shard in shards]
    notes = ["are WebDataset samples: ids are keys"]
    if len({key for keys in names for key in keys}) < sum(map(len, names)):
        paths = [PurePosixPath(shard.path) for shard in shards]
        above = os.path.commonpath([path.parent for path in paths])
        prefixes = [path.relative_to(above).with_suffix("").as_posix() for path in paths]
        names = [[f"{prefix}/{key}" for key in keys] for prefix, keys in zip(prefixes, names, strict=True)]
        notes = [f"are WebDataset samples whose keys repeat over shards: ids are {prefixes[0]}/KEY and so on"]
    labels, more = _all_labels(shards, where)
    others: Counter[str] = Counter()
    for shard in shards:
        others.update(shard.others)
    ignored = [f"{others.pop('.txt')} captions (.txt) are not labels and are ignored"] if ".txt" in others else []
    ignored += [f"{n} files ({suffix}) are ignored" for suffix, n in sorted(others.items())]
    return Listing([key for keys in names for key in keys], labels, in_shards(shards, archives), [*notes, *more, *ignored])


def in_shards(shards: Sequence[Shard], archives: Archives) -> Pieces:
    """A reader of the i-th image of all shards."""
    counts = [len(shard.names) for shard in shards]
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    return Pieces(archives, numbers, np.concatenate([shard.spans for shard in shards]))


def _by_key(shard: Shard) -> Shard:
    """The shard with keys for names, and with images of a longer suffix (``0001.seg.png``) among the other files."""
    others = Counter(shard.others)
    places: dict[str, int] = {}
    longer: list[str] = []
    for i, name in enumerate(shard.names):
        key, suffix = key_of(name)
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{shard.path}: {name!r} leads out of the archive; archive the images by relative names")
        if suffix not in SUFFIXES:
            others[suffix] += 1
            longer.append(name)
        elif key in places:
            first = shard.names[places[key]]
            raise DataError(f"{shard.path}: the sample {key!r} has two images, {first!r} and {name!r}; a sample has one")
        else:
            places[key] = i
    alone = [name for name in longer if key_of(name)[0] not in places]
    if alone:
        raise DataError(
            f"{shard.path}: {len(alone)} images (such as {alone[0]!r}) belong to no sample: a key ends at the first dot, and "
            f"{key_of(alone[0])[1]} is no image's suffix. Rename them"
        )
    kept = list(places.values())
    labels = [shard.labels[i] for i in kept]
    return replace(shard, names=list(places), spans=shard.spans[kept], labels=labels, others=others)


def _all_labels(shards: Sequence[Shard], where: str) -> tuple[list[str | None], list[str]]:
    sources = {shard.label_source: shard.path for shard in shards if shard.label_source}
    if len(sources) > 1:
        (one, here), (two, there) = list(sources.items())[:2]
        raise DataError(f"{where}: labels come from {one} in {here}, but from {two} in {there}; use one for all shards")
    source = next(iter(sources), None)
    labels, notes = class_names([label for shard in shards for label in shard.labels], where)
    return labels, [f"labels from {source}", *notes] if source else notes


def _labels(path: str, beside: Mapping[str, Mapping[str, bytes | int]]) -> tuple[dict[str, Label], str | None]:
    """Labels by key, and where they are from: ``.cls`` if there is one, else the first field that a ``.json`` has.

    Args:
        path: of the tar.
        beside: suffix -> key -> content, or the size of what is too large to be a label.
    """
    suffix = ".cls" if beside[".cls"] else ".json"
    labels: dict[str, Label] = {}
    field: str | None = None
    for key, raw in beside[suffix].items():
        where = f"{path}, {key}{suffix}"
        if isinstance(raw, int):
            raise DataError(f"{where}: has {raw} bytes, more than a label has ({LABEL_FILES[suffix]})")
        try:
            text = raw.decode("utf-8-sig").strip()
            content = json.loads(text) if suffix == ".json" else None
        except ValueError as error:
            raise DataError(f"{where}: is not {'JSON' if suffix == '.json' else 'text'} in UTF-8 ({error})") from error
        if suffix == ".cls":
            labels[key] = int(text) if _INTEGER.fullmatch(text) else text
        elif isinstance(content, dict):
            field = field or next((name for name in _FIELDS if name in content), None)
            labels[key] = _checked(content.get(field) if field else None, where)
    if suffix == ".cls":
        return labels, ".cls" if labels else None
    return labels, f".json (field {field!r})" if field else None


def _checked(value: object, where: str) -> Label:
    if isinstance(value, bool) or not (value is None or isinstance(value, (int, str))):
        raise DataError(f"{where}: a label is an integer or a name, got {value!r}")
    return value
