"""Pictures. The only file that imports matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType
from numpy.typing import NDArray

from .curves import Curve, Panel
from .sheets import Cell, Sheet
from .table import AccuracyMap

SUFFIXES = (".png", ".svg", ".pdf")
# Of Okabe and Ito (2008), told apart by people who see few colours; the yellow is too faint for a line.
_DISTINCT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_maps(maps: Sequence[AccuracyMap], value: str, path: Path) -> None:
    """Draw accuracy over block x timestep, a panel a map, and save it.

    Args:
        maps: to draw side by side.
        value: ``"val"``, what settings are chosen by, or ``"test"``, which is labelled as not for choosing.
        path: of the picture; its suffix decides the format.
    """
    panels = _arranged(maps)
    lines, columns = len(panels), len(panels[0])
    rows, steps = max(len(one.blocks) for one in maps), max(len(one.timesteps) for one in maps)
    figure = Figure(figsize=(max(4.2, 1.2 + 0.5 * steps) * columns + 0.8, (0.32 * rows + 1.4) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    values = np.concatenate([100 * one.accuracy(value)[0].ravel() for one in maps])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    for axis, one in zip(axes, chain(*panels), strict=True):
        if one is None:
            axis.set_axis_off()
            continue
        grid = 100 * one.accuracy(value)[0]
        image = axis.imshow(grid, aspect="auto", cmap="viridis", vmin=low, vmax=high)
        axis.set_xticks(range(len(one.timesteps)), ["" if step is None else str(step) for step in one.timesteps])
        axis.set_yticks(range(len(one.blocks)), [str(block) for block in one.blocks])
        axis.set_xlabel("an encoder without timesteps" if one.timesteps == [None] else "timestep")
        axis.set_ylabel("block")
        for (row, column), number in np.ndenumerate(grid):
            if np.isfinite(number):
                colour = "black" if number > (low + high) / 2 else "white"
                axis.text(column, row, f"{number:.1f}", ha="center", va="center", fontsize=7, color=colour)
        axis.add_patch(_frame(one.best))
        axis.set_title(_title(one), fontsize=9)
    label = "held-out top-1 (%), framed: best" if value == "val" else "TEST top-1 (%): not for choosing; framed: best by val"
    figure.colorbar(image, ax=list(axes), label=label, shrink=0.8)
    figure.savefig(path, dpi=130)


def draw_curves(panels: Sequence[Panel], over: str, value: str, path: Path) -> None:
    """Draw lines of accuracy with bands of their 95 % intervals, and save them.

    Args:
        panels: to draw side by side.
        over: ``"block"``, ``"timestep"`` or ``"log-snr"``: the horizontal axis; noise grows to the right.
        value: ``"val"`` or ``"test"``.
        path: of the picture; its suffix decides the format.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        colours = colormaps["viridis"](np.linspace(0, 0.85, len(panel.curves))) if panel.ordered else _DISTINCT
        for curve, colour in zip(panel.curves, cycle(colours)):
            _draw_curve(axis, curve, colour, min(0.14, 0.5 / len(panel.curves)))
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel({"block": "block", "timestep": "timestep", "log-snr": "log-SNR (more noise to the right)"}[over])
        axis.set_ylabel("held-out top-1 (%), 95 %" if value == "val" else "TEST top-1 (%), 95 %; not for choosing", fontsize=9)
        axis.tick_params(labelbottom=True, labelleft=True)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    same = len({tuple(curve.label for curve in panel.curves) for panel in panels}) == 1
    for number, axis in enumerate(axes[: len(panels)]):
        if not same or number % columns == columns - 1 or number == len(panels) - 1:  # once a line of panels is enough
            axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    if over == "log-snr":
        axes[0].invert_xaxis()  # the axes share it
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=150)


def _draw_curve(axis: Axes, curve: Curve, colour: ColorType, alpha: float) -> None:
    y, low, high = (100 * values for values in (curve.y, curve.low, curve.high))
    if len(curve.x):
        axis.plot(curve.x, y, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=curve.label)
        axis.fill_between(curve.x, low, high, color=colour, alpha=alpha, linewidth=0)
    else:
        axis.axhline(y[0], linestyle="--", linewidth=1.4, color=colour, label=curve.label)
        axis.axhspan(low[0], high[0], color=colour, alpha=alpha, linewidth=0)


def _arranged(maps: Sequence[AccuracyMap]) -> list[list[AccuracyMap | None]]:
    """Maps by lines of equal length: of several folders a line a head and pool, a column a folder; of one, two a line."""
    folders = list(dict.fromkeys(one.results for one in maps))
    if len(folders) == 1:
        width = min(2, len(maps))
        filled = [*maps, *[None] * (-len(maps) % width)]
        return [list(filled[i : i + width]) for i in range(0, len(filled), width)]
    places = {(one.head, one.pool, one.results): one for one in maps}
    kinds = dict.fromkeys((one.head, one.pool) for one in maps)
    return [[places.get((*kind, folder)) for folder in folders] for kind in kinds]


def _frame(cell: tuple[int, int]) -> object:
    from matplotlib.patches import Rectangle

    row, column = cell
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2)


def _title(one: AccuracyMap) -> str:
    row, column = one.best
    step = "" if one.timesteps[column] is None else f", t {one.timesteps[column]}"
    test, low, high = (100 * grid[row, column] for grid in one.accuracy("test"))
    return f"{one.title}\nbest by val: block {one.blocks[row]}{step}: test {test:.1f} % [{low:.1f}, {high:.1f}] on {one.n_test}"


def hex_colours(values: NDArray[np.float64], low: float, high: float) -> list[list[str]]:
    """Colours of (rows, columns) values as ``#rrggbb``, from the darkest at ``low`` to the brightest at ``high``."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return [[to_hex(colour) for colour in line] for line in colormaps["viridis"](np.nan_to_num(scaled))]


def draw_similarity(
    values: NDArray[np.float64], names: Sequence[str], groups: Sequence[tuple[str, int]], title: str, path: Path
) -> None:
    """Draw a matrix of similarities as a heat map whose colours go from 0 to 1, and save it.

    Args:
        values: (S, S), drawn with the first setting above and on the left; below 0 has the colour of 0.
        names: of the S settings, written beside every row and below every column.
        groups: (name, number of settings) of consecutive settings, such as stores, with lines between.
        title: what is drawn.
        path: of the picture; its suffix decides the format.
    """
    inches = max(4.0, 0.15 * len(names))
    figure = Figure(figsize=(inches + 2.2, inches + 1.4), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    size = min(9, 72 * 0.72 * inches / len(names))
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.tick_params(length=2)
    start = 0
    for name, number in groups if len(groups) > 1 else ():
        middle = start + (number - 1) / 2
        axis.annotate(name, (1.01, middle), xycoords=("axes fraction", "data"), rotation=270, va="center", fontsize=9)
        start += number
        for line in (axis.axhline, axis.axvline) if start < len(names) else ():
            line(start - 0.5, color="white", linewidth=1.5)
    axis.set_title(title, fontsize=10)
    label = "CKA, colours from 0 to 1" + (f"; lowest value {values.min():.2f}" if values.min() < 0 else "")
    figure.colorbar(image, ax=axis, label=label, shrink=0.6, pad=0.04 if len(groups) > 1 else 0.02)
    figure.savefig(path, dpi=130)


_CELL, _GAP, _LEFT, _CAPTION, _TOP = 1.0, 0.07, 0.75, 0.15, 0.95  # inches


def draw_sheet(sheet: Sheet, path: Path) -> None:
    """Draw strips of small pictures, each image at the left of what belongs to it, and save them; pixels stay square."""
    captioned = any(cell and cell.caption for strip in sheet.strips for line in strip.lines.values() for cell in line)
    row = _CELL + _GAP + (2.2 * _CAPTION if captioned else 0)
    heights = [max(len(strip.lines) * row, _CELL + 2 * _CAPTION) + 2 * _GAP for strip in sheet.strips]
    width = 2 * _GAP + _CELL + _LEFT + len(sheet.columns) * (_CELL + _GAP)
    legend = textwrap.wrap(sheet.legend, int(15 * width))
    above = _TOP + 0.16 * len(legend)
    figure = Figure(figsize=(width, above + sum(heights)))

    def place(cell: Cell, left: float, top: float) -> None:
        size = figure.get_size_inches()
        axis = figure.add_axes((left / size[0], 1 - (top + _CELL) / size[1], _CELL / size[0], _CELL / size[1]))
        axis.imshow(cell.picture, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(_short(cell.caption), fontsize=7.5, labelpad=2)
        for spine in axis.spines.values():
            spine.set(visible=cell.same is True, linewidth=3, edgecolor="#1a9850")

    def write(text: str, left: float, top: float, **style: Any) -> None:
        size = figure.get_size_inches()
        figure.text(left / size[0], 1 - top / size[1], text, **style)

    write(sheet.title, _GAP, _GAP, va="top", fontsize=11, fontweight="bold")
    write("\n".join(legend), _GAP, 0.32, va="top", fontsize=8)
    start = _GAP + _CELL + _LEFT
    for column, name in enumerate(sheet.columns):
        write(name, start + column * (_CELL + _GAP) + _CELL / 2, above - 0.04, va="bottom", ha="center", fontsize=8)
    write("image", _GAP + _CELL / 2, above - 0.04, va="bottom", ha="center", fontsize=8)
    for strip, top in zip(sheet.strips, (above + np.cumsum([0, *heights[:-1]])).tolist(), strict=True):
        place(strip.image, _GAP, top)
        for i, (name, line) in enumerate(strip.lines.items()):
            at = top + i * row
            write(name, start - 0.08, at + _CELL / 2, va="center", ha="right", fontsize=8)
            for column, cell in enumerate(line):
                if cell is not None:
                    place(cell, start + column * (_CELL + _GAP), at)
    figure.savefig(path, dpi=130)


def _short(caption: str) -> str:
    """Names of classes are as long as they like, and a picture is an inch wide."""
    return "\n".join(line if len(line) <= 19 else f"{line[:18]}…" for line in caption.replace("$", r"\$").split("\n"))
