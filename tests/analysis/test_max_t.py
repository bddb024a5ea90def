"""The max-T bootstrap: its definition written out, how often it errs, and what it finds."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from diffssl.analysis.max_t import max_t
from diffssl.probe.bootstrap import resample_counts
from numpy.typing import NDArray

ONE = np.ones(20, dtype=np.int64)


def correlated_hits(rng: np.random.Generator, n: int, settings: int, accuracy: float) -> NDArray[np.int64]:
    """Settings that are equally good and mostly right on the same rows: each row has a difficulty, each answer some luck."""
    difficulty = rng.normal(size=n)
    effort = difficulty + 0.7 * rng.normal(size=(settings, n))
    return np.asarray(effort < NormalDist(0, np.sqrt(1.49)).inv_cdf(accuracy), dtype=np.int64)


def test_it_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    hits = correlated_hits(rng, 60, 4, 0.6)
    hits[2] *= rng.random(60) < 0.6
    found = max_t(hits, ONE[:4], 1, np.random.default_rng(5), resamples=199)
    d = (hits - hits[1]).astype(float)
    error = np.array([np.sqrt(np.var([*row, 1, -1]) / 62) for row in d])
    rows = [
        np.repeat(np.arange(60), column.astype(int)) for column in next(resample_counts(60, 199, np.random.default_rng(5))).T
    ]
    draws = sorted(max(abs(row[drawn].mean() - row.mean()) / e for row, e in zip(d, error, strict=True)) for drawn in rows)
    np.testing.assert_allclose(found.difference, d.mean(axis=1))
    np.testing.assert_allclose(found.p, [(1 + sum(x >= abs(m) - 1e-9 for x in draws)) / 200 for m in d.mean(axis=1) / error])
    width = draws[189] * error * (np.arange(4) != 1)  # the 190th of 199
    np.testing.assert_allclose(found.low, d.mean(axis=1) - width)
    np.testing.assert_allclose(found.high, d.mean(axis=1) + width)
    assert found.won.tolist() == [((hits[s] == 1) & (hits[1] == 0)).sum() for s in range(4)]
    assert found.lost.tolist() == [((hits[s] == 0) & (hits[1] == 1)).sum() for s in range(4)]


@pytest.mark.parametrize("accuracy", [0.6, 0.95])
def test_without_a_difference_any_is_found_one_time_in_20(accuracy: float) -> None:
    """300 test sets: the deviation of the share is 0.0126, so between 1.5 % and 9 % is within three of 5 %."""
    rng = np.random.default_rng(0)
    errs = uncovered = one_alone = 0
    for _ in range(300):
        found = max_t(correlated_hits(rng, 200, 12, accuracy), ONE[:12], 0, rng, resamples=200)
        errs += bool((found.p <= 0.05).any())
        uncovered += bool(((found.low > 0) | (found.high < 0)).any())
        z = (found.won - found.lost) / np.sqrt(np.maximum(found.won + found.lost, 1))
        one_alone += bool((np.abs(z) > 1.96).any())
    assert 0.015 <= errs / 300 <= 0.09
    assert errs == uncovered
    assert one_alone / 300 > 0.2  # comparisons that are not corrected err far more often


def test_the_one_that_is_worse_is_found_and_no_other() -> None:
    rng = np.random.default_rng(0)
    times = 0
    for _ in range(40):
        hits = correlated_hits(rng, 1000, 10, 0.6)
        hits[7] *= rng.random(1000) < 0.85
        times += np.flatnonzero(max_t(hits, ONE[:10], 0, rng, resamples=400).p <= 0.05).tolist() == [7]
    assert times >= 34  # in 5 % another is found too


def test_seeds_are_means_of_a_row() -> None:
    rng = np.random.default_rng(0)
    fits = correlated_hits(rng, 200, 5, 0.6)
    found = max_t(np.stack([fits[:3].sum(axis=0), fits[3:].sum(axis=0)]), np.array([3, 2]), 0, rng)
    d = fits[3:].mean(axis=0) - fits[:3].mean(axis=0)
    assert found.difference[1] == pytest.approx(d.mean())
    assert found.won[1] - found.lost[1] == pytest.approx(d.sum())
    more = max_t(np.stack([fits[:3].sum(axis=0), 7 * fits[3:].sum(axis=0)]), np.array([3, 14]), 0, np.random.default_rng(1))
    same = max_t(np.stack([fits[:3].sum(axis=0), fits[3:].sum(axis=0)]), np.array([3, 2]), 0, np.random.default_rng(1))
    np.testing.assert_allclose(more.low, same.low)


def test_the_reference_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(0)
    found = max_t(correlated_hits(rng, 100, 3, 0.6), ONE[:3], 2, rng)
    assert (found.difference[2], found.low[2], found.high[2], found.p[2], found.won[2], found.lost[2]) == (0, 0, 0, 1, 0, 0)


def test_settings_that_agree_in_every_row_do_not_differ() -> None:
    hits = np.tile(correlated_hits(np.random.default_rng(0), 100, 1, 0.6), (3, 1))
    found = max_t(hits, ONE[:3], 0, np.random.default_rng(0))
    assert found.p.tolist() == [1, 1, 1]
    assert np.isfinite(found.low).all()


def test_a_single_disagreement_does_not_widen_the_other_intervals() -> None:
    hits = correlated_hits(np.random.default_rng(0), 400, 3, 0.6)
    near = np.tile(hits[0], (30, 1))
    near[np.arange(30), np.arange(30)] ^= 1  # 30 settings, each unlike the reference in a row of its own
    alone = max_t(hits, ONE[:3], 0, np.random.default_rng(1))
    among = max_t(np.concatenate([hits, near]), np.ones(33, dtype=np.int64), 0, np.random.default_rng(1))
    assert (among.high - among.low)[1] < 1.5 * (alone.high - alone.low)[1]
    assert (among.p[3:] > 0.5).all()


def test_more_comparisons_are_stricter_and_copies_are_not() -> None:
    rng = np.random.default_rng(0)
    hits = correlated_hits(rng, 300, 30, 0.6)
    few, many = (max_t(hits[:s], np.ones(s, dtype=np.int64), 0, np.random.default_rng(1)) for s in (2, 30))
    copies = max_t(hits[[0] + [1] * 29], np.ones(30, dtype=np.int64), 0, np.random.default_rng(1))
    assert (many.high - many.low)[1] > 1.2 * (few.high - few.low)[1]
    assert (copies.high - copies.low)[1] == pytest.approx((few.high - few.low)[1])


def test_the_same_generator_gives_the_same_numbers() -> None:
    hits = correlated_hits(np.random.default_rng(0), 100, 5, 0.6)
    one, same, other = (max_t(hits, ONE[:5], 0, np.random.default_rng(seed)).p.tolist() for seed in (1, 1, 2))
    assert one == same != other
