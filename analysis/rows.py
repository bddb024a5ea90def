"""Features as the computing here takes them: (n, d), a range of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..store import DiffsslError

CHUNK_BYTES = 1 << 24


class Degenerate(DiffsslError):
    """Features that something is not defined for, or cannot be had of."""


class Rows(Protocol):
    """(n, d) features of which a range of rows can be had: an array, or what reads one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """(m, d) rows, of any real dtype."""


def chunks(features: Rows, width: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[slice]:
    """Ranges that cover the rows, of so many bytes (at least a row) when ``width`` float64 numbers a row are read."""
    n = features.shape[0]
    step = max(1, chunk_bytes // (8 * width))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def float64(features: Rows, rows: slice) -> NDArray[np.float64]:
    """(m, d) float64 copy of a range of rows."""
    return np.array(features[rows], dtype=np.float64)
