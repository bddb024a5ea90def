from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from diffssl.analysis import pieces
from diffssl.analysis.pieces import read_pieces, read_rows
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 4)


@pytest.mark.parametrize("size", [1, 5 * 256, 1 << 24])
@pytest.mark.parametrize("rows", [range(150), range(3, 4), range(60, 149), range(0)])
def test_pieces_are_all_rows(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, size: int, rows: range) -> None:
    """Rows have 256 bytes: pieces of one row, of four, of a row block."""
    monkeypatch.setattr(pieces, "_BYTES", size)
    store = make_store({"all": 150}, [KEY], left_out={KEY: ["c00/all-00004.png"]})
    found = list(read_pieces(store, KEY, "all", rows))
    left = [row for row in rows if row not in store.journal.left_out("all", KEY)]
    assert [row for numbers, _ in found for row in numbers] == left
    assert all(values.nbytes <= max(2 * size, 512) for _, values in found)
    if left:
        values = np.concatenate([values for _, values in found])
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, store.read(KEY, "all")[left].astype(np.float32))


def test_rows_in_the_order_given(make_store: MakeStore) -> None:
    store = make_store({"all": 100}, [KEY])
    np.testing.assert_array_equal(read_rows(store, KEY, "all", [7, 3, 99]), store.read(KEY, "all")[[7, 3, 99]])
