"""Streamed logistic regression against scikit-learn's optimum."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.probe.errors import TooFewRows
from diffssl.probe.linear import Stream
from diffssl.probe.logistic import LogisticFit, fit_path
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression

GRID = [10.0**k for k in range(-6, 6)]
GAP = 1e-4  # of the objective, relative: what the docs state

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]


@cache
def rows(name: str) -> Rows:
    if name == "noise":  # labels that nothing explains, features that are strongly correlated
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(200, 20)) @ (rng.normal(size=(20, 20)) / np.arange(1, 21)[:, None]), rng.integers(4, size=200)
    else:
        loaders = {"digits": load_digits, "cancer": load_breast_cancer, "wine": load_wine}
        x, y = loaders[name](return_X_y=True)
        x, y = x[:600], y[:600]
    scale = x.std(axis=0)
    return ((x - x.mean(axis=0)) / np.where(scale > 0, scale, 1)).astype(np.float32), y.astype(np.int64)


def stream(x: NDArray[np.float32], y: NDArray[np.int64], size: int = 250) -> Stream:
    def pieces() -> Iterator[Rows]:
        for i in range(0, len(y), size):
            yield x[i : i + size], y[i : i + size]

    return pieces


def objective(x: NDArray[np.float32], y: NDArray[np.int64], weights: Any, intercept: Any, c: float) -> float:
    """scikit-learn's, divided by C n, in float64; for two classes, of the vector of the decision function."""
    scores = x.astype(np.float64) @ weights + intercept
    scores -= scores[np.arange(len(y)), y][:, None]
    scores[np.arange(len(y)), y] = -np.inf
    loss = np.logaddexp(0, np.logaddexp.reduce(scores, axis=1)).mean()
    penalised = weights[:, 1] - weights[:, 0] if weights.shape[1] == 2 else weights
    return float(loss + 0.5 * np.square(penalised).sum() / (c * len(y)))


@pytest.mark.parametrize(
    ("name", "grid"),
    [("digits", [1e-6, 1e-3, 1e-1, 1e1]), ("noise", GRID), ("cancer", [1e-6, 1e-2, 1.0, 1e2]), ("wine", [1e-5, 1.0, 1e3])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_optimum_is_that_of_scikit_learn(name: str, grid: list[float]) -> None:
    x, y = rows(name)
    classes = int(y.max()) + 1
    for fit in fit_path(stream(x, y), classes, grid):
        model = LogisticRegression(C=fit.c, tol=1e-10, max_iter=100_000).fit(x.astype(np.float64), y)
        weights, intercept = model.coef_.T, model.intercept_
        if classes == 2:
            weights, intercept = np.hstack([-weights, weights]) / 2, np.hstack([-intercept, intercept]) / 2
        best = objective(x, y, weights, intercept, fit.c)
        ours = objective(x, y, fit.weights, fit.intercept, fit.c)
        assert fit.converged
        assert ours / best - 1 < GAP
        assert fit.loss == pytest.approx(ours, rel=1e-6)
        scores, theirs = fit.scores(x), model.predict(x.astype(np.float64))
        two = np.sort(scores, axis=1)[:, -2:]
        margin = two[:, 1] - two[:, 0]
        clear = margin > 0.01 * np.median(margin)  # labels that nothing explains leave some rows on the fence
        assert np.array_equal(scores.argmax(axis=1)[clear], theirs[clear])
        assert clear.mean() > 0.95
        assert abs((scores.argmax(axis=1) == y).mean() - (theirs == y).mean()) < 1.5 / len(y)
        probabilities = torch.softmax(torch.from_numpy(scores), dim=1).numpy()
        assert np.abs(probabilities - model.predict_proba(x.astype(np.float64))).max() < 0.02


def test_a_tighter_tolerance_comes_closer() -> None:
    x, y = rows("noise")
    gaps = []
    best = fit_path(stream(x, y), 4, [1.0], tolerance=1e-9)[0].loss
    for tolerance in (1e-2, 1e-4, 1e-6):
        (fit,) = fit_path(stream(x, y), 4, [1.0], tolerance=tolerance)
        gaps.append(fit.loss - best)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 1e-5


def test_the_size_of_pieces_does_not_matter() -> None:
    x, y = rows("digits")
    whole, parts = (fit_path(stream(x, y, size), 10, [1e-3, 1.0]) for size in (600, 37))
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert (one.scores(x).argmax(axis=1) == other.scores(x).argmax(axis=1)).all()


def test_the_same_again_bit_for_bit() -> None:
    x, y = rows("digits")
    first, second = (fit_path(stream(x, y), 10, [1e-3, 1.0]) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.weights, other.weights)
        assert np.array_equal(one.intercept, other.intercept)
        assert one.passes == other.passes


def test_all_values_of_c_share_their_passes() -> None:
    x, y = rows("digits")
    read = 0

    def counted() -> Iterator[Rows]:
        nonlocal read
        read += 1
        yield x, y

    fits = fit_path(counted, 10, [1e-4, 1e-2, 1.0])
    assert read == max(fit.passes for fit in fits)
    alone = [fit_path(stream(x, y, 600), 10, [fit.c])[0] for fit in fits]
    for one, other in zip(fits, alone, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_a_start_at_the_end_ends_at_once() -> None:
    x, y = rows("digits")
    fits = fit_path(stream(x, y), 10, [1e-3, 1.0])
    again = fit_path(stream(x, y), 10, [1e-3, 1.0], start=fits)
    for one, other in zip(fits, again, strict=True):
        assert other.passes < one.passes / 2
        assert other.loss == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.parametrize("there", [[1, 3], [0, 2, 5]])
def test_a_class_without_rows_is_never_predicted(there: list[int]) -> None:
    x, y = rows("digits")
    keep = np.isin(y, there)
    x, y = x[keep], y[keep]
    (fit,) = fit_path(stream(x, y), 7, [1.0])
    scores = fit.scores(x)
    assert np.isneginf(scores[:, sorted(set(range(7)) - set(there))]).all()
    assert (scores.argmax(axis=1) == y).all()
    places = np.searchsorted(there, y)
    (dense,) = fit_path(stream(x, places), len(there), [1.0])
    assert np.array_equal(dense.weights, fit.weights[:, there])


def test_a_class_that_the_start_did_not_know_is_learned() -> None:
    x, y = rows("wine")
    known = y != 1
    start = fit_path(stream(x[known], y[known]), 3, [1.0])
    (fit,) = fit_path(stream(x, y), 3, [1.0], start=start)
    (cold,) = fit_path(stream(x, y), 3, [1.0])
    assert fit.loss == pytest.approx(cold.loss, rel=1e-4)


def test_features_far_from_zero_lose_nothing() -> None:
    x, y = rows("wine")
    (near,), (far,) = (fit_path(stream(one.astype(np.float32), y), 3, [1.0]) for one in (x, x + 100))
    assert far.converged
    assert far.loss == pytest.approx(near.loss, rel=1e-3)


def test_rows_that_cannot_be_written_to() -> None:
    x, y = rows("wine")
    x, y = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    assert fit_path(stream(x, y), 3, [1.0])[0].converged


def test_too_few_passes_are_told() -> None:
    x, y = rows("digits")
    weak, strong = fit_path(stream(x, y), 10, [1e-6, 1e3], max_passes=8)
    assert (weak.converged, strong.converged) == (True, False)
    assert strong.passes == 8


def test_what_cannot_be_fitted_says_so() -> None:
    x, y = rows("digits")
    with pytest.raises(TooFewRows, match="two classes at least, got rows of 1"):
        fit_path(stream(x, np.zeros_like(y)), 10, [1.0])
    with pytest.raises(TooFewRows, match="got rows of 0"):
        fit_path(lambda: [], 10, [1.0])
    with pytest.raises(ValueError, match="C must be positive"):
        fit_path(stream(x, y), 10, [1.0, 0.0])
    none: list[LogisticFit] = []
    with pytest.raises(ValueError, match="got 0 for 1"):
        fit_path(stream(x, y), 10, [1.0], start=none)
