"""The papers' studies can be read, every expected number is about a fit that they make, and a small one is carried out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from diffssl.probe.cli import command
from diffssl.probe.matrix import read_study

STUDIES = Path(__file__).parents[2] / "studies"


def grid(spec: Any) -> set[tuple[str, int, int, int | str]]:
    """(head, block, timestep, pool) of a run's fits on one setting."""
    return {
        (head, block, timestep, pool)
        for head in spec.heads
        for block, own in spec.blocks.items()
        for timestep in spec.timesteps
        for pool in own or spec.pools
    }


@pytest.mark.parametrize("name", ["paper_a", "paper_b"])
def test_every_expected_number_is_of_a_fit_of_the_study(name: str) -> None:
    study = read_study(STUDIES / f"{name}.json", [], {})
    fits = set().union(*(grid(spec) for spec in study.specs))
    assert study.expected
    for one in study.expected:
        assert 0 < one.value < 1
        if "block" in one.match:
            assert (one.match["head"], one.match["block"], one.match["timestep"], one.match["pool"]) in fits
        else:
            assert one.match["head"] in {head for spec in study.specs for head in spec.heads}
    matches = [json.dumps(one.match, sort_keys=True) for one in study.expected]
    assert len(set(matches)) == len(matches)


def test_the_numbers_are_those_of_the_papers() -> None:
    values = {tuple(one.match.values()): one.value for one in read_study(STUDIES / "paper_a.json", [], {}).expected}
    assert values["linear", 24, 90, 1] == 0.6195
    assert values["linear", 24, 90, 2] == 0.6498
    assert values["linear", 19, 150, 2] == 0.6066
    assert len(values) == 25


def test_a_study_without_its_store_says_so() -> None:
    result = CliRunner().invoke(command, ["--study", str(STUDIES / "paper_a.json")])
    assert result.exit_code != 0
    assert "in1k.zarr" in str(result.exception)
