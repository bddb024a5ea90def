"""What a setting's features are like, from one streamed pass: rank, spread over classes, norms, sparsity, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL
from .rows import CHUNK_BYTES, Degenerate, Rows, chunks, float64

MAX_FEATURES = 8192  # a covariance matrix of 512 MB

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Statistics of (n, d) features; None where one is not defined.

    Attributes:
        rows: n.
        features: d.
        effective_rank: see :func:`effective_rank`.
        participation_ratio: see :func:`participation_ratio`.
        fisher_ratio: tr(S_b) / tr(S_w), the scatter of class means (each as often as the class has rows) about the mean
            over the scatter of rows about their class means, over the labelled rows: both are sums over the same rows, so
            that no further normalisation is needed. Classes that mean nothing give about (K - 1) / (n - K), not 0. None
            with fewer than two classes, or no scatter within them.
        mean_norm: mean Euclidean norm of a row, as it is (not centred).
        norm_deviation: standard deviation of the norms, divided by n.
        sparsity: mean over rows of Hoyer's (sqrt(d) - |x|_1 / |x|_2) / (sqrt(d) - 1), 0 for a row of equal magnitudes, 1
            for one with a single entry that is not zero (Hoyer 2004, JMLR 5, 1457-1469). Rows of zeros have none and do
            not count.
    """

    rows: int
    features: int
    effective_rank: float | None
    participation_ratio: float | None
    fisher_ratio: float | None
    mean_norm: float
    norm_deviation: float
    sparsity: float | None


def statistics(features: Rows, labels: NDArray[np.integer], *, chunk_bytes: int = CHUNK_BYTES) -> Statistics:
    """Statistics of features, in one pass over them.

    Moments are summed in float64 about the first row, so that large means cost no digits and the chunks change
    the result by rounding only. Memory is 16 d^2 bytes, 8 a row, ``chunk_bytes``, and 8 d a class, however many rows.

    Args:
        features: (n, d), or what gives ranges of it.
        labels: (n,) class numbers, -1 for none.
        chunk_bytes: of float64 rows at a time.

    Raises:
        ValueError: features and labels do not fit together, or there are no rows.
        Degenerate: d is more than 8,192.
    """
    n, d = features.shape
    if not n or labels.shape != (n,):
        raise ValueError(
            f"statistics are of features (n, d) and labels (n,) with n > 0, got {features.shape} and {labels.shape}"
        )
    check_width(features, "these features")
    shift = float64(features, slice(0, 1))[0]
    total, products = np.zeros(d), np.zeros((d, d))
    class_sums = np.zeros((int(labels.max()) + 1, d))
    labelled_square = 0.0
    norms, sparsities = np.empty(n), np.empty(n)
    for rows in chunks(features, d, chunk_bytes):
        x = float64(features, rows)
        norms[rows], sparsities[rows] = _norms(x)
        x -= shift
        total += x.sum(axis=0)
        products += x.T @ x
        known = labels[rows] != NO_LABEL
        np.add.at(class_sums, labels[rows][known], x[known])
        labelled_square += float(np.square(x[known]).sum())
    covariance = products / n - np.outer(total / n, total / n)
    values: Float = np.linalg.eigvalsh(covariance).astype(np.float64)
    defined = sparsities[np.isfinite(sparsities)]
    return Statistics(
        rows=n,
        features=d,
        effective_rank=effective_rank(values),
        participation_ratio=participation_ratio(values),
        fisher_ratio=_fisher_ratio(
            class_sums, np.bincount(labels[labels != NO_LABEL], minlength=len(class_sums)), labelled_square
        ),
        mean_norm=float(norms.mean()),
        norm_deviation=float(norms.std()),
        sparsity=float(defined.mean()) if len(defined) else None,
    )


def check_width(features: Rows, name: str) -> None:
    """Raise ``Degenerate`` if :func:`statistics` refuses features for their number; ``name`` is for the message."""
    d = features.shape[1]
    if d > MAX_FEATURES:
        raise Degenerate(
            f"{name}: {d} numbers a row are more than {MAX_FEATURES}; average maps down with --features {MAX_FEATURES}"
        )


def effective_rank(values: Float) -> float | None:
    """exp of the entropy of the normalised singular values of the centred features.

    Roy and Vetterli 2007 (EUSIPCO, 606-610), of the matrix (n, d) of features less their mean: p_k = s_k / sum of s,
    exp(-sum p_k log p_k). Between 1 and min(n - 1, d).

    Args:
        values: (d,) eigenvalues of the covariance matrix; s_k is the root of the k-th, up to a factor. Those below
            d x 2.2e-16 of the largest are rounding, and count as 0.

    Returns:
        None if there is no variance.
    """
    singular = np.sqrt(_positive(values))
    if not len(singular):
        return None
    p = singular / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(values: Float) -> float | None:
    """(sum of eigenvalues of the covariance matrix)^2 / sum of their squares, from 1 to d; None if there is no variance.

    Args:
        values: (d,) eigenvalues, as of :func:`effective_rank`.
    """
    positive = _positive(values)
    return float(positive.sum() ** 2 / np.square(positive).sum()) if len(positive) else None


def noise_share(draws: Sequence[Rows], *, chunk_bytes: int = CHUNK_BYTES) -> float | None:
    """The share of the features' variance that changes with the noise draw: 1 - ICC(1), pooled over features.

    ICC(1) = (MSB - MSW) / (MSB + (k - 1) MSW) of Shrout and Fleiss 1979 (Psychol. Bull. 86, 420-428), with rows as targets,
    k draws as ratings, and mean squares between and within rows summed over features. It is 0 where draws agree, about 1
    where they have nothing in common, and may pass 1 by chance.

    Args:
        draws: k times (n, d): the same rows of every draw.
        chunk_bytes: of float64 rows of all draws at a time.

    Returns:
        None for one draw, fewer than two rows, or no variance.

    Raises:
        ValueError: the draws do not have one shape.
    """
    k = len(draws)
    if not k or len({one.shape for one in draws}) > 1:
        raise ValueError(f"draws must have one shape, got {[one.shape for one in draws]}")
    n, d = draws[0].shape
    if k < 2 or n < 2:
        return None
    shift = float64(draws[0], slice(0, 1))[0]
    total, within, square = np.zeros(d), 0.0, 0.0
    for rows in chunks(draws[0], k * d, chunk_bytes):
        x = np.stack([float64(one, rows) for one in draws])
        mean = x.mean(axis=0)
        within += float(np.square(x - mean).sum())
        total += (mean - shift).sum(axis=0)
        square += float(np.square(mean - shift).sum())
    between = k * (square - float(np.square(total).sum()) / n) / (n - 1)
    within /= n * (k - 1)
    whole = between + (k - 1) * within
    return k * within / whole if whole > 0 else None


def _norms(x: Float) -> tuple[Float, Float]:
    """(m,) Euclidean norms and Hoyer sparsities of rows; NaN for those without."""
    d = x.shape[1]
    norms = np.linalg.norm(x, axis=1)
    ratio = np.divide(np.abs(x).sum(axis=1), norms, out=np.full(len(x), np.nan), where=norms > 0)
    return norms, (np.sqrt(d) - ratio) / (np.sqrt(d) - 1) if d > 1 else np.full(len(x), np.nan)


def _fisher_ratio(sums: Float, counts: NDArray[np.integer], square: float) -> float | None:
    """From (K, d) sums of the rows of each class about any one point, (K,) their numbers, and the sum of all squares."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(counts) < 2:
        return None
    explained = float((np.square(sums).sum(axis=1) / counts).sum())
    within = square - explained
    between = explained - float(np.square(sums.sum(axis=0)).sum()) / int(counts.sum())
    return between / within if within > np.finfo(float).eps * square else None


def _positive(values: Float) -> Float:
    kept: Float = values[values > max(0.0, len(values) * np.finfo(float).eps * float(values.max(initial=0)))]
    return kept
