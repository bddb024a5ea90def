"""Ranges of rows and float64 copies of them."""

from __future__ import annotations

import numpy as np
import pytest
from diffssl.analysis.rows import chunks, float64


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 5 * 4, 8 * 5 * 100])
def test_chunks_cover_the_rows_in_order(chunk_bytes: int) -> None:
    ranges = list(chunks(np.zeros((13, 2)), 5, chunk_bytes))
    assert [row for one in ranges for row in range(one.start, one.stop)] == list(range(13))
    assert {one.stop - one.start for one in ranges[:-1]} <= {max(1, chunk_bytes // 40)}


def test_float64_is_a_copy() -> None:
    x = np.ones((4, 2))
    float64(x, slice(1, 3))[...] = 0
    assert x.sum() == 8
    assert float64(x.astype(np.float16), slice(0, 1)).dtype == np.float64
