"""How good scores are, with intervals over rows: arrays in, numbers out. Formulas are in ``docs/protocol.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .bootstrap import Metrics, mean_of_ratios, with_intervals
from .predictions import NO_CLASS

ECE_BINS = 15
_BLOCK_VALUES = 1 << 22  # scores at a time, so that temporary arrays stay small

NOWHERE = np.iinfo(np.int64).max


def hits(scores: NDArray[np.floating], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(n,) whether the label is among the k highest of (n, K) scores.

    Ties are broken by class number, so that the first hit agrees with ``argmax``. A row with a score that is not a number
    is no hit: a head that diverged knows nothing.
    """
    return ranks(scores, labels) < k


def ranks(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many of (n, K) scores come before the label's; ``NOWHERE`` in a row with one that is not a number."""
    n, classes = scores.shape
    result = np.empty(n, dtype=np.int64)
    for rows in _row_blocks(n, classes):
        part, own_class = scores[rows], labels[rows, None]
        own = np.take_along_axis(part, own_class, axis=1)
        earlier = np.arange(classes)[None] < own_class
        result[rows] = ((part > own) | ((part == own) & earlier)).sum(axis=1)
        result[rows][np.isnan(part).any(axis=1)] = NOWHERE
    return result


def predictions(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """(n,) class of the highest of (n, K) scores, the first of equals; ``NO_CLASS`` in a row with one that is not a number.

    It is the label exactly where :func:`hits` with k = 1 has a hit.
    """
    return np.where(np.isnan(scores.max(axis=1)), NO_CLASS, scores.argmax(axis=1))


def log_probabilities(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, K) log-softmax of (n, K) log-odds. A score of -inf, of a class never trained on, is probability zero.

    A row without a finite score, or with one that is not a number or +inf, gives NaN.
    """
    values = scores.astype(np.float64)
    top = values.max(axis=1, keepdims=True)
    values -= np.where(np.isfinite(top), top, np.nan)
    with np.errstate(divide="ignore"):
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def classification_metrics(
    scores: NDArray[np.floating], labels: NDArray[np.int64], rng: np.random.Generator, log_odds: bool = False
) -> Metrics:
    """Top-1, top-5, mean per-class accuracy, macro F1, each with ``_low`` and ``_high``; of log-odds ``nll`` and ``ece`` too.

    The intervals are 95 % percentile bootstraps over rows, all from the same resamples. Means over classes are over those
    with a row (F1: that are a label or a prediction, as in scikit-learn), in each resample anew.

    Args:
        scores: (n, K) logits, decision values, votes: what is higher for the likelier class.
        labels: (n,) class numbers.
        rng: of the bootstrap.
        log_odds: whether the softmax of the scores is a probability, as for logits and multinomial logistic regression, and not
            for neighbours' votes or ridge regression. If so, the negative log-likelihood (mean, in nats) and the expected
            calibration error (Guo et al. 2017, arXiv 1706.04599: 15 bins of equal width of the highest probability)
            are there too. A test row of a class that was never trained on has probability zero, and makes the
            likelihood's logarithm infinite; then ``nll`` is None, and ``nll_not_finite`` counts such rows. ``ece`` is None
            if a row has no probabilities, because its scores are not numbers.
    """
    n, rank = len(labels), ranks(scores, labels)
    predicted = predictions(scores)
    plain = {"top1": (rank < 1).astype(np.float64), "top5": (rank < 5).astype(np.float64)}
    gaps = np.zeros((0, n))
    result: Metrics = {}
    if log_odds:
        nll, confidence = _likelihood(scores, labels)
        result["nll_not_finite"] = int((~np.isfinite(nll)).sum())
        plain["nll"] = nll
        gaps = _calibration_gaps(confidence, rank == 0)
    sums = sparse.csr_array(np.vstack([*(np.where(np.isfinite(v), v, 0) for v in plain.values()), np.nan_to_num(gaps)]))
    by_class = _class_rows(labels, predicted)

    def statistics(counts: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        means = (sums @ counts) / n
        found = dict(zip(plain, means, strict=False)) | _class_means(by_class @ counts)
        return found | ({"ece": np.abs(means[len(plain) :]).sum(axis=0)} if log_odds else {})

    result |= with_intervals(statistics, n, rng)
    unknown = {"nll": bool(result.get("nll_not_finite")), "ece": bool(np.isnan(gaps).any())}
    return result | {f"{name}{end}": None for name in unknown if unknown[name] for end in ("", "_low", "_high")}


def _row_blocks(n: int, width: int) -> list[slice]:
    most = max(1, _BLOCK_VALUES // width)
    return [slice(start, start + most) for start in range(0, n, most)]


def _likelihood(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) negative log-probability of the label, and (n,) highest probability."""
    nll, confidence = np.empty(len(labels)), np.empty(len(labels))
    for rows in _row_blocks(*scores.shape):
        part = log_probabilities(scores[rows])
        nll[rows] = -np.take_along_axis(part, labels[rows, None], axis=1)[:, 0]
        confidence[rows] = np.exp(part.max(axis=1))
    return nll, confidence


def _calibration_gaps(confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(bins, n) hit - confidence in the row's bin, else 0: the error is the sum over bins of the absolute mean over rows."""
    # Bins are open below, as in the paper: (0, 1/15], (1/15, 2/15], …
    bins = np.clip(np.ceil(np.nan_to_num(confidence) * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.zeros((ECE_BINS, len(hit)))
    gaps[bins, np.arange(len(hit))] = hit - confidence
    return gaps


def _class_rows(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Any:
    """(3 * classes, n) sparse 0/1: rows of a class, rows predicted as one, and rows that are both."""
    classes = np.union1d(labels, predicted[predicted >= 0])
    kinds = np.concatenate(
        [
            np.searchsorted(classes, labels),
            np.searchsorted(classes, predicted) + len(classes),
            np.searchsorted(classes, labels) + 2 * len(classes),
        ]
    )
    there = np.concatenate([np.ones(len(labels), dtype=bool), predicted >= 0, predicted == labels])
    rows = np.tile(np.arange(len(labels)), 3)
    return sparse.csr_array(
        (np.ones(int(there.sum())), (kinds[there], rows[there])), shape=(3 * len(classes), len(labels)), dtype=np.float64
    )


def _class_means(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Mean per-class accuracy and macro F1 of (3 * classes, b) numbers of rows: of the class, predicted, both."""
    support, predicted, right = np.split(sums, 3)
    return {
        "mean_per_class": mean_of_ratios(right, support),
        "macro_f1": mean_of_ratios(2 * right, support + predicted),
    }
