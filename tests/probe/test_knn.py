"""Nearest neighbours against scikit-learn's and against sorting everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diffssl.probe import knn
from diffssl.probe.errors import TooFewRows
from diffssl.probe.knn import knn_scores
from diffssl.probe.linear import Stream
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]


def stream(x: NDArray[np.float32], y: NDArray[np.int64], size: int = 100) -> Stream:
    def pieces() -> Iterator[Rows]:
        for i in range(0, len(y), size):
            yield x[i : i + size], y[i : i + size]

    return pieces


def gaussian(n: int, dimension: int = 12, classes: int = 5, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    means = np.random.default_rng(99).normal(size=(classes, dimension))
    return (means[y] + rng.normal(size=(n, dimension))).astype(np.float32), y


def sorted_all(train: Rows, test: Rows, k: int, temperature: float, classes: int) -> NDArray[np.float64]:
    """The definition: similarities in float64, a stable sort, a sum."""
    similarities = normalize(test[0].astype(np.float64)) @ normalize(train[0].astype(np.float64)).T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    scores = np.zeros((len(test[0]), classes))
    for i, nearest in enumerate(order):
        for j in nearest:
            scores[i, train[1][j]] += np.exp(similarities[i, j] / temperature)
    total: NDArray[np.float64] = scores.sum(axis=1, keepdims=True)
    return scores / total


@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_predictions_are_those_of_scikit_learn(load: Any) -> None:
    x, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    half = len(y) // 2
    neighbors, temperatures = [1, 5, 50], [0.07, 0.5]
    scores = knn_scores(stream(x[:half], y[:half]), stream(x[half:], y[half:]), int(y.max()) + 1, neighbors, temperatures)
    assert scores.shape == (6, len(y) - half, y.max() + 1)
    combinations = [(k, t) for k in neighbors for t in temperatures]
    for ours, (k, t) in zip(scores, combinations, strict=True):

        def weights(distances: Any, temperature: float = t) -> Any:
            return np.exp((1 - distances) / temperature)

        model = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")
        model.fit(x[:half].astype(np.float64), y[:half])
        assert np.array_equal(ours.argmax(axis=1), model.predict(x[half:].astype(np.float64)))
        assert np.abs(ours - model.predict_proba(x[half:].astype(np.float64))).max() < 1e-4


@pytest.mark.parametrize("k", [1, 3, 40, 150])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 10.0])
def test_scores_are_the_definition(k: int, temperature: float) -> None:
    train, test = gaussian(150), gaussian(60, seed=1)
    (scores,) = knn_scores(stream(*train, 17), stream(*test, 25), 5, [k], [temperature])
    assert np.abs(scores - sorted_all(train, test, k, temperature, 5)).max() < 1e-4


@pytest.mark.parametrize("train_rows", [1, 7, 64])
@pytest.mark.parametrize("test_rows", [1, 10, 1000])
@pytest.mark.parametrize("together", [3, 1024])
def test_pieces_and_blocks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, train_rows: int, test_rows: int, together: int
) -> None:
    train, test = gaussian(70), gaussian(30, seed=1)
    whole = knn_scores(stream(*train), stream(*test), 5, [1, 4, 70])
    monkeypatch.setattr(knn, "_TRAIN_BYTES", train_rows * 12 * 4)
    monkeypatch.setattr(knn, "_TOGETHER", together)
    parts = knn_scores(stream(*train, 9), stream(*test, 4), 5, [1, 4, 70], test_bytes=test_rows * 12 * 4)
    assert np.abs(whole - parts).max() < 1e-5


def test_the_training_rows_stream_once_for_every_block_of_test_rows() -> None:
    train, test = gaussian(70), gaussian(30, seed=1)
    read = 0

    def counted() -> Iterator[Rows]:
        nonlocal read
        read += 1
        yield train

    knn_scores(counted, stream(*test, 4), 5, [1, 4], [0.1, 1.0])
    assert read == 1
    knn_scores(counted, stream(*test, 4), 5, [1, 4], [0.1, 1.0], test_bytes=10 * 12 * 4)
    assert read == 1 + 3


@pytest.mark.parametrize("size", [1, 2, 6])
def test_of_equal_rows_the_earlier_is_nearer(size: int) -> None:
    """Exact in any arithmetic: the similarities are 0 and 1."""
    x = np.array([[0, 1], [1, 0], [2, 0], [0, 3], [4, 0], [8, 0]], dtype=np.float32)
    y = np.array([0, 1, 2, 3, 4, 5])
    for k, labels in [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [1, 2, 4, 5]), (5, [0, 1, 2, 4, 5])]:
        (scores,) = knn_scores(stream(x, y, size), stream(x[1:2], y[1:2]), 6, [k], [10.0])
        assert np.flatnonzero(scores[0]).tolist() == labels


def test_the_length_of_a_row_does_not_matter_and_zeros_are_like_nothing() -> None:
    train, test = gaussian(50), gaussian(10, seed=1)
    one = knn_scores(stream(*train), stream(*test), 5, [5])
    other = knn_scores(stream(train[0] * np.float32(64), train[1]), stream(test[0] / np.float32(64), test[1]), 5, [5])
    assert np.array_equal(one, other)
    (zeros,) = knn_scores(stream(*train), stream(np.zeros((1, 12), np.float32), test[1][:1]), 5, [50])
    assert np.allclose(zeros[0], np.bincount(train[1], minlength=5) / 50)


def test_a_class_without_rows_is_given_nothing() -> None:
    train, test = gaussian(50), gaussian(10, seed=1)
    (scores,) = knn_scores(stream(*train), stream(*test), 9, [50])
    assert (scores[:, 5:] == 0).all()
    assert np.allclose(scores.sum(axis=1), 1)


def test_no_test_rows_are_no_scores() -> None:
    train = gaussian(50)
    assert knn_scores(stream(*train), lambda: [], 5, [1, 2]).shape == (2, 0, 5)


def test_what_cannot_be_asked_says_so() -> None:
    train, test = gaussian(50), gaussian(10, seed=1)
    with pytest.raises(TooFewRows, match="51 neighbours need as many training rows, and there are 50"):
        knn_scores(stream(*train), stream(*test), 5, [5, 51])
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn_scores(stream(*train), stream(*test), 5, [0])
    with pytest.raises(ValueError, match="temperatures must be positive"):
        knn_scores(stream(*train), stream(*test), 5, [1], [])
