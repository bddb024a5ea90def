"""Listings of many images, kept in the cache folder, so that a restart does not list them again.

A kept listing is a file of NumPy arrays (``.npz``): nothing in it is ever unpickled. It holds the images in row order and
the stamps of all that it was made from, and is used as long as these are the same. Whatever is wrong with the file, the
images are listed again.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL
from .archive import open_archives
from .listing import Listing
from .readers import Pieces, WholeFiles
from .stamps import Stamp, stamps_of
from .zoo import cache_folder

FORMAT = 1
FEWEST = 10_000  # images; fewer are listed in no time

# A change in the same tick of the file system's clock as the one before it leaves no trace.
_SETTLED_NS = 2_000_000_000

_Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """What was to be listed.

    Attributes:
        name: as given, but with the full path.
        labels: full path of the CSV, if there is one.
        tars: what a pattern names.
    """

    name: str
    labels: str | None
    tars: Sequence[str]

    @property
    def file(self) -> Path:
        """Where the listing is kept."""
        name = blake2b(json.dumps([self.name, self.labels]).encode(), digest_size=16).hexdigest()
        return cache_folder() / "listings" / f"{name}.npz"


def recall(source: Source) -> tuple[dict[str, Listing] | None, str]:
    """The listing that was kept of a source, or None if there is none that holds; and a line about it.

    Raises:
        StoreError: the object storage does not answer.
    """
    try:
        with source.file.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != FORMAT:
                return None, f"{source.file} is of another version: listed again"
            when = datetime.fromtimestamp(about["listed"]).strftime("%Y-%m-%d %H:%M")
            stamps = {place: tuple(stamp) for place, stamp in about["stamps"].items()}
            changed = _changed(source, about, stamps)
            if changed:
                return None, f"{changed} changed since the listing of {when}: listed again"
            splits = enumerate(about["splits"].items())
            found = {split: _unpacked(f"{i}/", own, arrays, stamps) for i, (split, own) in splits}
    except FileNotFoundError:
        return None, ""
    except (OSError, BadZipFile, EOFError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        return None, f"the kept listing {source.file} is damaged ({error}): listed again"
    images = sum(len(listing.ids) for listing in found.values())
    return found, f"listing kept from {when}, {images} images; --relist lists again"


def keep(source: Source, found: Mapping[str, Listing], seen: Mapping[str, Stamp], started_ns: int) -> str:
    """Keep a listing, if it is of many images in row order.

    Args:
        source: what was listed.
        found: the images by split, in row order.
        seen: stamps of what was looked at, archives apart, taken before it was.
        started_ns: when the listing started.

    Returns:
        A line that says why it was not kept; empty if it was, or if nobody cares.
    """
    if sum(len(listing.ids) for listing in found.values()) < FEWEST:
        return ""
    stamps = dict(seen)
    arrays: dict[str, NDArray[Any]] = {}
    splits: dict[str, Any] = {}
    for i, (split, listing) in enumerate(found.items()):
        packed = _packed(listing)
        if packed is None:
            return ""
        splits[split], own = packed
        arrays |= {f"{i}/{name}": array for name, array in own.items()}
        stamps |= listing.read.archives.stamps if isinstance(listing.read, Pieces) else {}
    fresh = [place for place, stamp in stamps.items() if _is_fresh(stamp, started_ns)]
    if fresh:
        return f"the listing is not kept, since {fresh[0]} has just changed"
    about = {"format": FORMAT, **asdict(source), "listed": time.time(), "stamps": stamps, "splits": splits}
    try:
        _write(source.file, {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays})
    except OSError as error:
        return f"the listing cannot be kept ({error})"
    return ""


def _is_fresh(stamp: Stamp, started_ns: int) -> bool:
    """Whether a file or folder (which have three numbers, objects two) changed shortly before it was listed, or after."""
    return len(stamp) == len(("inode", "bytes", "time")) and int(stamp[-1]) > started_ns - _SETTLED_NS


def _changed(source: Source, about: Mapping[str, Any], stamps: Mapping[str, Stamp]) -> str:
    """What is not as it was when the source was listed; empty if all is."""
    if about["tars"] != list(source.tars):
        return "what the pattern names"
    try:
        now = stamps_of(stamps)
    except OSError as error:
        return str(error.filename)
    return next((place for place, stamp in stamps.items() if now[place] != stamp), "")


def _packed(listing: Listing) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """A listing as JSON and arrays; None if it cannot be."""
    if not listing.in_order or not isinstance(listing.read, WholeFiles | Pieces):
        return None
    classes = sorted({name for name in listing.class_names if name is not None})
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([NO_LABEL if name is None else number[name] for name in listing.class_names], dtype=np.int32)
    texts = {"ids": listing.ids}
    about: dict[str, Any] = {"classes": classes, "notes": list(listing.notes), "images": len(listing.ids)}
    arrays: dict[str, NDArray[Any]] = {"labels": labels}
    if isinstance(listing.read, Pieces):
        about["archives"] = list(listing.read.archives.paths)
        arrays |= {"numbers": listing.read.numbers, "spans": listing.read.spans}
    else:
        about["root"] = str(listing.read.root.absolute())
        if listing.read.names != listing.ids:
            texts["names"] = listing.read.names
    for name, values in texts.items():
        text = "\0".join(values)
        if text.count("\0") != len(values) - 1:
            return None
        arrays[name] = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    return about, arrays


def _unpacked(prefix: str, about: Mapping[str, Any], arrays: _Arrays, stamps: Mapping[str, Stamp]) -> Listing:
    """The listing of :func:`_packed`. Raises ``ValueError`` and others where something does not fit."""
    n = about["images"]
    names: list[str | None] = [*about["classes"], None]
    labels = arrays[f"{prefix}labels"]
    ids = _texts(arrays[f"{prefix}ids"], n)
    if labels.shape != (n,) or (n and not -1 <= labels.min() <= labels.max() < len(names) - 1):
        raise ValueError("labels do not fit")
    read: WholeFiles | Pieces
    if "archives" in about:
        numbers, spans, paths = arrays[f"{prefix}numbers"], arrays[f"{prefix}spans"], about["archives"]
        if numbers.shape != (n,) or spans.shape != (n, 2) or not 0 <= numbers.min() <= numbers.max() < len(paths):
            raise ValueError("places in archives do not fit")
        read = Pieces(open_archives(paths, {path: stamps[path] for path in paths}), numbers, spans)
    else:
        own = f"{prefix}names"
        read = WholeFiles(Path(about["root"]), _texts(arrays[own], n) if own in arrays else ids)
    return Listing(ids, [names[label] for label in labels.tolist()], read, about["notes"], in_order=True)


def _texts(raw: NDArray[np.uint8], n: int) -> list[str]:
    texts = raw.tobytes().decode("utf-8", "surrogatepass").split("\0")
    if len(texts) != n:
        raise ValueError(f"{len(texts)} names of {n}")
    return texts


def _write(path: Path, arrays: _Arrays) -> None:
    """Write a file that appears whole or not at all, however many processes do so. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
