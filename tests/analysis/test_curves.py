"""Lines of maps: which value is where, and what has no place on an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffssl.analysis import NoResults, accuracy_maps
from diffssl.analysis.curves import make_curves

Line = Callable[..., dict[str, Any]]


@pytest.fixture
def lines(line: Line) -> list[dict[str, Any]]:
    """Two blocks at two timesteps, with a hole at block 7, timestep 10; the best by val is block 7 at 90."""
    places = [(2, 10, 0.5, 6.0), (2, 90, 0.25, 2.0), (7, 90, 0.75, 2.0)]
    return [line(block, step, val, val + 0.1, log_snr=snr) for block, step, val, snr in places]


def test_over_blocks_there_is_a_line_a_timestep(lines: list[dict[str, Any]]) -> None:
    (panel,) = make_curves(accuracy_maps(lines), "block", "val")
    assert (panel.title, panel.ordered) == ("linear, pool 1", True)
    assert [(one.label, one.x.tolist(), one.y.tolist()) for one in panel.curves] == [
        ("timestep 10", [2], [0.5]),
        ("timestep 90", [2, 7], [0.25, 0.75]),
    ]
    for one in panel.curves:
        assert (one.low < one.y).all()
        assert (one.y < one.high).all()


@pytest.mark.parametrize(("over", "x"), [("timestep", [10, 90]), ("log-snr", [2, 6])])
def test_over_noise_there_is_a_line_a_block_by_ascending_x(lines: list[dict[str, Any]], over: str, x: list[float]) -> None:
    (panel,) = make_curves(accuracy_maps(lines), over, "test")
    first, second = panel.curves
    assert (first.label, first.x.tolist()) == ("block 2", x)
    assert sorted(first.y) == pytest.approx([0.35, 0.6])
    assert first.y[x.index(10 if over == "timestep" else 6)] == pytest.approx(0.6)
    assert first.low.tolist() == pytest.approx((first.y - 0.02).tolist())
    assert (second.label, second.y.tolist()) == ("block 7", pytest.approx([0.85]))


@pytest.mark.parametrize(("over", "label"), [("block", "timestep 90"), ("timestep", "block 7"), ("log-snr", "block 7")])
def test_the_best_line_of_each_map_is_by_val(lines: list[dict[str, Any]], over: str, label: str) -> None:
    (panel,) = make_curves(accuracy_maps([*lines, *({**one, "head": "mlp"} for one in lines)]), over, "test", best=True)
    assert [one.label for one in panel.curves] == [f"linear, pool 1, {label}", f"mlp, pool 1, {label}"]
    assert not panel.ordered


def test_an_encoder_without_timesteps_has_no_place_over_noise(lines: list[dict[str, Any]], line: Line) -> None:
    encoder = [line(block, None, 0.1 * block, 0.5, results="b.results", feature_id="g") for block in (1, 2)]
    maps = accuracy_maps([*({**one, "results": "a.results"} for one in lines), *encoder])
    for over in ("timestep", "log-snr"):
        (panel,) = make_curves(maps, over, "val", best=True)
        assert [one.label for one in panel.curves] == ["a: linear, pool 1, block 7", "b: linear, pool 1, block 2"]
        assert panel.curves[1].x.tolist() == []
        assert panel.curves[1].y.tolist() == pytest.approx([0.2])
    blocks = make_curves(maps, "block", "val")[1].curves
    assert [(one.label, one.x.tolist()) for one in blocks] == [("no timestep", [1, 2])]


@pytest.mark.parametrize("snr", [{"log_snr": None}, {}], ids=["clean", "old"])
def test_a_log_snr_that_is_not_there_says_what_to_do(line: Line, snr: dict[str, None]) -> None:
    maps = accuracy_maps([line(1, 10, 0.5, 0.5, **snr)])
    with pytest.raises(NoResults, match=r"log-SNR of timestep 10.*--store.*run diffssl-probe again"):
        make_curves(maps, "log-snr", "val")
    assert make_curves(maps, "timestep", "val")


def test_another_axis_is_refused(lines: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="got 'pool'"):
        make_curves(accuracy_maps(lines), "pool", "val")
