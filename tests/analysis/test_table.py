"""Accuracy maps: the best by val with its test value, small maps, and results that do not belong together."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.analysis import AccuracyMap, NoResults, accuracy_maps
from diffssl.analysis.table import of_most_rows, write_maps
from diffssl.probe import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore

Line = Callable[..., dict[str, Any]]
MakeStore = Callable[..., FeatureStore]


def only(results: list[dict[str, Any]], **selection: Any) -> AccuracyMap:
    (one,) = accuracy_maps(results, **selection)
    return one


def test_a_map_is_block_by_timestep(line: Line) -> None:
    one = only([line(24, 90, 0.4, 0.5), line(3, 10, 0.1, 0.2), line(24, 10, 0.3, 0.6)])
    assert (one.head, one.pool, one.n_test, one.seeds) == ("linear", 1, 2000, 1)
    assert (one.blocks, one.timesteps) == ([3, 24], [10, 90])
    np.testing.assert_array_equal(one.val, [[0.1, np.nan], [0.3, 0.4]])
    np.testing.assert_array_equal(one.test, [[0.2, np.nan], [0.6, 0.5]])


def test_the_best_is_chosen_by_val_and_shown_with_its_test_value(line: Line) -> None:
    one = only([line(1, 10, 0.8, 0.1), line(1, 90, 0.7, 0.9), line(2, 10, 0.6, 0.95)])
    assert one.best == (0, 0)
    assert one.test[one.best] == 0.1
    assert one.interval == pytest.approx((0.08, 0.11))


def test_seeds_are_means(line: Line) -> None:
    results = [line(1, 10, val, val + 0.1, seed=seed) for seed, val in enumerate((0.2, 0.9))]
    results += [line(2, 10, 0.6, 0.8, seed=seed) for seed in (0, 1)]
    one = only(results)
    assert one.seeds == 2
    assert one.val[:, 0] == pytest.approx([0.55, 0.6])
    assert one.test[:, 0] == pytest.approx([0.65, 0.8])
    assert one.best == (1, 0)  # not the block with the luckiest seed
    assert one.interval == pytest.approx((0.78, 0.81))


def test_one_map_a_head_and_pool(line: Line) -> None:
    results = [line(1, 10, 0.5, 0.5, head=head, pool=pool) for head in ("mlp", "linear") for pool in (16, 2, 1)]
    maps = accuracy_maps(results)
    assert [(one.head, one.pool) for one in maps] == [(head, pool) for head in ("mlp", "linear") for pool in (1, 2, 16)]
    assert [(one.head, one.pool) for one in accuracy_maps(results, ["linear"], [2])] == [("linear", 2)]


def test_a_pool_larger_than_a_block_is_its_whole_map(line: Line) -> None:
    """Block 1 has pools 1, 2 and 4; block 2 has a 2 x 2 map."""
    results = [line(1, 10, 0.1 * pool, 0.1, pool=pool) for pool in (1, 2, 4)]
    results += [line(2, 10, 0.11 * pool, 0.1, pool=pool) for pool in (1, 2)]
    by_pool = {one.pool: one.val[:, 0].tolist() for one in accuracy_maps(results)}
    assert by_pool == {1: [0.1, 0.11], 2: [0.2, 0.22], 4: [0.4, 0.22]}
    assert only(results, pools=[8]).val[:, 0].tolist() == [0.4, 0.22]


def test_class_tokens_are_a_pool_of_their_own(line: Line) -> None:
    maps = accuracy_maps([line(1, 10, 0.3, 0.3, pool=1), line(1, 10, 0.4, 0.4, pool="cls")])
    assert {one.pool: one.val.item() for one in maps} == {1: 0.3, "cls": 0.4}


def test_a_pool_that_was_not_probed_is_not_another(make_store: MakeStore) -> None:
    """A smaller pool stands in only where the map is no larger; blocks 1 and 2 have 4 x 4 maps, block 3 has one of 1 x 1."""
    keys = [FeatureKey(1, 10, 1), FeatureKey(1, 10, 2), FeatureKey(2, 10, 1), FeatureKey(3, 10, 1)]
    store = make_store({"train": 100, "test": 60}, keys, sizes=(4, 4, 1))
    results = probe(ProbeSpec(Path(store.path), ["linear"], steps=5, device="cpu"), lambda _: None)
    one = only(results, pools=[2])
    shown = {block for block, value in zip(one.blocks, one.val[:, 0], strict=True) if np.isfinite(value)}
    assert shown == {1, 3}


def test_results_without_timesteps_are_one_column(line: Line) -> None:
    one = only([line(1, None, 0.9, 0.8), line(2, None, 0.7, 0.95)])
    assert (one.blocks, one.timesteps, one.best) == ([1, 2], [None], (0, 0))
    assert one.val.tolist() == [[0.9], [0.7]]
    assert only([line(1, 10, 0.5, 0.5), line(1, None, 0.9, 0.9)]).timesteps == [10]


@pytest.mark.parametrize(
    "other",
    [
        {"feature_id": "g"},
        {"n_train": 800},
        {"n_test": 100},
        {"data_id": {"train": "a", "test": "c"}},
        {"specification": {"rows": "s", "options": {"steps": 1000}, "refit": True}},
        {"specification": {"rows": "r", "options": {"steps": 10}, "refit": True}},
    ],
    ids=["backbone", "training rows", "test rows", "data", "rows of the same number", "options"],
)
@pytest.mark.parametrize("place", [(1, 10), (2, 90)], ids=["same cell", "other cell"])
def test_results_that_cannot_be_compared_are_refused(line: Line, other: dict[str, Any], place: tuple[int, int]) -> None:
    with pytest.raises(NoResults, match="mix"):
        accuracy_maps([line(1, 10, 0.5, 0.5), line(*place, 0.6, 0.6, **other)])


def test_heads_may_have_options_of_their_own(line: Line) -> None:
    other = {"specification": {"rows": "r", "options": {"C": [1]}, "refit": True}, "head": "logreg"}
    assert len(accuracy_maps([line(1, 10, 0.5, 0.5), line(1, 10, 0.6, 0.6, **other)])) == 2


def test_draws_of_the_noise_are_not_seeds(line: Line) -> None:
    results = [line(1, 10, 0.5, 0.5, draw=draw, seed=seed) for draw in (0, 1) for seed in (0, 1, 2)]
    assert {one.seeds for one in accuracy_maps(results)} == {3}


def test_no_results_say_what_to_do() -> None:
    with pytest.raises(NoResults, match="run diffssl-probe first"):
        accuracy_maps([])


@pytest.mark.parametrize("heads", [["forest"], ["linear", "forest"]], ids=str)
def test_a_head_without_results_is_named_beside_those_that_have_some(line: Line, heads: list[str]) -> None:
    with pytest.raises(NoResults, match=r"forest.*linear.*mlp"):
        accuracy_maps([line(1, 10, 0.5, 0.5), line(1, 10, 0.5, 0.5, head="mlp")], heads)


def test_a_pool_without_results_is_named(line: Line) -> None:
    with pytest.raises(NoResults, match="pool 1"):
        accuracy_maps([line(1, 10, 0.5, 0.5, pool=2)], pools=[1])


def test_fits_on_fewer_rows_are_left_out_and_counted() -> None:
    results = [{"n_train": 244}, {"n_train": 261}, {"n_train": 261}]
    kept, notes = of_most_rows(results)
    assert kept == results[1:]
    assert notes == ["1 fits on fewer training rows than 261 are left out (pilots, or subsets of the training rows)"]
    assert of_most_rows(kept) == (kept, [])
    assert of_most_rows([]) == ([], [])


def test_intervals_are_kept_for_every_cell(line: Line) -> None:
    """Wilson's interval of 45 of 90 rows, by its formula; those of test are the fits' own."""
    one = only([line(1, 10, 0.5, 0.6), line(2, 10, 0.4, 0.7)])
    z = 1.959964
    centre, half = (0.5 + z**2 / 180) / (1 + z**2 / 90), z / (1 + z**2 / 90) * np.sqrt(0.25 / 90 + z**2 / (4 * 90**2))
    assert (one.val_low[0, 0], one.val_high[0, 0]) == pytest.approx((centre - half, centre + half))
    assert one.test_low[:, 0] == pytest.approx([0.58, 0.68])
    assert one.test_high[:, 0] == pytest.approx([0.61, 0.71])
    assert one.accuracy("val")[1] is one.val_low
    assert one.accuracy("test")[2] is one.test_high


def test_folders_have_maps_of_their_own(line: Line) -> None:
    stores = {"x/a.results": "f", "x/b.results": "g"}
    results = [line(1, 10, 0.5, 0.5, results=name, feature_id=own, n_test=n) for n, (name, own) in enumerate(stores.items(), 5)]
    maps = accuracy_maps(results)
    assert [(one.results, one.n_test) for one in maps] == [("a", 5), ("b", 6)]
    assert maps[1].title == "b: linear, pool 1"
    assert [one.results for one in accuracy_maps([{**one, "results": f"{i}/a.results"} for i, one in enumerate(results)])] == [
        "0/a.results",
        "1/a.results",
    ]
    with pytest.raises(NoResults, match="mix"):
        accuracy_maps([*results, line(2, 10, 0.5, 0.5, results="x/a.results", feature_id="g", n_test=5)])


def test_a_head_may_be_in_one_folder_alone(line: Line) -> None:
    results = [line(1, 10, 0.5, 0.5, results="a.results"), line(1, 10, 0.5, 0.5, results="b.results", head="mlp")]
    assert [(one.results, one.head) for one in accuracy_maps(results)] == [("a", "linear"), ("b", "mlp")]
    assert [one.results for one in accuracy_maps(results, ["mlp"])] == ["b"]


def test_fits_on_fewer_rows_are_left_out_of_each_folder() -> None:
    results = [{"n_train": n, "results": folder} for folder, n in (("a", 100), ("a", 90), ("b", 50))]
    kept, notes = of_most_rows(results)
    assert kept == [results[0], results[2]]
    assert notes == ["a: 1 fits on fewer training rows than 100 are left out (pilots, or subsets of the training rows)"]


def test_costs_are_known_if_any_line_of_a_cell_says_them(line: Line) -> None:
    new = line(1, 10, 0.5, 0.5, seed=1, gflop=1.5, bytes=64, log_snr=2.5)
    one = only([line(1, 10, 0.5, 0.5), new, line(1, 10, 0.5, 0.5, seed=2)])
    assert (one.gflop.item(), one.bytes.item(), one.log_snr) == (1.5, 64, [2.5])


def test_the_csv_has_a_line_a_cell_with_intervals_and_costs(line: Line, tmp_path: Path) -> None:
    results = [line(1, 10, 0.5, 0.6, gflop=1.5, bytes=64, log_snr=2.5), line(2, 90, 0.7, 0.8), line(2, None, 0.7, 0.8)]
    write_maps(accuracy_maps(results), tmp_path / "maps.csv")
    with (tmp_path / "maps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["block"], row["timestep"], row["best"]) for row in rows] == [("1", "10", "0"), ("2", "90", "1")]
    assert [(row["gflop"], row["bytes"], row["log_snr"]) for row in rows] == [("1.5", "64.0", "2.5"), ("", "", "")]
    for row in rows:
        assert float(row["val_low"]) < float(row["val"]) < float(row["val_high"])
        assert float(row["test_high"]) == pytest.approx(float(row["test"]) + 0.01)
