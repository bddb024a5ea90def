"""How good predictions of labels beside each other and of numbers are: arrays in, numbers out, intervals over rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .bootstrap import Metrics, mean_of_ratios, with_intervals
from .errors import TooFewRows

_STRIP = 16  # rows of a strip of running sums


def multilabel_metrics(
    scores: NDArray[np.floating], targets: NDArray[np.floating] | NDArray[np.integer], rng: np.random.Generator
) -> Metrics:
    """Mean average precision ``map`` with its 95 % bootstrap interval; ``map_labels`` is how many labels it is a mean of.

    Average precision is scikit-learn's: the sum over thresholds of the precision there times the recall gained. Labels
    without a positive row have none and are left out of the mean, in each resample anew.

    Args:
        scores: (n, K), higher for rows more likely to have the label; one that is not a number ranks last.
        targets: (n, K) 1 or 0, and NaN or a negative number where it is not known: such a row is left out for that label.
        rng: of the bootstrap.

    Raises:
        ValueError: shapes differ, or a target is another number.
        TooFewRows: no label has a positive row.
    """
    known = _known(scores, targets) & (np.nan_to_num(targets) >= 0)
    if not np.isin(targets[known], (0, 1)).all():
        raise ValueError(f"targets of labels are 0 or 1, got {np.setdiff1d(targets[known], (0, 1))[:5].tolist()}")
    columns = [_segments(scores[rows, k], targets[rows, k] > 0, rows) for k, rows in enumerate(known.T)]
    columns = [column for column in columns if column.shape[0]]
    if not columns:
        raise TooFewRows(f"none of the {targets.shape[1]} labels has a positive among the {len(targets)} rows")
    whole = columns[0].dtype

    def statistics(counts: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        resamples = counts.shape[1]
        total, number = np.zeros((2, resamples))
        drawn = counts.astype(whole)
        for column in columns:
            sums = (column @ drawn).reshape(-1, 2 * resamples)  # of a segment: positives, then all rows, of each resample
            gained = sums[:, :resamples].astype(np.float64)
            _add_up(sums)
            found = sums[-1, :resamples]
            precision = sums[:, :resamples] / np.maximum(sums[:, resamples:], 1)  # where nothing is shown, nothing is found
            total += np.einsum("jb,jb->b", gained, precision) / np.maximum(found, 1)
            number += found > 0
        return {"map": np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0)}

    return with_intervals(statistics, len(targets), rng) | {"map_labels": len(columns)}


def regression_metrics(predictions: NDArray[np.floating], targets: NDArray[np.floating], rng: np.random.Generator) -> Metrics:
    """``r2``, the mean over targets, and ``rmse``, with ``_low`` and ``_high``; the same of each target as ``r2_targets`` ….

    R2 is 1 - sum (y - f)^2 / sum (y - mean y)^2 over rows; a target that is constant has none (None in the list) and is
    left out of the mean. ``rmse`` is the root of the squared error's mean over targets. Intervals are 95 % bootstraps over
    rows.

    Args:
        predictions: (n, T). If one is not a finite number, everything that depends on it is None.
        targets: (n, T), NaN where it is not known: such a row is left out for that target.
        rng: of the bootstrap.

    Raises:
        ValueError: shapes differ.
        TooFewRows: a target has no row.
    """
    known = _known(predictions, targets)
    if not known.any(axis=0).all():
        raise TooFewRows(f"target {int(np.argmin(known.any(axis=0)))} has no value in any of the {len(targets)} rows")
    # Centred, so that the sum of squares about the mean does not cancel.
    centred = np.where(known, targets - np.nanmean(targets, axis=0), 0)
    errors = np.where(known, predictions - np.nan_to_num(targets), 0.0)
    diverged = np.asarray(~np.isfinite(errors).all(axis=0))
    errors[:, diverged] = 0
    weights = np.stack([known, centred, centred**2, errors**2]).transpose(0, 2, 1)  # (4, T, n)

    found = with_intervals(lambda counts: _fit_of_targets(weights, counts), len(targets), rng)
    result: Metrics = {}
    for name in ("r2", "rmse"):
        for end in ("", "_low", "_high"):
            result[f"{name}{end}"] = None if diverged.any() else found[f"{name}{end}"]
            result[f"{name}_targets{end}"] = [None if bad else found[f"{name}_{i}{end}"] for i, bad in enumerate(diverged)]
    return result


def _fit_of_targets(weights: NDArray[np.float64], counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """R2 and RMSE of each target and of all, from (4, T, n) knowns, centred targets, their squares and squared errors."""
    number, total, square, wrong = np.einsum("stn,nb->stb", weights, counts, optimize=True)
    spread = square - np.divide(total**2, number, out=np.zeros_like(total), where=number > 0)
    spread[spread <= 1e-12 * square] = 0  # the rounding of a constant target
    r2 = 1 - np.divide(wrong, spread, out=np.full_like(wrong, np.nan), where=spread > 0)
    mse = np.divide(wrong, number, out=np.full_like(wrong, np.nan), where=number > 0)
    each = {f"r2_{i}": own for i, own in enumerate(r2)} | {f"rmse_{i}": np.sqrt(own) for i, own in enumerate(mse)}
    return each | {"r2": 1 - mean_of_ratios(wrong, spread), "rmse": np.sqrt(mean_of_ratios(wrong, number))}


def _known(predictions: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """(n, T) which targets are numbers. Raises ``ValueError`` for shapes that differ."""
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise ValueError(f"predictions and targets must be (n, T) alike, got {predictions.shape} and {targets.shape}")
    return np.asarray(~np.isnan(targets))


def _segments(scores: NDArray[np.floating], positive: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Any:
    """(2 J, n) sparse 0/1 of one label: the positives, and all rows, between its J thresholds, in turns.

    Only scores of positives matter as thresholds, since recall grows at no other. Segment j has the rows at or above
    threshold j (descending) and below the one before. In whole numbers as small as the number of rows allows, which is most
    of the speed.

    Args:
        scores: (m,) of the rows that are known.
        positive: (m,) whether they have the label.
        rows: (n,) which rows are known.
    """
    descending = -np.where(np.isnan(scores), -np.inf, scores)
    thresholds = np.unique(descending[positive])
    segment = np.searchsorted(thresholds, descending)
    number = np.flatnonzero(rows)
    shown = segment < len(thresholds)
    place = np.concatenate([2 * segment[positive], 2 * segment[shown] + 1])
    every = np.concatenate([number[positive], number[shown]])
    dtype = np.int16 if len(rows) <= np.iinfo(np.int16).max else np.int32
    return sparse.csr_array((np.ones(len(place), dtype), (place, every)), shape=(2 * len(thresholds), len(rows)))


def _add_up(sums: NDArray[np.integer]) -> None:
    """Running sums of (J, b) whole numbers down the columns, in place: a step in all strips at once, then strip after strip.

    As ``np.cumsum``, which walks down one column after the other and so through memory in leaps.
    """
    whole = len(sums) // _STRIP * _STRIP
    strips = sums[:whole].reshape(-1, _STRIP, sums.shape[1])
    for row in range(1, _STRIP):
        strips[:, row] += strips[:, row - 1]
    strips[1:] += np.cumsum(strips[:-1, -1], axis=0, dtype=sums.dtype)[:, None]
    for row in range(max(whole, 1), len(sums)):
        sums[row] += sums[row - 1]
