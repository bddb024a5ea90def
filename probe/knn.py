"""Weighted nearest neighbours by cosine, as DINO evaluates features (Caron et al., arXiv 2104.14294; DINOv2, arXiv 2304.07193).

A test row is given the classes of its k most similar training rows, each with weight exp(similarity / T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import TooFewRows
from .linear import Stream

NEIGHBORS = (10, 20, 100, 200)
TEMPERATURES = (0.07,)
_TEST_BYTES = 1 << 28  # of test features that go through the training rows together
_TRAIN_BYTES = 1 << 24  # of training features that they meet at a time
_TOGETHER = 1024  # test rows of one product


def knn_scores(
    train: Stream,
    test: Stream,
    classes: int,
    neighbors: Sequence[int] = NEIGHBORS,
    temperatures: Sequence[float] = TEMPERATURES,
    test_bytes: int = _TEST_BYTES,
) -> NDArray[np.float32]:
    """Class probabilities for every k and, within it, every temperature, all from one search.

    Of training rows that are equally similar, the earlier one is nearer. The matrix of all similarities never exists:
    the best are kept while the training rows stream by, once for each block of test rows.

    Args:
        train: (n, D) features and (n,) class numbers.
        test: (n, D) features; the labels are not looked at.
        classes: number of classes K.
        neighbors: numbers of neighbours k.
        temperatures: T, each positive.
        test_bytes: of features of a block of test rows.

    Returns:
        (len(neighbors) * len(temperatures), n_test, K), each row of sum 1.

    Raises:
        TooFewRows: a k is larger than the number of training rows.
    """
    if not neighbors or min(neighbors) < 1:
        raise ValueError(f"k must be at least 1, and there must be one, got {list(neighbors)}")
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f"temperatures must be positive, and there must be one, got {list(temperatures)}")
    found = []
    for rows, _ in _groups(test, test_bytes):
        searches = [_Nearest(rows[i : i + _TOGETHER], max(neighbors)) for i in range(0, len(rows), _TOGETHER)]
        for features, labels in _groups(train, _TRAIN_BYTES):
            for search in searches:
                search.meet(features, labels)
        for search in searches:
            similarities, labels = search.nearest()
            votes = [_vote(similarities[:, :k], labels[:, :k], t, classes) for k in neighbors for t in temperatures]
            found.append(np.stack(votes))
    if not found:
        return np.empty((len(neighbors) * len(temperatures), 0, classes), dtype=np.float32)
    return np.concatenate(found, axis=1)


class _Nearest:
    """The nearest training rows of some test rows, of those that they have met.

    Args:
        rows: (n, D) normalised test rows.
        k: number of neighbours to keep.
    """

    def __init__(self, rows: NDArray[np.float32], k: int) -> None:
        self._rows = rows
        self._k = k
        self._best = np.empty((len(rows), 0), dtype=np.float32)
        self._labels = np.empty((len(rows), 0), dtype=np.int64)
        self._met = 0

    def meet(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Take (m, D) normalised training rows and their labels."""
        self._met += len(labels)
        # What is kept comes first and in its order, so that columns stand in the order of training rows.
        best = np.concatenate([self._best, self._rows @ features.T], axis=1)
        places = _largest(best, min(self._k, best.shape[1]))
        kept = self._best.shape[1]
        known = np.concatenate([self._labels, np.zeros((len(best), 1), dtype=np.int64)], axis=1)
        old = np.take_along_axis(known, np.minimum(places, kept), axis=1)
        self._labels = np.where(places < kept, old, labels[np.maximum(places - kept, 0)])
        self._best = np.take_along_axis(best, places, axis=1)

    def nearest(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, k) similarities, nearest first, and labels."""
        if self._met < self._k:
            raise TooFewRows(f"{self._k} neighbours need as many training rows, and there are {self._met}; ask for fewer")
        order = np.argsort(-self._best, axis=1, kind="stable")
        return np.take_along_axis(self._best, order, axis=1), np.take_along_axis(self._labels, order, axis=1)


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(n, k) ascending places of the k largest of each row, of equal ones the first."""
    least = np.partition(values, -k, axis=1)[:, -k, None]
    chosen = values > least
    equal = values == least
    wanted = k - chosen.sum(axis=1, keepdims=True)
    chosen |= equal & (equal.cumsum(axis=1, dtype=np.int32) <= wanted)
    return np.nonzero(chosen)[1].reshape(-1, k)


def _groups(stream: Stream, most: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Normalised rows in order, in groups of at most so many bytes but one row at least, and their labels."""
    held: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    room = 0
    for features, labels in stream():
        rows = max(1, most // features[:1].nbytes) if len(labels) else 0
        begin = 0
        while begin < len(labels):
            room = room if held else rows
            part = slice(begin, begin + room)
            held.append((_normalised(features[part]), labels[part]))
            room -= len(held[-1][1])
            begin += len(held[-1][1])
            if room == 0:
                yield _joined(held)
                held = []
    if held:
        yield _joined(held)


def _joined(
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.concatenate([features for features, _ in parts]), np.concatenate([labels for _, labels in parts])


def _normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; rows of zeros stay what they are."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0
    normalised: NDArray[np.float32] = (features / lengths).astype(np.float32)
    return normalised


def _vote(
    similarities: NDArray[np.float32], labels: NDArray[np.int64], temperature: float, classes: int
) -> NDArray[np.float32]:
    """(n, K) normalised sums of the weights of each class."""
    weights = np.exp((similarities.astype(np.float64) - similarities[:, :1]) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    places = np.arange(len(labels))[:, None] * classes + labels
    sums = np.bincount(places.ravel(), weights.ravel(), minlength=len(labels) * classes)
    return sums.reshape(-1, classes).astype(np.float32)
