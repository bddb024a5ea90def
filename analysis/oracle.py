"""The few settings of many of which most often one is right: bits of hits, combined and counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_BYTES = 1 << 22  # of combined words at a time; larger pieces leave the processor's cache


def best_of_all(hits: NDArray[np.bool_], size: int) -> list[int]:
    """The pair or triple with most rows that at least one gets right, by trying all; of equals, the first.

    Args:
        hits: (S, n); S is at least ``size``.
        size: 2 or 3. S^3 / 6 triples of n / 64 words are counted.
    """
    if size not in (2, 3) or len(hits) < size:
        raise ValueError(f"there are pairs and triples of at least as many settings, got {size} of {len(hits)}")
    words = _packed(hits)
    if size == 2:
        return list(_best_pair(words, np.zeros_like(words[0]))[1])
    best, found = -1, [0, 1, 2]
    for first in range(len(words) - 2):
        rows, pair = _best_pair(words[first + 1 :], words[first])
        if rows > best:
            best, found = rows, [first, *(first + 1 + number for number in pair)]
    return found


def best_with(hits: NDArray[np.bool_], chosen: Sequence[int]) -> list[int]:
    """Some settings of (S, n) hits and the one more that adds most rows that none of them gets right."""
    added = (hits & ~hits[list(chosen)].any(axis=0)).sum(axis=1)
    added[list(chosen)] = -1
    return [*chosen, int(added.argmax())]


def _best_pair(words: NDArray[np.uint64], given: NDArray[np.uint64]) -> tuple[int, tuple[int, int]]:
    """Most bits that are set in ``given`` (W,) or one of two rows of ``words`` (S, W), and which two these are."""
    best, found = -1, (0, 1)
    step = max(1, _MOST_BYTES // (words.itemsize * words.shape[1]))
    for first in range(len(words) - 1):
        start = words[first] | given
        for begin in range(first + 1, len(words), step):
            rows = np.bitwise_count(words[begin : begin + step] | start).sum(axis=1, dtype=np.int64)
            place = int(rows.argmax())
            if rows[place] > best:
                best, found = int(rows[place]), (first, begin + place)
    return best, found


def _packed(hits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(S, n) hits as (S, ceil(n / 64)) words; bits beyond the last row are zero."""
    padded = np.pad(hits, ((0, 0), (0, -hits.shape[1] % 64)))
    return np.ascontiguousarray(np.packbits(padded, axis=1)).view(np.uint64)
