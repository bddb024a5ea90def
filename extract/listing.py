"""The images of one split, however they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .images import SUFFIXES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Listing:
    """The images of one split, in any order.

    Attributes:
        ids: sample ids.
        class_names: class name of each, or None.
        read: reads the bytes of the i-th image. Raises ``OSError``.
        notes: what people should know about how the images were listed.
        in_order: the images are in row order, and their ids were checked.
    """

    ids: Sequence[str]
    class_names: Sequence[str | None]
    read: Callable[[int], bytes]
    notes: Sequence[str] = ()
    in_order: bool = False


def named_split(text: str) -> tuple[str | None, str]:
    """``split=rest`` taken apart; (None, text) if there is no split before it, or a file has the whole as its name."""
    name, equals, rest = text.partition("=")
    named = equals and is_split_name(name) and not Path(text).exists()
    return (name, rest) if named else (None, text)


def is_split_name(name: str) -> bool:
    """Whether a split can be called so, non-ASCII letters apart, which are refused by name."""
    return name.replace("-", "").replace("_", "").isalnum()


def only_images(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names with the suffix of an image, and notes that count the others."""
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    others = Counter(PurePosixPath(name).suffix or "no suffix" for name in names if not name.lower().endswith(SUFFIXES))
    return images, ignored_files(others)


def ignored_files(counts: Mapping[str, int]) -> list[str]:
    """Notes about files that are no images, by suffix; tables of labels have notes of their own."""
    return [f"{n} files ({suffix}) are not images and are ignored" for suffix, n in sorted(counts.items()) if suffix != ".csv"]
