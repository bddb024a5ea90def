"""Selecting results by head, block, timestep and pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffssl.analysis.choose import choose_results, read_results
from diffssl.analysis.table import NoResults
from diffssl.probe import Results

Line = Callable[..., dict[str, Any]]


@pytest.fixture
def results(line: Line) -> list[dict[str, Any]]:
    """Blocks 1 and 2 with maps of 4 and 2, two timesteps, two heads; a head over both blocks; an encoder's class token."""
    sizes = {1: 4, 2: 2}
    grid = [
        (block, step, head, pool)
        for block in sizes
        for step in (10, 90)
        for head in ("linear", "knn")
        for pool in (1, sizes[block])
    ]
    lines = [line(b, t, 0.5, 0.5, head=head, pool=pool, map_size=sizes[b]) for b, t, head, pool in grid]
    fused = line(1, 10, 0.5, 0.5, head="difformer") | {"block": [1, 2], "timestep": [10, 90], "pool": [4, 2]}
    return [*lines, fused, line(3, None, 0.5, 0.5, pool="cls")]


@pytest.mark.parametrize(
    ("selection", "number"),
    [
        ({}, 18),
        ({"heads": ["knn"]}, 8),
        ({"blocks": {1: set()}}, 8),
        ({"blocks": {1: set(), 2: set()}}, 17),
        ({"timesteps": [90]}, 8),
        ({"timesteps": [10, 90], "heads": ["difformer"]}, 1),
        ({"pools": [1]}, 8),
        ({"pools": [2]}, 4),
        ({"pools": ["full"]}, 8),
        ({"pools": ["cls"]}, 1),
        ({"blocks": {1: {1}, 2: set()}, "pools": [4]}, 8),
        ({"blocks": {1: {4}, 2: {2}}, "heads": ["difformer"]}, 1),
    ],
    ids=[
        "all",
        "head",
        "block",
        "blocks",
        "timestep",
        "fused",
        "pool",
        "whole map",
        "full",
        "class token",
        "own pools",
        "fused pools",
    ],
)
def test_selections(results: list[dict[str, Any]], selection: dict[str, Any], number: int) -> None:
    assert len(choose_results(results, **selection)) == number


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"heads": ["linear", "forest"]}, "head forest; there are knn, linear, difformer"),
        ({"blocks": {7: set()}}, "block 7; there are 1, 2, 3"),
        ({"timesteps": [10, 20]}, "timestep 20; there are 10, 90, None"),
        ({"pools": [1], "heads": ["difformer"]}, "no results are left by the selection, out of 18"),
    ],
    ids=["head", "block", "timestep", "pool"],
)
def test_what_has_no_results_is_named(results: list[dict[str, Any]], selection: dict[str, Any], message: str) -> None:
    with pytest.raises(NoResults, match=message):
        choose_results(results, **selection)


def test_lines_know_their_folder_and_a_folder_given_twice_is_one(line: Line, tmp_path: Path) -> None:
    folders = [tmp_path / "a.results", tmp_path / "b.results"]
    for folder in folders:
        Results(folder).append(line(1, 10, 0.5, 0.5))
    assert [one["results"] for one in read_results([*folders, folders[0]])] == [str(folder) for folder in folders]
    with pytest.raises(NoResults, match=r"none\.results has no results; run diffssl-probe first"):
        read_results([folders[0], tmp_path / "none.results"])
