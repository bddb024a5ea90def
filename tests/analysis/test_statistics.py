"""Statistics of features against numpy's SVD and formulas written out, whatever the chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffssl.analysis.rows import Degenerate
from diffssl.analysis.statistics import MAX_FEATURES, Statistics, effective_rank, noise_share, participation_ratio, statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Features = NDArray[Any]


def written_out(x: Features, labels: NDArray[np.int64]) -> dict[str, float]:
    """Every number by its definition."""
    x = x.astype(np.float64)
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    singular = singular[singular > 1e-9 * singular[0]]
    p = singular / singular.sum()
    known = labels >= 0
    own, classes = x[known], labels[known]
    means = np.stack([own[classes == c].mean(axis=0) for c in classes])
    norms = np.sqrt((x**2).sum(axis=1))
    d = x.shape[1]
    there = norms > 0
    return {
        "effective_rank": float(np.exp(-(p * np.log(p)).sum())),
        "participation_ratio": float((singular**2).sum() ** 2 / (singular**4).sum()),
        "fisher_ratio": float(((means - own.mean(axis=0)) ** 2).sum() / ((own - means) ** 2).sum()),
        "mean_norm": float(norms.mean()),
        "norm_deviation": float(norms.std()),
        "sparsity": float(
            np.mean([(d**0.5 - np.abs(row).sum() / n) / (d**0.5 - 1) for row, n in zip(x[there], norms[there], strict=True)])
        ),
    }


def check(x: Features, labels: NDArray[np.int64], chunk_bytes: int) -> Statistics:
    found = statistics(x, labels, chunk_bytes=chunk_bytes)
    assert (found.rows, found.features) == x.shape
    for name, value in written_out(x, labels).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
    return found


each_chunk = pytest.mark.parametrize("chunk_bytes", [1, 8 * 64 * 7, 1 << 24], ids=["a row", "7 rows", "all"])


@each_chunk
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_images_as_they_are_stored(chunk_bytes: int, dtype: str) -> None:
    digits = load_digits()
    labels = digits.target[:200].astype(np.int64)
    labels[::9] = -1
    found = check((digits.images[:200].reshape(200, -1) / 16).astype(dtype), labels, chunk_bytes)
    assert found.fisher_ratio is not None
    assert found.fisher_ratio > 0.3


@each_chunk
def test_fewer_rows_than_features_and_large_means(chunk_bytes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 64)) * np.logspace(0, -2, 64) + 1000
    found = check(x, rng.integers(3, size=40), chunk_bytes)
    assert found.effective_rank is not None
    assert found.effective_rank < 39


def test_a_row_of_zeros_has_no_sparsity_and_does_not_count() -> None:
    x = np.random.default_rng(0).normal(size=(30, 5))
    x[4] = 0
    check(x, np.arange(30) % 2, 1 << 24)


def test_sparsity_is_zero_of_equal_entries_and_one_of_a_single_one() -> None:
    assert statistics(np.array([[1.0, -1, 1], [2, 2, -2]]), np.array([-1, -1])).sparsity == pytest.approx(0)
    assert statistics(np.array([[0.0, -3, 0], [5, 0, 0]]), np.array([-1, -1])).sparsity == pytest.approx(1)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 30), d=st.integers(2, 12), rank=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_ranks_lie_between_one_and_the_rank(seed: int, n: int, d: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) + rng.normal(size=d)
    found = statistics(x, np.full(n, -1))
    most = min(rank, n - 1, d)
    assert found.effective_rank is not None
    assert found.participation_ratio is not None
    assert 1 - 1e-9 <= found.participation_ratio <= most + 1e-6
    assert 1 - 1e-9 <= found.effective_rank <= most + 1e-4  # a rounding error of 1e-16 is one of 1e-8 in a singular value


def test_equal_eigenvalues_have_the_full_rank_and_single_ones_rank_one() -> None:
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert participation_ratio(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([0.0, 0, 5])) == pytest.approx(1)
    assert participation_ratio(np.array([0.0, 0, 5])) == pytest.approx(1)
    assert effective_rank(np.array([1.0, 9])) == pytest.approx(np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75))))


@pytest.mark.parametrize("labels", [np.full(20, -1), np.zeros(20, dtype=int), np.where(np.arange(20) < 5, 0, -1)], ids=str)
def test_without_two_classes_there_is_no_separability(labels: NDArray[np.int64]) -> None:
    assert statistics(np.random.default_rng(0).normal(size=(20, 3)), labels).fisher_ratio is None


def test_classes_of_one_row_have_no_scatter() -> None:
    assert statistics(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20)).fisher_ratio is None


def test_features_that_do_not_vary_have_no_rank() -> None:
    found = statistics(np.full((20, 3), 0.1), np.arange(20) % 2)
    assert (found.effective_rank, found.participation_ratio, found.fisher_ratio) == (None, None, None)
    assert found.mean_norm == pytest.approx(0.1 * 3**0.5)


def icc(x: Features) -> float:
    """ICC(1) of (k, n) ratings by the analysis of variance, a feature at a time."""
    k, n = x.shape
    between = k * ((x.mean(axis=0) - x.mean()) ** 2).sum() / (n - 1)
    within = ((x - x.mean(axis=0)) ** 2).sum() / (n * (k - 1))
    return float((between - within) / (between + (k - 1) * within))


@each_chunk
@pytest.mark.parametrize("k", [2, 3])
def test_the_share_of_noise_is_one_less_the_intraclass_correlation(chunk_bytes: int, k: int) -> None:
    rng = np.random.default_rng(k)
    draws = rng.normal(size=(50, 1)) + 100 + 0.5 * rng.normal(size=(k, 50, 1))
    assert noise_share(list(draws), chunk_bytes=chunk_bytes) == pytest.approx(1 - icc(draws[:, :, 0]), rel=1e-9)


def test_the_share_of_noise_is_what_was_added() -> None:
    rng = np.random.default_rng(0)
    signal = 2 * rng.normal(size=(4000, 5))
    assert noise_share([signal + rng.normal(size=signal.shape) for _ in range(2)]) == pytest.approx(0.2, abs=0.01)
    assert noise_share([signal, signal]) == 0
    assert noise_share([rng.normal(size=signal.shape) for _ in range(2)]) == pytest.approx(1, abs=0.05)


def test_one_draw_says_nothing_about_noise() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    assert noise_share([x]) is None
    assert noise_share([x[:1], x[1:2]]) is None
    assert noise_share([np.ones((20, 3))] * 2) is None


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3,\)"):
        statistics(np.ones((4, 2)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="n > 0"):
        statistics(np.ones((0, 2)), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="one shape"):
        noise_share([np.ones((4, 2)), np.ones((4, 3))])


def test_a_covariance_that_is_too_large_is_refused_with_what_to_do() -> None:
    with pytest.raises(Degenerate, match=f"--features {MAX_FEATURES}"):
        statistics(np.ones((2, MAX_FEATURES + 1), dtype=np.float16), np.zeros(2, dtype=int))
