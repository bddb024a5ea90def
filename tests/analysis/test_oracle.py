"""Best pairs and triples against trying them one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from diffssl.analysis import oracle
from diffssl.analysis.oracle import best_of_all, best_with
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


def rows_right(hits: NDArray[np.bool_], chosen: tuple[int, ...]) -> int:
    return int(hits[list(chosen)].any(axis=0).sum())


@given(st.integers(3, 9), st.integers(1, 140), st.sampled_from([0.02, 0.3, 0.9]), st.integers(0, 2**32 - 1), st.booleans())
def test_the_best_is_that_of_trying_all(settings: int, n: int, accuracy: float, seed: int, transposed: bool) -> None:
    hits = np.random.default_rng(seed).random((settings, n)) < accuracy
    given_hits = np.asfortranarray(hits) if transposed else hits
    for size in (2, 3):
        expected = max(combinations(range(settings), size), key=lambda chosen: rows_right(hits, chosen))
        assert tuple(best_of_all(given_hits, size)) == expected  # of equals, the first


def test_pieces_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = np.random.default_rng(0).random((40, 200)) < 0.3
    found = [best_of_all(hits, size) for size in (2, 3)]
    monkeypatch.setattr(oracle, "_MOST_BYTES", 100)
    assert [best_of_all(hits, size) for size in (2, 3)] == found


def test_one_more_adds_what_the_others_lack() -> None:
    hits = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 0]], dtype=bool)
    assert best_with(hits, [1]) == [1, 2]
    assert best_with(hits, [0, 2]) == [0, 2, 1]
    assert best_with(np.ones((3, 4), dtype=bool), [0, 1]) == [0, 1, 2]


@pytest.mark.parametrize(("settings", "size"), [(1, 2), (2, 3), (5, 4), (5, 1)])
def test_other_sizes_are_refused(settings: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"got {size} of {settings}"):
        best_of_all(np.zeros((settings, 3), dtype=bool), size)
