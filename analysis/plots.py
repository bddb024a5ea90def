"""Pictures. The only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

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


def hex_colours(values: NDArray[np.float64], low: float, high: float) -> list[list[str]]:
    """Colours of (rows, columns) values as ``#rrggbb``, from the darkest at ``low`` to the brightest at ``high``."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return [[to_hex(colour) for colour in line] for line in matplotlib.colormaps["viridis"](np.nan_to_num(scaled))]


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
