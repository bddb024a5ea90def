"""Results as settings: what is a repetition, and what has a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.compare import compare, describe
from diffssl.analysis.paired import hits_of, paired_settings
from diffssl.probe import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]
Tested = Callable[..., dict[str, Any]]


def few(tested: Tested, shots: int | None, repeat: int, seed: int = 0, val: float = 0.5, **more: Any) -> dict[str, Any]:
    line = tested(
        np.random.default_rng([repeat, seed]).random(400) < 0.6, 1, val, seed=seed, n_train=10 * (shots or 50), **more
    )
    subset = None if shots is None else {"shots": shots, "fraction": None, "repeat": repeat}
    rows = {"rows": f"{shots} {repeat}", "trained": f"t{shots} {repeat}", "subset": subset}
    return line | {"specification": line["specification"] | rows}


def test_subsets_of_a_size_are_pooled_like_seeds(tested: Tested) -> None:
    lines = [few(tested, shots, repeat, seed) for shots in (2, 5) for repeat in range(3) for seed in range(2)]
    found = paired_settings(lines)
    assert [(one.seeds, one.subsets, len(one.lines)) for one in found] == [(2, 3, 6), (2, 3, 6)]
    assert [one.options for one in found] == ["shots 2", "shots 5"]
    text = describe(compare(lines, np.random.default_rng(0)))
    assert text[1].endswith("shots 2; 2 seeds; 3 subsets")
    assert any("pooled like seeds" in line for line in text)


def test_a_fit_on_all_rows_is_a_setting_beside_those_on_few(tested: Tested) -> None:
    found = paired_settings([few(tested, None, 0), *(few(tested, 2, repeat, val=0.4) for repeat in range(2))])
    assert [(one.options, one.subsets) for one in found] == [("shots none", 1), ("shots 2", 2)]
    assert not any(
        "pooled" in line for line in describe(compare([few(tested, None, 0), few(tested, 2, 0)], np.random.default_rng(0)))
    )


def test_means_and_hits_are_of_all_fits(tested: Tested) -> None:
    lines = [few(tested, 2, repeat, val=0.1 * repeat) for repeat in range(3)]
    one, _ = paired_settings([*lines, few(tested, 5, 0, val=0.0)])
    assert one.val == pytest.approx(0.1)
    expected = np.mean([line["test_top1"] for line in lines])
    assert hits_of(one.lines).mean() == pytest.approx(expected)


def test_the_same_number_of_shots_of_fewer_rows_is_not_pooled(tested: Tested) -> None:
    """A fraction of a pilot has fewer rows than that of all."""
    lines = [few(tested, 2, repeat) for repeat in range(2)]
    found = paired_settings([*lines, *({**line, "n_train": 10} for line in lines)])
    assert [one.subsets for one in found] == [2, 2]


def test_costs_are_those_of_the_lines(tested: Tested) -> None:
    lines = [few(tested, 2, 0, gflop=1.5, bytes=64), few(tested, 5, 0)]
    assert {(one.gflop, one.bytes) for one in paired_settings(lines)} == {(1.5, 64), (None, None)}


def test_costs_are_known_if_any_line_says_them(tested: Tested) -> None:
    """A folder may have lines of an older version beside newer ones."""
    one, _ = paired_settings([few(tested, 2, 0), few(tested, 2, 1, gflop=1.5, bytes=64), few(tested, 5, 0, val=0.1)])
    assert (one.gflop, one.bytes) == (1.5, 64)


def test_few_shot_fits_of_a_store_are_pooled(make_store: MakeStore) -> None:
    store = make_store({"train": 160, "test": 60}, [FeatureKey(1, 10, 1), FeatureKey(2, 10, 1)])
    spec = ProbeSpec(Path(store.path), ["ridge"], shots=[5, 10], repeats=3, device="cpu")
    found = paired_settings(probe(spec, lambda _: None))
    assert sorted((one.setting, one.options, one.subsets) for one in found) == [
        (f"block {block}, timestep 10, pool 1", f"shots {shots}", 3) for block in (1, 2) for shots in (10, 5)
    ]
    assert all(one.gflop == pytest.approx(0.1 * one.lines[0]["block"]) for one in found)
