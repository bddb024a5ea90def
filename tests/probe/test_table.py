"""The ranked table: by val, never by test; seeds as one line with their spread."""

from __future__ import annotations

from typing import Any

import pytest
from diffssl.probe.table import describe_setting, ranking, scores_table


def result(block: int, val: float, test: float, **more: Any) -> dict[str, Any]:
    return {
        "head": "linear",
        "task": "classify",
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


def test_nothing_to_rank_is_said() -> None:
    assert ranking([]) == ["no fits in this part"]


def test_several_settings_are_one_line() -> None:
    several = result(0, 0.5, 0.4, head="difformer", timestep=[90, 90, 150, 150], pool=[8, 16] * 2) | {"block": [19, 24] * 2}
    _, line, best = ranking([several])
    assert line.split()[:4] == ["difformer", "19,24", "90,150", "8,16"]
    assert best.startswith("best by val: difformer on blocks 19@8,24@16, timesteps 90,150: test top-1 0.4000")
    assert describe_setting(several | {"timestep": [None] * 4}) == "blocks 19@8,24@16"


@pytest.mark.parametrize(("task", "name", "title"), [("multilabel", "map", "mAP"), ("regress", "r2", "R2")])
def test_other_tasks_are_ranked_by_their_own_score(task: str, name: str, title: str) -> None:
    def other(block: int, val: float | None, test: float) -> dict[str, Any]:
        scores = {f"val_{name}": val, f"test_{name}": test, f"test_{name}_low": test - 0.1, f"test_{name}_high": test + 0.1}
        bare = {key: value for key, value in result(block, 0.0, 0.0).items() if "top1" not in key}
        return bare | scores | {"task": task}

    lines = ranking([other(1, 0.2, 0.9), other(2, 0.6, 0.3)])
    assert blocks(lines) == [2, 1]
    assert f"val {title}" in lines[0]
    assert f"test {title}" in lines[0]
    assert lines[-1].endswith(f"test {title} 0.3000 [0.2000, 0.4000] on 2000 rows")


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"shots": 5, "fraction": None, "repeat": 0}, "5 shots"),
        ({"shots": None, "fraction": 0.1, "repeat": 0}, "fraction 0.1"),
        ({"store": "a.zarr"}, "store a.zarr"),
        ({"best_of_grid_on_test_top1": 0.625}, "if it were chosen on test: 0.6250"),
        ({"test_top1_draws": [0.5, 0.6], "test_top1_ensemble": 0.65}, "mean of 2 draws 0.6500, sd over draws 0.0707"),
    ],
    ids=["shots", "fraction", "store", "chosen on test", "draws"],
)
def test_what_a_line_is_about_is_said(more: dict[str, Any], flag: str) -> None:
    assert ranking([result(1, 0.5, 0.5, **more)])[1].partition("]")[2].strip() == flag


@pytest.mark.parametrize("name", ["store", "shots", "fraction"])
def test_lines_are_apart_by_store_and_by_subset(name: str) -> None:
    two: dict[str, list[Any]] = {"store": ["a.zarr", "b.zarr"], "shots": [2, 5], "fraction": [0.1, 0.5]}
    assert len(ranking([result(1, 0.5, 0.5, **{name: value}) for value in two[name]])) == 4


def test_subsets_are_one_line_with_their_spread() -> None:
    lines = ranking([result(1, 0.6, test, shots=5, repeat=i) for i, test in enumerate([0.5, 0.6, 0.7])])
    assert len(lines) == 3
    assert lines[1].endswith("5 shots; sd over 3 subsets 0.1000")


def test_heads_that_were_kept_are_listed_as_they_are_given() -> None:
    lines = scores_table([result(1, 0.5, 0.4, store="a.zarr"), result(2, 0.5, 0.9, store="b.zarr", draw=1)])
    assert "val" not in lines[0].split()
    assert [line.split()[:5] for line in lines[1:]] == [
        ["linear", "1", "90", "2", "0.4000"],
        ["linear", "2", "90", "2", "0.9000"],
    ]
    assert lines[1].endswith("store a.zarr")
    assert lines[2].endswith("draw 1; store b.zarr")
