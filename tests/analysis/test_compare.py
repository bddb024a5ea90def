"""Comparisons: what is one setting, which is the reference, and results that cannot be paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.compare import Comparison, compare, describe, guideline
from diffssl.analysis.paired import DifferentRows
from diffssl.analysis.table import NoResults
from diffssl.probe.errors import ProbeError
from numpy.typing import NDArray

Tested = Callable[..., dict[str, Any]]


def random_hits(accuracy: float, seed: int = 0, n: int = 400) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(n) < accuracy


def compared(results: Sequence[dict[str, Any]]) -> Comparison:
    return compare(results, np.random.default_rng(0))


def test_the_reference_is_the_best_by_val_not_by_test(tested: Tested) -> None:
    found = compared([tested(random_hits(0.9), 1, 0.5), tested(random_hits(0.4), 2, 0.8), tested(random_hits(0.2), 3, 0.6)])
    assert [one.setting for one in found.settings] == [f"block {b}, timestep 10, pool 1" for b in (2, 3, 1)]
    assert found.reference is found.settings[0]
    assert [one.mark for one in found.settings] == ["=", "-", "+"]
    assert found.n_test == 400
    for one in found.settings:
        assert one.difference == pytest.approx(one.test - found.reference.test)
        assert one.won - one.lost == pytest.approx(400 * one.difference)


def test_seeds_of_a_setting_are_one_and_draws_are_not(tested: Tested) -> None:
    fits = [random_hits(0.7, seed) for seed in range(3)]
    results = [tested(hits, 1, val, seed=seed) for seed, (hits, val) in enumerate(zip(fits, (0.1, 0.5, 0.9), strict=True))]
    results += [tested(random_hits(0.7, 8), 1, 0.6, draw=1), tested(random_hits(0.7, 9), 1, 0.4, draw=1, seed=1)]
    mean, draw = sorted(compared(results).settings, key=lambda one: one.setting)
    assert (mean.seeds, draw.seeds) == (3, 2)
    assert (mean.val, draw.val) == pytest.approx((0.5, 0.5))
    assert mean.test == pytest.approx(np.mean(fits))
    assert draw.setting == "block 1, timestep 10, pool 1, draw 1"
    assert any("3 seeds" in line for line in describe(compared(results)))


def test_the_order_of_results_does_not_matter(tested: Tested) -> None:
    results = [tested(random_hits(0.6, block), block, 0.5) for block in range(1, 6)]
    assert compared(results) == compared(results[::-1])
    assert compared(results).reference.setting.startswith("block 1,")


def test_what_has_the_same_name_is_told_apart_by_its_options(tested: Tested) -> None:
    def options(setting: str, **values: Any) -> dict[str, Any]:
        return {"setting": setting, "head": "linear", "seed": 0, "options": {"batch": 8} | values}

    results = [
        tested(random_hits(0.6), 1, 0.5, specification=options("1", steps=10)),
        tested(random_hits(0.7), 1, 0.6, specification=options("1", steps=1000)),
        tested(random_hits(0.8), 2, 0.4, specification=options("2", steps=7)),
    ]
    assert [one.options for one in compared(results).settings] == ["steps 1000", "steps 10", ""]
    assert describe(compared(results))[1].endswith("steps 1000")


def test_several_settings_or_none_have_names(tested: Tested) -> None:
    fused = tested(random_hits(0.6), 1, 0.5, head="difformer") | {"block": [19, 24], "timestep": [90, 150], "pool": [8, 16]}
    fused["specification"] = fused["specification"] | {"setting": ["b19", "b24"]}
    encoder = tested(random_hits(0.6), 3, 0.4, timestep=None, pool="cls")
    names = [one.setting for one in compared([fused, encoder]).settings]
    assert names == ["blocks 19@8,24@16, timesteps 90,150", "block 3, pool cls"]


@pytest.mark.parametrize("folders", [("a.results", "b.results"), (None, None)], ids=["several", "one"])
def test_other_rows_are_refused_and_both_sides_named(tested: Tested, folders: tuple[str | None, str | None]) -> None:
    named = [{"results": folder} if folder else {} for folder in folders]
    first = tested(random_hits(0.6), 1, 0.5, **named[0])
    prefix = ["" if folder is None else f"{folder}: " for folder in folders]
    for hits, labels in ((random_hits(0.6, n=300), 0), (random_hits(0.6), 1)):
        with pytest.raises(DifferentRows) as error:
            compared([first, tested(hits, 2, 0.6, labels=labels, **named[1])])
        text = str(error.value)
        assert f"{prefix[0]}linear on block 1, timestep 10, pool 1 (400 test rows)" in text
        assert f"{prefix[1]}linear on block 2, timestep 10, pool 1 ({len(hits)})" in text
        assert "--limit" in text


@pytest.mark.parametrize("absent", ["test_hits", "test_rows"])
def test_results_without_hits_say_to_probe_again(tested: Tested, absent: str) -> None:
    results = [tested(random_hits(0.6), block, 0.5) for block in (1, 2)]
    del results[1][absent]
    with pytest.raises(NoResults, match=r"block 2.*no stored hits.*run diffssl-probe again"):
        compared(results)


@pytest.mark.parametrize("number", [0, 1])
def test_one_setting_is_nothing_to_compare(tested: Tested, number: int) -> None:
    with pytest.raises(NoResults, match=f"needs two settings or heads, got {number}"):
        compared([tested(random_hits(0.6), 1, 0.5, seed=seed) for seed in range(2 * number)])


def test_damaged_hits_name_their_line(tested: Tested) -> None:
    results = [tested(random_hits(0.6), block, 0.5, results="a.results") for block in (1, 2)]
    results[1]["test_hits"] = results[1]["test_hits"][:-4]
    with pytest.raises(ProbeError, match=r"a\.results: linear on block 2.*50 bytes, got"):
        compared(results)


def test_a_long_table_is_cut_and_says_so(tested: Tested) -> None:
    lines = describe(compared([tested(random_hits(0.6, block), block, 0.5) for block in range(1, 46)]))
    assert lines[41] == "… and 5 more"
    assert "44, better (+): 0" in lines[-2]
    assert len({len(line.rstrip()) for line in lines[2:41]}) == 1


def costly(tested: Tested, gflops: Sequence[float | None], size: Sequence[int] = (64, 64, 64, 64)) -> list[dict[str, Any]]:
    """Four settings, the best by val first; the last is much worse, and the others are equally good."""
    good = random_hits(0.7)
    bad = good & random_hits(0.5, 1)
    results = []
    for block, (gflop, number) in enumerate(zip(gflops, size, strict=True), start=1):
        cost = {} if gflop is None else {"gflop": gflop, "bytes": number}
        results.append(tested(good if block < 4 else bad, block, 1 - 0.1 * block, **cost))
    return results


@pytest.mark.parametrize(
    ("gflops", "sizes", "cheapest"),
    [
        ((4.0, 3.0, 2.0, 1.0), (64, 64, 64, 64), 3),
        ((2.0, 3.0, 4.0, 1.0), (64, 64, 64, 64), 1),
        ((2.0, 2.0, 2.0, 1.0), (64, 32, 128, 16), 2),
        ((2.0, 2.0, 2.0, 1.0), (64, 64, 64, 64), 1),
    ],
    ids=["gflop", "the reference", "bytes", "held-out accuracy"],
)
def test_the_cheapest_is_of_those_that_are_not_worse(
    tested: Tested, gflops: tuple[float, ...], sizes: tuple[int, ...], cheapest: int
) -> None:
    comparison = compared(costly(tested, gflops, sizes))
    found = guideline(comparison)
    assert found.best is comparison.reference
    assert [one.setting for one in found.as_good] == [f"block {b}, timestep 10, pool 1" for b in (1, 2, 3)]
    assert found.cheapest is not None
    assert found.cheapest.setting == f"block {cheapest}, timestep 10, pool 1"
    assert f"cheapest of the 3 that are not significantly worse: linear on block {cheapest}," in "\n".join(describe(comparison))


def test_the_guideline_says_what_is_saved_and_what_may_be_lost(tested: Tested) -> None:
    *_, cost, loss = describe(compared(costly(tested, (4.0, 3.0, 2.0, 1.0))))
    assert cost.endswith("2 GFLOP and 64 bytes an image, 50 % of the GFLOP of the reference (4 GFLOP and 64 bytes an image)")
    assert loss.startswith("test top-1 0.6425 beside 0.6425: a difference of +0.0000 [-0.")


def test_a_cheapest_of_unknown_costs_is_not_guessed(tested: Tested) -> None:
    comparison = compared(costly(tested, (4.0, None, 2.0, 1.0)))
    assert guideline(comparison).cheapest is None
    assert "the results of 1 do not say what they cost" in describe(comparison)[-1]
    assert guideline(compared(costly(tested, (4.0, 3.0, 2.0, None)))).cheapest is not None  # that one is worse anyway
