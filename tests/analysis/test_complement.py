"""Complements: chosen on one half and measured on the other."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.complement import Complement, complement, describe, write_csv
from diffssl.analysis.paired import paired_settings
from numpy.typing import NDArray

Tested = Callable[..., dict[str, Any]]


def found(lines: list[dict[str, Any]], **options: Any) -> dict[str, Complement]:
    return {one.what: one for one in complement(paired_settings(lines), np.random.default_rng(0), **options)}


def thirds(n: int = 600) -> NDArray[np.bool_]:
    """(3, n) each row is right in one of three settings, each in as many rows of either half."""
    rows = np.arange(n) // 2
    return np.stack([rows % 3 == number for number in range(3)])


def test_settings_that_share_nothing_add_up(tested: Tested) -> None:
    lines = [tested(hits, block, 0.5 - 0.1 * block) for block, hits in enumerate(thirds(), start=1)]
    by_name = found([*lines, tested(thirds()[0], 4, 0.05)])
    assert list(by_name) == ["best by val", "all settings", "pair", "triple"]
    assert by_name["best by val"].oracle == pytest.approx(1 / 3)
    assert (by_name["all settings"].oracle, by_name["all settings"].oracle_low, by_name["all settings"].rows) == (1, 1, 600)
    assert (by_name["pair"].rows, by_name["pair"].search) == (300, "exhaustive")
    assert (by_name["pair"].chosen, by_name["pair"].oracle) == pytest.approx((2 / 3, 2 / 3))
    assert by_name["pair"].gain_low < 1 / 3 < by_name["pair"].gain_high
    assert [one.split(",")[0] for one in by_name["triple"].settings] == [f"linear on block {block}" for block in (1, 2, 3)]
    assert by_name["triple"].gain == pytest.approx(2 / 3)


def test_what_is_best_by_luck_where_it_was_chosen_is_not_where_it_is_measured(tested: Tested) -> None:
    rng = np.random.default_rng(1)
    lines = [tested(rng.random(400) < 0.3, block, 0.5) for block in range(1, 31)]
    by_name = found(lines)
    chance = 1 - 0.7**3
    chosen = by_name["triple"].chosen
    assert chosen is not None
    assert chosen > chance + 0.07
    assert by_name["triple"].oracle == pytest.approx(chance, abs=0.06)


def test_triples_that_are_too_many_extend_the_best_pair(tested: Tested) -> None:
    lines = [tested(hits, block, 0.5 - 0.1 * block) for block, hits in enumerate(thirds(), start=1)]
    one = found([*lines, tested(thirds()[0], 4, 0.05)], most_words=1)["triple"]
    assert (one.search, one.chosen) == ("greedy", 1)
    assert "greedy" in "\n".join(describe([one]))


def test_two_fits_of_the_best_are_what_a_pair_has_to_beat(tested: Tested) -> None:
    rng = np.random.default_rng(0)
    fits = [rng.random(400) < 0.5 for _ in range(3)]
    lines = [tested(fits[0], 1, 0.5), tested(fits[1], 1, 0.5, seed=1), tested(fits[2], 2, 0.4)]
    by_name = found(lines)
    assert by_name["two fits of the best"].oracle == pytest.approx((fits[0] | fits[1]).mean())
    assert by_name["best by val"].oracle == pytest.approx(fits[0].mean())
    assert "triple" not in by_name
    assert any(line.startswith("one of two fits of the best right") for line in describe(list(by_name.values())))
    assert any("--seeds 2" in line for line in describe([by_name["pair"]]))


def test_the_csv_has_what_was_found(tested: Tested, tmp_path: Path) -> None:
    by_name = found([tested(hits, block, 0.5 - 0.1 * block) for block, hits in enumerate(thirds(), start=1)])
    write_csv(list(by_name.values()), tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == list(by_name)
    assert rows[2]["settings"].count("; ") == 1
    assert [row["chosen"] for row in rows[:2]] == ["", ""]
    assert float(rows[3]["gain"]) == pytest.approx(by_name["triple"].gain)
