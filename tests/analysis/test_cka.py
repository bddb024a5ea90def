"""Linear CKA: the written-out formulas, whatever the tiles; what it is invariant to; what its intervals cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffssl.analysis.cka import BIASED, ESTIMATORS, UNBIASED, cka
from diffssl.analysis.rows import Degenerate
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Float = NDArray[np.float64]

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def written_out(x: NDArray[Any], y: NDArray[Any], estimator: str) -> float:
    """CKA by the definitions of HSIC_0 and HSIC_1, whole Gram matrices and centring matrix and all."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n = len(x)
    ones, centring = np.ones(n), np.eye(n) - 1 / n

    def hsic(k: Float, other: Float) -> float:
        if estimator == BIASED:
            return float(np.trace(k @ centring @ other @ centring))
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        sums = (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
        return float((np.trace(k @ other) + sums - 2 / (n - 2) * (ones @ k @ other @ ones)) / (n * (n - 3)))

    k, other = x @ x.T, y @ y.T
    return float(hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other)))


def table(features: list[NDArray[Any]], estimator: str) -> Float:
    return np.array([[written_out(x, y, estimator) for y in features] for x in features])


def related(rng: np.random.Generator, n: int, widths: tuple[int, ...]) -> list[Float]:
    """Features that share something, with means that are not zero."""
    hidden = rng.normal(size=(n, 4))
    return [hidden @ rng.normal(size=(4, d)) + rng.normal(size=(n, d)) + rng.normal(size=d) for d in widths]


@each_estimator
@pytest.mark.parametrize("n", [4, 5, 37, 130])
@pytest.mark.parametrize("tile_bytes", [1, 3 * 8 * 7**2, 1 << 27], ids=["a row a tile", "7 rows", "all rows"])
def test_is_the_written_out_formula_whatever_the_tiles(estimator: str, n: int, tile_bytes: int) -> None:
    features = related(np.random.default_rng(n), n, (1, 6, 200))
    found = cka(features, estimator, tile_bytes=tile_bytes)
    np.testing.assert_allclose(found.value, table(features, estimator), atol=1e-9)


@each_estimator
def test_intervals_do_not_hang_on_the_tiles(estimator: str) -> None:
    features = related(np.random.default_rng(0), 150, (3, 6, 20))
    one, other = (cka(features, estimator, tile_bytes=size) for size in (3 * 8 * 11**2, 1 << 27))
    np.testing.assert_allclose(one.low, other.low, atol=1e-10)
    np.testing.assert_allclose(one.high, other.high, atol=1e-10)


@each_estimator
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_images_as_they_are_stored(estimator: str, dtype: str) -> None:
    images = load_digits().images[:150]
    features = [images.reshape(150, -1), images.mean(axis=2), (images**2)[:, ::2].reshape(150, -1), np.sign(images[:, 4])]
    stored = [one.astype(dtype) for one in features]
    np.testing.assert_allclose(cka(stored, estimator).value, table(stored, estimator), atol=1e-9)


@each_estimator
def test_means_that_are_large_cost_no_digits(estimator: str) -> None:
    features = related(np.random.default_rng(1), 60, (5, 9))
    far = [one + 1e6 for one in features]
    np.testing.assert_allclose(cka(far, estimator).value, table(features, estimator), atol=1e-8)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(8, 40),
    widths=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    scale=st.floats(1e-30, 1e30),
    estimator=st.sampled_from(ESTIMATORS),
)
@settings(deadline=None, max_examples=40)
def test_rotations_shifts_and_scales_change_nothing(
    seed: int, n: int, widths: tuple[int, int], scale: float, estimator: str
) -> None:
    rng = np.random.default_rng(seed)
    x, y = related(rng, n, widths)
    turned, _ = np.linalg.qr(rng.normal(size=(widths[0], widths[0])))
    before, after = cka([x, y], estimator), cka([scale * (x @ turned + 3), y], estimator)
    np.testing.assert_allclose(after.value, before.value, atol=1e-9)
    np.testing.assert_allclose(after.low, before.low, atol=1e-6)
    assert np.all(np.abs(before.value) <= 1 + 1e-12)


def test_a_transform_that_is_no_rotation_is_seen() -> None:
    x = np.random.default_rng(0).normal(size=(200, 6))
    assert cka([x, x * np.logspace(0, 2, 6)], BIASED).value[0, 1] < 0.7


def test_independent_features_are_unlike_without_bias_only() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(300, d)) for d in (200, 250, 300)]
    off = ~np.eye(3, dtype=bool)
    assert np.all(np.abs(cka(features, UNBIASED).value[off]) < 0.02)
    assert np.all(cka(features, BIASED).value[off] > 0.4)


@each_estimator
def test_a_setting_with_itself_is_exactly_one_and_pairs_have_no_order(estimator: str) -> None:
    x, y = related(np.random.default_rng(2), 90, (7, 30))
    found = cka([x, y, x], estimator)
    for values in (found.value, found.low, found.high):
        np.testing.assert_array_equal(np.diagonal(values), 1)
        np.testing.assert_array_equal(values, values.T)
        assert values[0, 2] == pytest.approx(1, abs=1e-12)
    assert found.low[0, 1] < found.value[0, 1] < found.high[0, 1] < 1


@pytest.mark.parametrize(("noise", "n"), [(0.1, 100), (0.6, 100), (3.0, 200)])
def test_intervals_cover_the_similarity_of_the_population(noise: float, n: int) -> None:
    """Of 95 % intervals from 200 samples, about 95 % hold the CKA that the population has by its covariances."""
    rng = np.random.default_rng(0)
    a = np.diag(0.7 ** np.arange(8))
    b = a @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b + noise**2 * np.eye(8))
    truth = np.linalg.norm(a.T @ b) ** 2 / own
    covered = 0
    for _ in range(200):
        hidden = rng.normal(size=(n, 8))
        found = cka([hidden @ a, hidden @ b + noise * rng.normal(size=(n, 8))])
        covered += found.low[0, 1] <= truth <= found.high[0, 1]
    assert 0.9 < covered / 200 < 0.99


class Watched:
    """Features that remember the most rows that were asked for."""

    def __init__(self, values: Float) -> None:
        self.shape = values.shape
        self.most = 0
        self._values = values

    def __getitem__(self, rows: slice) -> Float:
        self.most = max(self.most, rows.stop - rows.start)
        return self._values[rows]


@pytest.mark.parametrize("n", [110, 220])
def test_rows_in_memory_are_bounded_by_the_tiles(n: int) -> None:
    features = [Watched(np.random.default_rng(i).normal(size=(n, 20_000))) for i in range(3)]
    found = cka(features, tile_bytes=16 * 20_000 * 30)
    assert max(one.most for one in features) <= 104  # where means are found: 16 MB of rows
    assert np.abs(found.value[0, 1]) < 0.05


def test_tiles_are_counted() -> None:
    seen: list[tuple[int, int]] = []
    cka([np.random.default_rng(0).normal(size=(96, 3))], tile_bytes=8 * 12**2, progress=lambda *two: seen.append(two))
    assert seen == [(done, 36) for done in range(1, 37)]  # 8 x 9 / 2


@pytest.mark.parametrize(
    ("shapes", "message"),
    [([], "same n"), ([(5, 2), (6, 2)], r"\(6, 2\)"), ([(5,)], "same n"), ([(5, 0)], "same n")],
    ids=["none", "rows", "flat", "empty"],
)
def test_features_that_do_not_fit_together_are_refused(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cka([np.ones(shape) for shape in shapes])


def test_an_estimator_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="one of biased, unbiased, got 'debiased'"):
        cka([np.eye(5)], "debiased")


@each_estimator
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e5])
def test_features_that_do_not_vary_are_named(estimator: str, constant: float) -> None:
    features = [np.random.default_rng(0).normal(size=(50, 3)), np.full((50, 3), constant)]
    with pytest.raises(Degenerate, match="block 7: the features are the same in all 50 rows"):
        cka(features, estimator, names=["block 3", "block 7"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(bad: float) -> None:
    features = np.random.default_rng(0).normal(size=(50, 3))
    features[20, 1] = bad
    with np.errstate(invalid="ignore"), pytest.raises(Degenerate, match=r"features 0: .* not finite"):
        cka([features])


def test_rows_that_are_all_equally_alike_have_no_unbiased_similarity() -> None:
    with pytest.raises(Degenerate, match="all rows are equally similar"):
        cka([np.eye(9)], UNBIASED)
    assert cka([np.eye(9)], BIASED).value[0, 0] == 1


@each_estimator
def test_three_rows_are_too_few(estimator: str) -> None:
    with pytest.raises(Degenerate, match="at least 4 rows, got 3"):
        cka([np.random.default_rng(0).normal(size=(3, 2))], estimator)
