"""What is read by ranges of rows, as a Dask array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array
import numpy as np
from numpy.typing import NDArray


def lazy_array(
    read: Callable[[slice], NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any], rows_a_chunk: int
) -> dask.array.Array:
    """A Dask array of what ``read`` gives for a range of rows; its chunks are so many whole rows.

    Args:
        read: called with a range of rows, gives (n, ...) of them.
        shape: (rows, ...) of all.
        dtype: of all.
        rows_a_chunk: of all chunks but the last.
    """
    chunks = (rows_a_chunk, *shape[1:])
    array: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        _Ranges(read, shape, dtype), chunks=chunks, asarray=False, lock=False, name=False
    )
    return array


@dataclass(frozen=True)
class _Ranges:
    """What dask.array.from_array needs of an array."""

    read: Callable[[slice], NDArray[Any]]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        # dask merges what is done to the array into the index: numbers, steps and lists of rows arrive here
        rows, *rest = index
        numbers = np.arange(self.shape[0])[rows]
        first = int(numbers.min(initial=self.shape[0]))
        values = self.read(slice(first, int(numbers.max(initial=first - 1)) + 1))
        values = values[numbers - first]
        part: NDArray[Any] = values[tuple(rest)] if numbers.ndim == 0 else values[(slice(None), *rest)]
        return part
