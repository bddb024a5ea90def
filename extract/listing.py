"""The images of one split, however they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

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
    """

    ids: Sequence[str]
    class_names: Sequence[str | None]
    read: Callable[[int], bytes]
    notes: Sequence[str] = ()


def only_images(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names with the suffix of an image, and notes that count the others."""
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    others = Counter(PurePosixPath(name).suffix or "no suffix" for name in names if not name.lower().endswith(SUFFIXES))
    others.pop(".csv", None)
    notes = [f"{n} files ({suffix}) are not images and are ignored" for suffix, n in sorted(others.items())]
    return images, notes
