"""``diffssl-analyze``: pictures and comparisons from results and stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..probe import Results
from ..store import FeatureStore
from ..store.choice import Choice
from ..store.cli import ListType, run
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .choose import choose_results, read_results
from .compare import compare, describe, write_csv
from .pictures import FIT_ROWS
from .plots import SUFFIXES, draw_maps, draw_sheet
from .scope import pick_maps, pick_rows, pick_split, pick_vectors
from .sheets import map_sheet, neighbour_sheet
from .table import accuracy_maps, of_most_rows


@click.group()
@click.version_option(package_name="diffssl")
def group() -> None:
    """Draw and compare what probing found, and what is in a store."""


@group.command("map")
@click.option("--results", type=click.Path(path_type=Path), default=Path("feats.results"), show_default=True)
@click.option("--head", help="Only these heads, with commas; default: all.")
@click.option("--pools", help="Only these pool sizes; default: all.")
@click.option("--value", type=click.Choice(["val", "test"]), default="val", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("map.png"), show_default=True)
def map_command(results: Path, head: str | None, pools: str | None, value: str, out: Path) -> None:
    """Draw accuracy over block x timestep; the best setting is chosen by val, and named with its test value."""
    try:
        sizes = parse_pools(pools) if pools else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _check_out(out)
    found, notes = of_most_rows(Results(results).read())
    for note in notes:
        click.echo(note)
    maps = accuracy_maps(found, head.split(",") if head else None, sizes)
    draw_maps(maps, value, out)
    click.echo(f"{len(maps)} map{'s' if len(maps) > 1 else ''} in {out}")


@group.command("compare")
@click.argument("results", type=click.Path(path_type=Path), nargs=-1)
@click.option("--head", help="Only these heads, with commas; default: all.")
@click.option("--blocks", type=ListType(parse_blocks), help="Only these, such as 18,24 or 1-37 or 19@8,24@full; default: all.")
@click.option("--timesteps", type=ListType(parse_numbers), help="Only these; default: all.")
@click.option("--pools", type=ListType(parse_pools), help="Only these; default: all.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampled test rows.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all rows of the table as CSV too.")
def compare_command(results: Sequence[Path], head: str | None, seed: int, out: Path | None, **selection: Any) -> None:
    """Test on the same test rows which settings and heads differ from the best by val, corrected for all comparisons.

    RESULTS are folders of results, of one store or several with the same test rows; default: feats.results.
    """
    heads = head.split(",") if head else None
    lines = read_results(results or [Path("feats.results")])
    comparison = compare(choose_results(lines, heads, **selection), np.random.default_rng(seed))
    for line in describe(comparison):
        click.echo(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(comparison, out)
        click.echo(f"{len(comparison.settings)} settings in {out}")


def _of_store(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say of which settings and images of a store a picture is."""
    options: list[tuple[str, dict[str, Any]]] = [
        ("--pools", {"type": ListType(parse_pools), "help": "Only these, as they are stored, or full."}),
        ("--timesteps", {"type": ListType(parse_numbers), "help": "Only these, such as 10,90; default: a few of them."}),
        ("--blocks", {"type": ListType(parse_blocks), "help": "Only these, such as 18,24@8; default: a few of them."}),
        ("--n", {"type": click.IntRange(min=1), "default": 6, "show_default": True, "help": "So many images, the first rows."}),
        ("--id ids", {"multiple": True, "metavar": "ID", "help": "This image instead, by its id in the store (repeatable)."}),
        ("--split", {"help": "Default: test, or the only one."}),
        (
            "--store",
            {"default": "feats.zarr", "show_default": True, "help": "With thumbnails: diffssl-extract --thumbnails 64."},
        ),
    ]
    for name, settings in options:
        command = click.option(*name.split(), **settings)(command)
    return command


@group.command("pictures")
@_of_store
@click.option(
    "--fit-rows", type=click.IntRange(min=1), default=FIT_ROWS, show_default=True, help="Images that colours are fitted on."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("pictures.png"), show_default=True)
def pictures_command(
    store: str, split: str | None, ids: Sequence[str], n: int, fit_rows: int, out: Path, **selection: Any
) -> None:
    """Draw feature maps beside their images: the first three principal components as colours, over blocks and timesteps."""
    _check_out(out)
    opened = FeatureStore.open(store)
    split = pick_split(opened, split)
    keys, notes = pick_maps(opened, split, Choice(splits=[split], **selection), blocks=8, timesteps=3)
    for note in notes:
        click.echo(note)
    rows = pick_rows(opened, split, ids, n, keys)
    draw_sheet(map_sheet(opened, keys, split, rows, fit_rows), out)
    click.echo(f"{len(rows)} images, {len(keys)} settings in {out}")


@group.command("neighbours")
@_of_store
@click.option("--k", type=click.IntRange(min=1), default=8, show_default=True, help="Neighbours of each image.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("neighbours.png"), show_default=True)
def neighbours_command(store: str, split: str | None, ids: Sequence[str], n: int, k: int, out: Path, **selection: Any) -> None:
    """Draw the images that a setting takes for the most similar to a few given ones."""
    _check_out(out)
    opened = FeatureStore.open(store)
    split = pick_split(opened, split)
    keys, notes = pick_vectors(opened, split, Choice(splits=[split], **selection), settings=4)
    for note in notes:
        click.echo(note)
    rows = pick_rows(opened, split, ids, n, keys)
    draw_sheet(neighbour_sheet(opened, keys, split, rows, k), out)
    click.echo(f"{len(rows)} images, {len(keys)} settings in {out}")


def _check_out(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise click.UsageError(f"--out {out}: pictures are {', '.join(SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """Entry point of ``diffssl-analyze``."""
    run(group)
