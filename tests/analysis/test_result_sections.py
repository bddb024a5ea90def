from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.analysis import accuracy_maps
from diffssl.analysis.chart import Chart
from diffssl.analysis.compare import compare
from diffssl.analysis.page import Heat, Table, Words
from diffssl.analysis.paired import paired_settings
from diffssl.analysis.result_sections import (
    comparison_section,
    complement_section,
    curves_section,
    guideline_section,
    maps_section,
)

Line = Callable[..., dict[str, Any]]


@pytest.fixture
def tested_lines(tested: Line) -> list[dict[str, Any]]:
    """Three settings: the best by val, one as good and cheap, one that is far worse."""
    rng = np.random.default_rng(0)
    hits = rng.random(400) < 0.8
    other = hits.copy()
    other[np.r_[np.flatnonzero(hits)[:4], np.flatnonzero(~hits)[:4]]] ^= True
    worse = rng.random(400) < 0.3
    return [
        tested(hits, 24, 0.8, gflop=9.0, bytes=256),
        tested(other, 9, 0.79, gflop=3.0, bytes=128),
        tested(worse, 1, 0.3, gflop=1.0, bytes=64),
    ]


def test_maps_show_val_and_say_test_when_hovered_over(line: Line) -> None:
    results = [line(b, t, 0.5 + b / 100, 0.4, head=head) for head in ("linear", "mlp") for b in (1, 2) for t in (10, 90)][:-1]
    section = maps_section(accuracy_maps(results))
    heats = [part for part in section.parts if isinstance(part, Heat)]
    assert [(heat.tags["head"], heat.tags["pool"]) for heat in heats] == [("linear", "1"), ("mlp", "1")]
    np.testing.assert_allclose(heats[0].values, [[51, 51], [52, 52]])
    assert np.isnan(heats[1].values[1, 1])
    assert heats[1].hover[1][1] == ""
    assert heats[0].hover[1][0] == "block 2, timestep 10: held-out 52.00 %, test 40.00 % [38.00, 41.00]"
    assert {(heat.low, heat.high) for heat in heats} == {(51, 52)}, "one scale for all"


def test_curves_over_noise_need_a_log_snr(line: Line) -> None:
    said = [line(b, t, 0.5, 0.4, log_snr=-t / 10) for b in (1, 2) for t in (10, 90)]
    unsaid = [line(b, t, 0.5, 0.4) for b in (1, 2) for t in (10, 90)]
    encoder = [line(b, None, 0.5, 0.4) for b in (1, 2)]
    for results, axes in ((said, ["block", "timestep", "log-snr"]), (unsaid, ["block", "timestep"]), (encoder, ["block"])):
        charts = [part for part in curves_section(accuracy_maps(results)).parts if isinstance(part, Chart)]
        assert [chart.tags["over"] for chart in charts] == axes
    over_blocks = curves_section(accuracy_maps(said)).parts[0]
    assert isinstance(over_blocks, Chart)
    assert [one.name for one in over_blocks.lines] == ["timestep 10", "timestep 90"]
    assert over_blocks.lines[0].hover[0].startswith("timestep 10, 1: 50.00 % [")


def test_the_cheapest_setting_that_is_as_good_is_named(tested_lines: list[dict[str, Any]]) -> None:
    comparison = compare(tested_lines, np.random.default_rng(0))
    (table,) = guideline_section(comparison).parts
    assert isinstance(table, Table)
    assert table.caption == "1 of the 2 others are not significantly worse than the best"
    assert [row[2] for row in table.rows] == ["block 24, timestep 10, pool 1", "block 9, timestep 10, pool 1"]
    for one in tested_lines:
        del one["gflop"]
    _, note = guideline_section(compare(tested_lines, np.random.default_rng(0))).parts
    assert isinstance(note, Words)
    assert note.kind == "note"


def test_the_reference_has_no_difference_from_itself(tested_lines: list[dict[str, Any]]) -> None:
    (table,) = comparison_section(compare(tested_lines, np.random.default_rng(0))).parts
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["reference", "=", "-"]
    assert table.rows[0][5:] == [None] * 6
    assert all(isinstance(count, int) for count in table.rows[1][9:]), "rows are whole numbers"


def test_complements_name_few_settings_and_count_many(tested_lines: list[dict[str, Any]]) -> None:
    (table,) = complement_section(paired_settings(tested_lines), np.random.default_rng(0)).parts
    assert isinstance(table, Table)
    rows = {row[0]: row for row in table.rows}
    assert rows["pair"][1].count(";") == 1
    assert rows["pair"][2] == 200
    assert all(0 <= value <= 1 for row in table.rows for value in row[3:6])
