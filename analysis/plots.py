"""Pictures. The only file that imports matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .sheets import Cell, Sheet
from .table import AccuracyMap

SUFFIXES = (".png", ".svg", ".pdf")


def draw_maps(maps: Sequence[AccuracyMap], value: str, path: Path) -> None:
    """Draw accuracy over block x timestep, a panel a map, and save it.

    Args:
        maps: to draw side by side.
        value: ``"val"``, what settings are chosen by, or ``"test"``, which is labelled as not for choosing.
        path: of the picture; its suffix decides the format.
    """
    columns = min(2, len(maps))
    lines = -(-len(maps) // columns)
    rows = max(len(one.blocks) for one in maps)
    figure = Figure(figsize=(5.2 * columns, (0.32 * rows + 1.5) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    grids = [100 * (one.val if value == "val" else one.test) for one in maps]
    low = min(float(np.nanmin(grid)) for grid in grids)
    high = max(float(np.nanmax(grid)) for grid in grids)
    for axis, one, grid in zip(axes, maps, grids, strict=False):
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
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    label = "held-out top-1 (%), framed: best" if value == "val" else "TEST top-1 (%): not for choosing; framed: best by val"
    figure.colorbar(image, ax=list(axes), label=label, shrink=0.8)
    figure.savefig(path, dpi=130)


def _frame(cell: tuple[int, int]) -> object:
    from matplotlib.patches import Rectangle

    row, column = cell
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2)


def _title(one: AccuracyMap) -> str:
    row, column = one.best
    step = "" if one.timesteps[column] is None else f", t {one.timesteps[column]}"
    test, (low, high) = 100 * one.test[row, column], one.interval
    return (
        f"{one.head}, pool {one.pool}{f', {one.seeds} seeds' if one.seeds > 1 else ''}\n"
        f"best by val: block {one.blocks[row]}{step}: "
        f"test {test:.1f} % [{100 * low:.1f}, {100 * high:.1f}] on {one.n_test}"
    )


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
