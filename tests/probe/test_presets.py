"""Protocols by name: all can be read and used, and what they say is what their sources do."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from diffssl.probe import ProbeSpec
from diffssl.probe.presets import DEFAULT, load_preset, preset_names
from diffssl.probe.spec import HEADS, NUMPY_HEADS
from diffssl.probe.train import Recipe

NAMES = ["default", "dinov2-linear", "dinov2-logreg", "paper-code", "paper-text"]


def test_the_protocols_there_are() -> None:
    assert preset_names() == NAMES
    assert DEFAULT in NAMES


def test_an_unknown_one_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"unknown protocol 'mine'; known are {', '.join(NAMES)}"):
        load_preset("mine")


def test_the_default_has_options_for_every_head() -> None:
    assert set(load_preset(DEFAULT).heads) == {*HEADS, "own"}


@pytest.mark.parametrize("name", NAMES)
def test_every_head_of_a_protocol_can_be_asked_for(name: str) -> None:
    preset = load_preset(name)
    assert preset.about
    for head in preset.heads:
        options = preset.options(head)
        assert json.loads(json.dumps(options)) == options
        if head not in NUMPY_HEADS:
            recipe = Recipe.of(options, 1000)
            assert recipe.steps > recipe.warmup >= 0
            assert min(options["learning_rates"]) > 0 <= min(options["weight_decays"])
        if head != "own":
            assert ProbeSpec(Path("none"), [head], protocol=name).head_options(head) == options


def test_a_head_that_a_protocol_says_nothing_of_is_refused() -> None:
    with pytest.raises(ValueError, match="--protocol dinov2-logreg says nothing of mlp; it is for logreg"):
        load_preset("dinov2-logreg").options("mlp")


def test_options_are_a_copy() -> None:
    load_preset(DEFAULT).options("linear")["steps"] = 1
    assert load_preset(DEFAULT).options("linear")["steps"] > 1


def test_dinov2_has_45_values_of_c_evenly_from_1e_6_to_1e5() -> None:
    grid = load_preset("dinov2-logreg").options("logreg")["C"]
    assert len(grid) == 45
    assert grid[0] == pytest.approx(1e-6)
    assert grid[-1] == pytest.approx(1e5)
    ratios = [later / earlier for earlier, later in pairwise(grid)]
    assert ratios == pytest.approx([10 ** (11 / 44)] * 44)


def test_the_released_scripts_are_sgd_by_steps_without_normalisation() -> None:
    preset = load_preset("paper-code")
    assert not preset.standardise
    assert "frozen noise draws" in preset.warning
    for head in preset.heads:
        options = preset.options(head)
        assert (options["optimiser"], options["schedule"], options["epochs"], options["batch_size"]) == (
            "sgd",
            "steps",
            28,
            128,
        )
    assert load_preset("paper-text").options("linear")["batch_norm"] is True


def test_only_dinov2_s_reports_what_a_choice_on_test_would_give() -> None:
    assert [name for name in NAMES if load_preset(name).report_best_on_test] == ["dinov2-linear"]
