"""Resampling rows: how often each row is drawn, and intervals from what that gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK_BYTES = 1 << 22  # of counts at a time; larger blocks leave the processor's cache and were slower

# Columns are resamples, or the one column of the rows as they are.
Statistics = Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]
Metrics = dict[str, Any]  # numbers that JSON knows by name, None for one that is not defined


def resample_counts(n: int, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Draw n of n rows with replacement, again and again.

    Yields:
        (n, b) how often each row was drawn, b resamples at a time, so that memory is bounded; the b add up to
        ``resamples``. Every column sums to n.
    """
    most = max(1, _BLOCK_BYTES // (8 * n))
    for start in range(0, resamples, most):
        b = min(most, resamples - start)
        drawn = rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)


def with_intervals(statistics: Statistics, n: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> Metrics:
    """Each statistic, with the ends of its 95 % percentile bootstrap interval over rows as ``_low`` and ``_high``.

    Args:
        statistics: from (n, b) counts of the rows to (b,) values of each statistic by name; NaN where a resample has
            none, such as a mean over rows that were not drawn: the interval is that of the other resamples.
        n: number of rows.
        rng: of the resamples.
        resamples: how many.

    Returns:
        The numbers by name; None for a statistic that is NaN, or has no interval.
    """
    observed = statistics(np.ones((n, 1)))
    blocks = [statistics(counts) for counts in resample_counts(n, resamples, rng)]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    result: Metrics = {}
    for name, value in observed.items():
        drawn = np.concatenate([block[name] for block in blocks])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, tails) if len(drawn) else (np.nan, np.nan)
        for end, number in {"": value[0], "_low": low, "_high": high}.items():
            result[f"{name}{end}"] = None if np.isnan(number) else float(number)
    return result


def mean_of_ratios(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """(b,) mean over the first axis of above / below, of those with something below; NaN if none has."""
    there = below > 0
    ratios = np.divide(above, below, out=np.zeros_like(above), where=there)
    number = there.sum(axis=0)
    mean: NDArray[np.float64] = np.divide(ratios.sum(axis=0), number, out=np.full(number.shape, np.nan), where=number > 0)
    return mean
