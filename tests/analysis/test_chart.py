from __future__ import annotations

import pytest
from diffssl.analysis.chart import Chart, Line
from hypothesis import given
from hypothesis import strategies as st


def line(x: list[float], y: list[float], name: str = "t 10") -> Line:
    return Line(name, x, y, [v - 1 for v in y], [v + 1 for v in y], [f"{v}" for v in y])


def chart(*lines: Line) -> Chart:
    return Chart("over blocks", "block", "top-1, %", lines)


def test_places_are_inside_the_frame_and_in_order() -> None:
    drawn = chart(line([1, 5, 37], [10, 50, 30]))
    left, top, right, bottom = drawn.frame
    points = drawn.points(drawn.lines[0])
    assert [round(x) for x, _, _ in points] == [left, round(left + (right - left) * 4 / 36), right]
    assert points[0][1] > points[2][1] > points[1][1], "y grows downwards on a page"
    assert all(top <= y <= bottom for _, y, _ in points)
    assert [words for _, _, words in points] == ["10", "50", "30"]


def test_the_band_goes_there_and_back() -> None:
    drawn = chart(line([1, 2, 3], [1, 2, 3]))
    places = [tuple(map(float, place.split(","))) for place in drawn.band(drawn.lines[0]).split()]
    assert [x for x, _ in places] == sorted({x for x, _ in places}) + sorted({x for x, _ in places}, reverse=True)
    assert all(upper < lower for (_, upper), (_, lower) in zip(places[:3], places[:2:-1], strict=True))


@given(
    low=st.floats(-1e6, 1e6, allow_subnormal=False),
    width=st.floats(1e-3, 1e6),
)
def test_ticks_are_few_round_and_within(low: float, width: float) -> None:
    drawn = chart(line([low, low + width], [low, low + width]))
    left, _, right, _ = drawn.frame
    ticks = drawn.x_ticks()
    assert 2 <= len(ticks) <= 8
    assert all(left - 0.5 <= tick.place <= right + 0.5 for tick in ticks)
    assert len({tick.text for tick in ticks}) == len(ticks) or width < abs(low) * 1e-4


def test_one_point_is_in_the_middle() -> None:
    drawn = chart(line([90], [50]))
    left, _, right, _ = drawn.frame
    assert drawn.points(drawn.lines[0])[0][0] == (left + right) / 2
    assert [tick.text for tick in drawn.x_ticks()] == ["90"]


def test_lines_have_colours_of_their_own() -> None:
    drawn = chart(*(line([1, 2], [3, 4], str(i)) for i in range(7)))
    assert len({drawn.colour(i) for i in range(7)}) == 7


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        chart()
    with pytest.raises(ValueError, match=r"\[2, 0\]"):
        chart(line([1, 2], [1, 2]), line([], []))
