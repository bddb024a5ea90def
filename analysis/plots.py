"""Pictures. The only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType

from .curves import Curve, Panel
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
