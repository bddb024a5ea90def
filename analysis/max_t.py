"""Differences of many settings from one, tested together on the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..probe.bootstrap import LEVEL, RESAMPLES, resample_counts

_ROUNDING = 1e-9  # differences are multiples of 1 / (n seeds), so ties are common and must not hang on the last digit


@dataclass(frozen=True)
class Differences:
    """How S settings differ from a reference, which is one of them and differs from itself by zero for sure.

    Attributes:
        difference: (S,) accuracy less the reference's.
        low: (S,) lower end of a simultaneous 95 % interval: all intervals together cover in 95 of 100 test sets.
        high: (S,) its upper end.
        p: (S,) p-value adjusted for all comparisons, at most 0.05 where the interval excludes zero; the reference's is 1.
        won: (S,) rows that it gets right and the reference does not, one of the two counts of McNemar's test. With
            several seeds a row counts by how much more often, so it may be a fraction.
        lost: (S,) the other.
    """

    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]
    won: NDArray[np.float64]
    lost: NDArray[np.float64]


def max_t(
    hits: NDArray[np.integer], seeds: NDArray[np.integer], reference: int, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Differences:
    """Compare every setting with the reference by a single-step max-T bootstrap over rows.

    With d the difference between two settings' hits in a row, the statistic of a comparison is mean(d) / se, and that of
    a resample of the rows (mean(d*) - mean(d)) / se. A resample is one of all settings, so whatever makes them err
    together is kept. The largest absolute statistic of a resample, over all comparisons, is one draw of max-T. The
    95 % quantile c of the draws gives the intervals mean(d) +- c se, and the share of draws as large as an observed
    statistic the adjusted p-value (Westfall and Young 1993; Romano and Wolf 2005, Econometrica 73, 1237-1282). The
    chance of any false difference is about 5 %, without Bonferroni's loss where settings are alike.

    Single-step, because the stepdown test rejects more but has no intervals that go with it. Studentised, as Romano and
    Wolf advise: otherwise settings that differ from the reference in many rows would set the width for those that
    differ in few. By the standard error of the rows as they are, and not of each resample's, which is zero where a
    resample misses the few rows that two settings disagree on; and of two rows more, one won and one lost (Bonett and
    Price 2012, J. Educ. Behav. Stat. 37, 479-488), so that a single disagreement does not widen all intervals.

    The rows' chance is in the intervals. The chance of fits is not; it is averaged out with more seeds.

    Args:
        hits: (S, n) number of seeds whose fit got the row right.
        seeds: (S,) number of seeds of each setting.
        reference: number of the setting that others are compared with; not to be chosen by these hits.
        rng: of the resamples.
        resamples: how many. Memory is 4 bytes a row and setting besides ``hits``, and a few MB.
    """
    n = hits.shape[1]
    means = hits.mean(axis=1) / seeds
    difference = means - means[reference]
    own = hits[reference] / seeds[reference]
    won, lost, error = np.array([_paired(row / number - own) for row, number in zip(hits, seeds, strict=True)]).T
    right = hits.astype(np.float32)  # sums of whole numbers, exact in any order
    largest = []
    for counts in resample_counts(n, resamples, rng):
        drawn = (right @ counts.astype(np.float32)).astype(np.float64) / (n * seeds[:, None])
        deviations = drawn - drawn[reference] - difference[:, None]
        largest.append((np.abs(deviations) / error[:, None]).max(axis=0))
    draws = np.sort(np.concatenate(largest))
    critical = draws[min(math.ceil(LEVEL * (resamples + 1)), resamples) - 1]
    beyond = resamples - np.searchsorted(draws, np.abs(difference) / error - _ROUNDING)
    width = np.where(np.arange(len(seeds)) == reference, 0, critical * error)
    return Differences(difference, difference - width, difference + width, (1 + beyond) / (1 + resamples), won, lost)


def _paired(d: NDArray[np.float64]) -> tuple[float, float, float]:
    """Rows won, rows lost and the standard error of the mean of (n,) differences and two more, 1 and -1."""
    n = len(d) + 2
    variance = (np.square(d).sum() + 2) / n - (d.sum() / n) ** 2
    return float(np.maximum(d, 0).sum()), float(np.maximum(-d, 0).sum()), float(np.sqrt(variance / n))
