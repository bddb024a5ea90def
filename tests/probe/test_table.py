"""The ranked table: by val, never by test; seeds as one line with their spread."""

from __future__ import annotations

from typing import Any

import pytest
from diffssl.probe.table import ranking


def result(block: int, val: float, test: float, **more: Any) -> dict[str, Any]:
    return {
        "head": "linear",
        "block": block,
        "timestep": 90,
        "pool": 2,
        "draw": 0,
        "crop": 0,
        "seed": 0,
        "n_test": 2000,
        "val_top1": val,
        "test_top1": test,
        "test_top1_low": test - 0.0111,
        "test_top1_high": test + 0.0122,
        "at_edge": False,
        **more,
    }


def blocks(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines[1:-1]]


def test_settings_are_ranked_by_val_not_by_test() -> None:
    lines = ranking([result(1, 0.60, 0.90), result(2, 0.80, 0.10), result(3, 0.70, 0.95)])
    assert blocks(lines) == [2, 3, 1]
    assert lines[-1] == "best by val: linear on block 2, timestep 90, pool 2: test top-1 0.1000 [0.0889, 0.1122] on 2000 rows"


def test_a_line_has_val_test_and_its_interval() -> None:
    header, line, _ = ranking([result(24, 0.7654321, 0.5432109)])
    assert header.split() == [
        "head",
        "block",
        "timestep",
        "pool",
        "val",
        "top-1",
        "test",
        "top-1",
        "95",
        "%",
        "interval",
        "flags",
    ]
    assert line.split() == ["linear", "24", "90", "2", "0.7654", "0.5432", "[0.5321,", "0.5554]"]


def test_columns_are_aligned() -> None:
    lines = ranking([result(7, 0.5, 0.5), result(37, 1.0, 1.0, head="logreg", timestep=None, pool="cls")])
    assert len({line.index("[") for line in lines[1:-1]}) == 1
    assert lines[0].index("95") == lines[1].index("[")


def test_seeds_are_one_line_with_means_and_their_spread() -> None:
    lines = ranking([result(1, 0.6, 0.50), result(1, 0.8, 0.60, seed=1), result(1, 0.7, 0.70, seed=2), result(2, 0.65, 0.9)])
    assert blocks(lines) == [1, 2]
    assert lines[1].split()[4:6] == ["0.7000", "0.6000"]
    assert "[0.5889, 0.6122]" in lines[1]
    assert lines[1].endswith("sd over 3 seeds 0.1000")
    assert "sd" not in lines[2]


def test_one_lucky_seed_does_not_win() -> None:
    lines = ranking([result(1, 0.9, 0.5), result(1, 0.1, 0.5, seed=1), result(2, 0.6, 0.5), result(2, 0.6, 0.5, seed=1)])
    assert blocks(lines) == [2, 1]


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({}, ""),
        ({"at_edge": True}, "choice at the grid's edge"),
        ({"converged": False}, "not converged"),
        ({"converged": True}, ""),
        ({"at_edge": True, "converged": False}, "choice at the grid's edge; not converged"),
    ],
    ids=str,
)
def test_doubtful_fits_are_flagged(more: dict[str, Any], flag: str) -> None:
    assert ranking([result(1, 0.5, 0.5, **more)])[1].partition("]")[2].strip() == flag


@pytest.mark.parametrize("name", ["draw", "crop"])
def test_noise_draws_and_crops_are_told_apart(name: str) -> None:
    lines = ranking([result(1, 0.7, 0.5, **{name: 1}), result(1, 0.6, 0.5)])
    assert f"{name} 1" in lines[1] + lines[-1]


def test_a_long_table_is_cut_and_says_so() -> None:
    lines = ranking([result(block, block / 1000, 0.5) for block in range(1, 101)])
    assert blocks([*lines[:-2], ""]) == list(range(100, 60, -1))
    assert lines[-2] == "… and 60 more"
    assert "block 100" in lines[-1]


def test_an_encoder_without_timesteps_has_a_dash() -> None:
    _, line, best = ranking([result(7, 0.5, 0.4, timestep=None, pool="cls")])
    assert line.split()[:4] == ["linear", "7", "-", "cls"]
    assert best.startswith("best by val: linear on block 7, pool cls: test top-1 0.4000")
