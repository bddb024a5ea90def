"""Pictures of accuracy maps: files that open, and what is written on them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from diffssl.analysis import AccuracyMap, accuracy_maps
from diffssl.analysis.curves import make_curves
from diffssl.analysis.plots import draw_curves, draw_maps, draw_sheet, draw_similarity
from diffssl.analysis.sheets import Cell, Sheet, Strip
from PIL import Image

Line = Callable[..., dict[str, Any]]


@pytest.fixture
def maps(line: Line) -> list[AccuracyMap]:
    """Three maps with a hole; block 7 at timestep 90 is the best by val, block 2 at 10 by test."""
    results = []
    for head in ("linear", "mlp", "logreg"):
        results += [line(2, 10, 0.5, 0.875, head=head), line(2, 90, 0.25, 0.25, head=head), line(7, 90, 0.75, 0.625, head=head)]
    return accuracy_maps(results)


@pytest.fixture(autouse=True)
def _text_stays_text() -> Any:
    with mpl.rc_context({"svg.fonttype": "none"}):
        yield


def texts(path: Path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.parse(path).iter() if node.tag.endswith("text")]


@pytest.mark.parametrize(("count", "value"), [(1, "val"), (3, "test")])
def test_a_png_opens_and_is_not_blank(maps: list[AccuracyMap], tmp_path: Path, count: int, value: str) -> None:
    path = tmp_path / "map.png"
    draw_maps(maps[:count], value, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 150
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_more_maps_take_more_room(maps: list[AccuracyMap], tmp_path: Path) -> None:
    sizes = []
    for count in (1, 2, 3):
        draw_maps(maps[:count], "val", tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]


def test_a_map_shows_val_and_names_the_best_with_its_test_value(maps: list[AccuracyMap], tmp_path: Path) -> None:
    draw_maps(maps[:1], "val", tmp_path / "map.svg")
    found = texts(tmp_path / "map.svg")
    assert {"50.0", "25.0", "75.0", "2", "7", "10", "90", "block", "timestep"} <= set(found)
    assert "87.5" not in found
    whole = " ".join(found)
    assert "linear, pool 1" in whole
    assert "best by val: block 7, t 90: test 62.5 % [60.5, 63.5] on 2000" in whole
    assert "held-out" in whole
    assert "not for choosing" not in whole


def test_a_map_of_test_values_is_labelled_as_not_for_choosing(maps: list[AccuracyMap], tmp_path: Path) -> None:
    draw_maps(maps[:1], "test", tmp_path / "map.svg")
    found = texts(tmp_path / "map.svg")
    assert {"87.5", "25.0", "62.5"} <= set(found)
    assert "75.0" not in found
    assert "not for choosing" in " ".join(found)
    assert "best by val: block 7, t 90" in " ".join(found)


@pytest.mark.parametrize("value", ["val", "test"])
def test_the_frame_is_around_the_best_by_val(maps: list[AccuracyMap], tmp_path: Path, value: str) -> None:
    """The red frame is in the lower right quarter of the panel: block 7 is the second row, timestep 90 the second column."""
    draw_maps(maps[:1], value, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 240) & (pixels[..., 1] < 20) & (pixels[..., 2] < 20)
    rows, columns = np.nonzero(red)
    assert len(rows) > 100
    dark = pixels.sum(axis=2) < 720  # the panel and its labels
    middle = np.nonzero(dark.any(axis=1))[0].mean(), np.nonzero(dark[:, : pixels.shape[1] * 3 // 4].any(axis=0))[0].mean()
    assert rows.mean() > middle[0]
    assert columns.mean() > middle[1]


def test_seeds_are_told(line: Line, tmp_path: Path) -> None:
    draw_maps(accuracy_maps([line(1, 10, 0.5, 0.5, seed=seed) for seed in range(3)]), "val", tmp_path / "map.svg")
    assert any("linear, pool 1, 3 seeds" in text for text in texts(tmp_path / "map.svg"))


def test_equal_values_can_be_drawn(line: Line, tmp_path: Path) -> None:
    draw_maps(accuracy_maps([line(1, 10, 1.0, 1.0)]), "val", tmp_path / "map.svg")
    assert "100.0" in texts(tmp_path / "map.svg")


def test_an_encoder_without_timesteps_is_one_column(line: Line, tmp_path: Path) -> None:
    draw_maps(accuracy_maps([line(2, None, 0.5, 0.25), line(7, None, 0.75, 0.625)]), "val", tmp_path / "map.svg")
    found = texts(tmp_path / "map.svg")
    assert {"50.0", "75.0", "2", "7", "block", "an encoder without timesteps"} <= set(found)
    assert "timestep" not in found
    assert "None" not in " ".join(found)
    assert "best by val: block 7: test 62.5 %" in " ".join(found)


def draw(size: int, path: Path, groups: list[tuple[str, int]], low: float = 0.0) -> list[str]:
    values = np.full((size, size), 0.5)
    values[0, -1] = low
    draw_similarity(values, [f"b{i} t90" for i in range(size)], groups, "linear CKA, 2000 rows", path)
    return texts(path) if path.suffix == ".svg" else []


def test_a_similarity_names_every_setting_twice_and_its_scale(tmp_path: Path) -> None:
    found = draw(100, tmp_path / "cka.svg", [("feats.zarr", 100)])
    assert all(found.count(f"b{i} t90") == 2 for i in range(100))
    assert "linear CKA, 2000 rows" in found
    assert "CKA, colours from 0 to 1" in found
    assert "feats.zarr" not in found


def test_names_of_a_hundred_settings_do_not_overlap(tmp_path: Path) -> None:
    draw(100, tmp_path / "cka.png", [("feats.zarr", 100)])
    with Image.open(tmp_path / "cka.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] / 100 > 15
    names = np.any(pixels[:, : pixels.shape[1] // 40] < 128, axis=1)  # lines of the picture with ink of names of rows
    assert np.count_nonzero(names[1:] & ~names[:-1]) >= 95


def test_stores_are_named_and_parted_and_values_below_the_scale_are_told(tmp_path: Path) -> None:
    found = draw(6, tmp_path / "cka.svg", [("feats.zarr", 4), ("vit.zarr", 2)], low=-0.25)
    assert {"feats.zarr", "vit.zarr", "CKA, colours from 0 to 1; lowest value -0.25"} <= set(found)
    plain = draw(6, tmp_path / "one.svg", [("feats.zarr", 6)])
    assert not {"feats.zarr", "vit.zarr"} & set(plain)


def test_several_stores_lie_side_by_side(line: Line, tmp_path: Path) -> None:
    """A line a head and pool, a column a store; what one store lacks is left blank."""
    places = [("a.results", "linear", 1), ("a.results", "mlp", 1), ("b.results", "linear", 1), ("b.results", "linear", 2)]
    results = [line(1, 10, 0.5, 0.5, results=folder, head=head, pool=pool) for folder, head, pool in places]
    draw_maps(accuracy_maps(results), "val", tmp_path / "map.svg")
    titles = [text for text in texts(tmp_path / "map.svg") if ", pool" in text]
    assert [text.split(" pool")[0] for text in titles] == ["a: linear,", "b: linear,", "a: mlp,", "b: linear,"]


@pytest.mark.parametrize(
    ("over", "axis"), [("block", "block"), ("timestep", "timestep"), ("log-snr", "log-SNR (more noise to the right)")]
)
@pytest.mark.parametrize("best", [False, True])
def test_curves_are_drawn_with_their_names(line: Line, tmp_path: Path, over: str, axis: str, best: bool) -> None:
    results = [line(b, t, 0.01 * t, 0.5, log_snr=-t, head=head) for head in ("mlp", "ridge") for b in (2, 7) for t in (10, 90)]
    encoder = [line(3, None, 0.5, 0.5, head="knn", results="b.results")]
    maps = accuracy_maps([*({**one, "results": "a.results"} for one in results), *encoder])
    draw_curves(make_curves(maps, over, "val", best), over, "val", tmp_path / "curves.svg")
    found = texts(tmp_path / "curves.svg")
    assert {axis, "held-out top-1 (%), 95 %"} <= set(found)
    if best:
        assert {"a: mlp, pool 1, block 2", "b: knn, pool 1, block 3"} <= set(found) or over == "block"
    else:
        assert {"a: mlp, pool 1", "a: ridge, pool 1", "b: knn, pool 1"} <= set(found)
        assert {"block 2", "block 7"} <= set(found) or over == "block"


def test_curves_of_test_values_are_labelled_as_not_for_choosing(maps: list[AccuracyMap], tmp_path: Path) -> None:
    draw_curves(make_curves(maps, "block", "test"), "block", "test", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    draw_curves(make_curves(maps, "block", "test"), "block", "test", tmp_path / "curves.svg")
    assert "not for choosing" in " ".join(texts(tmp_path / "curves.svg"))


def test_noise_grows_to_the_right(line: Line, tmp_path: Path) -> None:
    maps = accuracy_maps([line(1, t, 0.5, 0.5, log_snr=snr) for t, snr in ((10, 6.0), (90, 2.0))])
    draw_curves(make_curves(maps, "log-snr", "val"), "log-snr", "val", tmp_path / "curves.svg")
    places = {}
    for node in ET.parse(tmp_path / "curves.svg").iter():
        if node.tag.endswith("text") and (node.text or "") in ("6", "2"):
            places[node.text] = float(node.get("x", "nan"))
    assert places["6"] < places["2"]


def flat(*colour: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((8, 8, 3), colour, dtype=np.uint8)


def test_a_sheet_shows_every_picture_in_its_colours(tmp_path: Path) -> None:
    """One strip of two lines, the second with a hole; a green frame around what is of the same class."""
    cells = [Cell(flat(200, 10, 10), "a class with quite a long name\n0.93", True), Cell(flat(10, 10, 200), "dog $x$", False)]
    strip = Strip(Cell(flat(90, 90, 10), "cat"), {"t 10": cells, "t 90": [None, Cell(flat(10, 120, 120))]})
    sheet = Sheet("Title", "How to read it. " * 12, ["block 1", "block 2"], [strip, strip])
    draw_sheet(sheet, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((200, 10, 10), (10, 10, 200), (90, 90, 10), (10, 120, 120)):
        count = int((pixels == colour).all(axis=1).sum())
        assert 0.8 < count / (2 * 130**2) <= 1, colour  # an inch wide and high, twice
    assert (pixels == (0x1A, 0x98, 0x50)).all(axis=1).any()
    draw_sheet(sheet, tmp_path / "sheet.svg")
    written = texts(tmp_path / "sheet.svg")
    assert {"Title", "block 1", "t 10", "cat", "0.93", "a class with quite…", "dog $x$"} <= set(written)


def test_more_strips_take_more_room(tmp_path: Path) -> None:
    strip = Strip(Cell(flat(1, 2, 3)), {"": [Cell(flat(4, 5, 6))]})
    heights = []
    for count in (1, 2, 3):
        draw_sheet(Sheet("", "", ["block 1"], [strip] * count), tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            heights.append(image.height)
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=1)
    assert heights[1] > heights[0] + 130
