"""Resamples: counts of the right distribution, in blocks, and intervals of what is defined."""

from __future__ import annotations

import numpy as np
import pytest
from diffssl.probe.bootstrap import resample_counts, with_intervals
from numpy.typing import NDArray


@pytest.mark.parametrize(("n", "resamples"), [(1, 5), (7, 1), (50, 3000), (200_000, 7)])
def test_every_resample_draws_as_many_rows_as_there_are(n: int, resamples: int) -> None:
    blocks = list(resample_counts(n, resamples, np.random.default_rng(0)))
    assert sum(block.shape[1] for block in blocks) == resamples
    for block in blocks:
        assert block.shape[0] == n
        assert (block.sum(axis=0) == n).all()
        assert block.nbytes <= 1 << 22 or block.shape[1] == 1


def test_counts_are_multinomial() -> None:
    n = 40
    counts = np.concatenate(list(resample_counts(n, 20_000, np.random.default_rng(0))), axis=1)
    covariance = np.cov(counts)
    assert counts.mean(axis=1) == pytest.approx(np.ones(n), abs=0.04)
    assert np.diag(covariance) == pytest.approx(np.full(n, 1 - 1 / n), abs=0.05)
    assert covariance[~np.eye(n, dtype=bool)].mean() == pytest.approx(-1 / n, abs=0.002)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(size=500)
    found = with_intervals(lambda counts: {"mean": values @ counts / 500}, 500, np.random.default_rng(1))
    error = values.std() / np.sqrt(500)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["mean_low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found["mean_high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_resamples_without_a_value_are_left_out_of_the_interval() -> None:
    def first_row(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {"some": np.where(counts[0] > 0, counts[0], np.nan), "none": np.full(counts.shape[1], np.nan)}

    found = with_intervals(first_row, 20, np.random.default_rng(0))
    assert (found["some"], found["some_low"]) == (1, 1)
    assert found["some_high"] > 1
    assert [found[f"none{end}"] for end in ("", "_low", "_high")] == [None, None, None]
