"""How the bytes of listed images are read, as values that can be kept with a listing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .archive import Archives


@dataclass(frozen=True)
class WholeFiles:
    """Each image is a file.

    Attributes:
        root: folder.
        names: (n,) of the files below it; absolute ones are taken as they are.
    """

    root: Path
    names: Sequence[str]

    def __call__(self, i: int) -> bytes:
        """The bytes of the i-th image. Raises ``OSError``."""
        return (self.root / self.names[i]).read_bytes()

    def take(self, places: Sequence[int]) -> WholeFiles:
        """A reader of some of the images."""
        return replace(self, names=[self.names[i] for i in places])


@dataclass(frozen=True)
class Pieces:
    """Each image is a piece of an archive.

    Attributes:
        archives: to read from.
        numbers: (n,) int32, which archive.
        spans: (n, 2) int64, offset and size in it.
    """

    archives: Archives
    numbers: NDArray[np.int32]
    spans: NDArray[np.int64]

    def __call__(self, i: int) -> bytes:
        """The bytes of the i-th image. Raises ``OSError``."""
        return self.archives.read(int(self.numbers[i]), int(self.spans[i, 0]), int(self.spans[i, 1]))

    def take(self, places: Sequence[int]) -> Pieces:
        """A reader of some of the images."""
        return replace(self, numbers=self.numbers[list(places)], spans=self.spans[list(places)])
