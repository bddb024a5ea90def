"""Tables of similarity and of statistics from stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from diffssl.analysis.cka import ESTIMATORS, cka
from diffssl.analysis.similarity import groups_of, labels, noise_to_noise, pairs, similarity, statistics_table
from diffssl.analysis.statistics import noise_share, statistics
from diffssl.analysis.stored_rows import Selected, select
from diffssl.store import FeatureKey, FeatureStore
from diffssl.store.choice import Choice

MakeStore = Callable[..., FeatureStore]


@pytest.fixture
def real(real_store: FeatureStore) -> Selected:
    return select([real_store], [Choice()], None, 50)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("held", [0, 10_000, 1 << 30])
def test_real_features_have_the_written_out_cka_wherever_they_are_held(real: Selected, estimator: str, held: int) -> None:
    found = similarity(real, estimator, held).value
    centring = np.eye(50) - 1 / 50
    grams = []
    for one in real.settings:
        x = one.store.read(one.key, "all", slice(50)).reshape(50, -1).astype(np.float64)
        gram = centring @ x @ x.T @ centring
        if estimator == "unbiased":  # U-centring (Szekely and Rizzo 2014), of which HSIC_1 is the inner product
            gram -= np.diag(np.diag(gram))
            sums = gram.sum(axis=0)
            gram -= (sums[:, None] + sums) / 48 - gram.sum() / (49 * 48)
            gram -= np.diag(np.diag(gram))
        grams.append(gram.ravel())
    expected = np.array(grams) / np.linalg.norm(grams, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected @ expected.T, atol=1e-9)


def test_every_pair_has_a_row(real: Selected) -> None:
    found = similarity(real, "unbiased")
    table = pairs(real, found, "unbiased")
    assert len(table) == 8 * 9 // 2
    first = {name: table[1][name] for name in list(table[1])[:12]}
    path = real.settings[0].store.path
    assert first == {
        "store_a": path, "block_a": 19, "timestep_a": 10, "pool_a": 1, "draw_a": 0, "features_a": 128,
        "store_b": path, "block_b": 19, "timestep_b": 10, "pool_b": 1, "draw_b": 1, "features_b": 128,
    }  # fmt: skip
    assert table[1]["value"] == found.value[0, 1]
    assert table[1]["low"] < table[1]["value"] < table[1]["high"]
    assert (table[1]["estimator"], table[1]["split"], table[1]["rows"]) == ("unbiased", "all", 50)
    assert [
        row["value"] for row in table if all(row[f"{name}_a"] == row[f"{name}_b"] for name in ("block", "timestep", "draw"))
    ] == [1] * 8


def test_noise_to_noise_is_the_cka_between_draws(real: Selected) -> None:
    found = similarity(real, "biased")
    lines = noise_to_noise(real, found)
    assert len(lines) == 4
    path = real.settings[0].store.path
    ends = f"[{found.low[0, 1]:.3f}, {found.high[0, 1]:.3f}]"
    assert lines[0] == f"between draws: {path}, block 19, timestep 10, pool 1: {found.value[0, 1]:.3f} {ends}"
    values = [float(line.split(": ")[-1].split()[0]) for line in lines]
    assert values[0] > values[1]  # more noise, less in common
    assert values[2] > values[3]
    assert max(values) < 1


def test_of_more_than_two_draws_it_is_the_mean_over_pairs(make_store: MakeStore) -> None:
    store = make_store({"train": 60}, [FeatureKey(1, 10, 1, draw) for draw in range(3)] + [FeatureKey(2, 10, 1)])
    selected = select([store], [Choice()], None, None)
    found = similarity(selected, "unbiased")
    (line,) = noise_to_noise(selected, found)
    mean = np.mean([found.value[0, 1], found.value[0, 2], found.value[1, 2]])
    assert line == f"between draws: {store.path}, block 1, timestep 10, pool 1: {mean:.3f} mean of 3 pairs"


def test_stores_are_compared_row_by_row(make_store: MakeStore) -> None:
    """The same features in two stores that have other rows besides are exactly alike."""
    key = FeatureKey(1, 10, 1)
    values = {i: np.random.default_rng(i).normal(size=(8, 1, 1)) for i in range(120)}

    def store(name: str, first: int, last: int) -> FeatureStore:
        names = {f"c0/{i:04d}": i for i in range(first, last)}
        order: list[int] = []
        bare = make_store({"train": list(names)}, name=f"bare-{name}")
        order += [names[one] for one in bare.ids("train")]
        return make_store({"train": list(names)}, [key], name=name, features=lambda *_: np.stack([values[i] for i in order]))

    stores = [store("one.zarr", 0, 90), store("other.zarr", 40, 120)]
    selected = select(stores, [Choice()] * 2, None, None)
    found = similarity(selected, "unbiased")
    assert selected.settings[0].shape == (50, 8)
    assert found.value[0, 1] == pytest.approx(1, abs=1e-12)
    assert groups_of(selected.settings) == [(stores[0].path, 1), (stores[1].path, 1)]


def test_statistics_are_those_of_the_arrays(real: Selected) -> None:
    table = statistics_table(real)
    assert [(row["block"], row["timestep"], row["pool"], row["draw"]) for row in table] == [
        (block, step, pool, draw) for block, pool in ((19, 1), (24, 2)) for step in (10, 300) for draw in (0, 1)
    ]
    arrays = [one[:].astype(np.float64) for one in real.settings]
    expected = statistics(arrays[5], real.labels)
    assert {name: table[5][name] for name in vars(expected)} == pytest.approx(vars(expected))
    assert table[5]["noise_share"] == table[4]["noise_share"] == pytest.approx(noise_share(arrays[4:6]))
    assert 0 < table[0]["noise_share"] < table[2]["noise_share"] < 1.2  # timestep 10, then 300
    ranks = [float(np.exp(-(p * np.log(p)).sum())) for p in map(_spectrum, arrays)]
    assert [row["effective_rank"] for row in table] == pytest.approx(ranks, rel=1e-5)
    assert all(np.isfinite(value) for row in table for value in row.values() if isinstance(value, float))


def _spectrum(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    values = values[values > 1e-8 * values[0]]
    return np.asarray(values / values.sum())


def test_one_draw_without_labels_leaves_blanks(make_store: MakeStore) -> None:
    store = make_store({"train": [f"{i}.png" for i in range(60)]}, [FeatureKey(1, None, 1)])
    (row,) = statistics_table(select([store], [Choice()], None, None))
    assert (row["timestep"], row["noise_share"], row["fisher_ratio"]) == (None, None, None)


def test_short_names_leave_out_what_is_the_same_for_all(make_store: MakeStore) -> None:
    keys = [FeatureKey(1, 10, 1), FeatureKey(2, 10, 2, draw=1), FeatureKey(3, None, "cls")]
    store = make_store({"train": 60}, keys)
    settings = select([store], [Choice()], None, None).settings
    assert labels(settings) == ["b1 t10 p1 d0", "b2 t10 p2 d1", "b3 cls d0"]
    assert labels(settings[:1]) == ["b1 t10"]


def test_the_same_by_arrays(real: Selected) -> None:
    np.testing.assert_array_equal(similarity(real, "biased").value, cka([one[:] for one in real.settings], "biased").value)
