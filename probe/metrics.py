"""Accuracy and its intervals: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


def hits(scores: NDArray[np.floating], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(n,) whether the label is among the k highest of (n, K) scores.

    Ties are broken by class number, so that the first hit agrees with ``argmax``. A row with a score that is not a number
    is no hit: a head that diverged knows nothing.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None] < labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return np.asarray((rank < k) & ~np.isnan(scores).any(axis=1))


def classification_metrics(
    scores: NDArray[np.floating], labels: NDArray[np.int64], rng: np.random.Generator
) -> dict[str, float]:
    """Top-1, top-5 and mean per-class accuracy, each with a 95 % interval (``_low``, ``_high``), in [0, 1].

    The interval is the percentile bootstrap over rows. All three metrics depend on a row only through its class and its
    two hits, so resampling rows is drawing multinomial counts of these few kinds, exactly and at once.

    Args:
        scores: (n, K) logits or decision values.
        labels: (n,) class numbers.
        rng: of the bootstrap.
    """
    first, fifth = hits(scores, labels, 1), hits(scores, labels, 5)
    kinds, counts = np.unique(np.stack([labels, first, fifth], axis=1), axis=0, return_counts=True)
    observed = _metrics(kinds, counts[None])
    drawn = rng.multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    resampled = _metrics(kinds, drawn)
    tail = (1 - LEVEL) / 2
    result: dict[str, float] = {}
    for name, values in resampled.items():
        low, high = np.quantile(values, [tail, 1 - tail])
        result |= {name: float(observed[name][0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def _metrics(kinds: NDArray[np.int64], counts: NDArray[np.int64]) -> Mapping[str, NDArray[np.float64]]:
    """Metrics of (B, n_kinds) counts of (class, top-1 hit, top-5 hit) kinds."""
    total = counts.sum(axis=1)
    classes = np.unique(kinds[:, 0])
    member = (kinds[:, 0] == classes[:, None]).astype(np.float64)  # (classes, kinds)
    per_class = counts @ member.T
    correct = (counts * kinds[:, 1]) @ member.T
    present = per_class > 0
    accuracy = np.divide(correct, per_class, out=np.zeros_like(correct), where=present)
    return {
        "top1": (counts * kinds[:, 1]).sum(axis=1) / total,
        "top5": (counts * kinds[:, 2]).sum(axis=1) / total,
        "mean_per_class": accuracy.sum(axis=1) / present.sum(axis=1),
    }
