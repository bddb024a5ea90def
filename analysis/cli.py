"""``diffssl-analyze``: pictures and comparisons from results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..probe import Results
from ..store.cli import ListType, run
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .choose import choose_results, read_results
from .compare import compare, describe, write_csv
from .plots import SUFFIXES, draw_maps
from .table import accuracy_maps, of_most_rows


@click.group()
@click.version_option(package_name="diffssl")
def group() -> None:
    """Draw and compare what probing found."""


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
    if out.suffix not in SUFFIXES:
        raise click.UsageError(f"--out {out}: pictures are {', '.join(SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
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


def main() -> None:
    """Entry point of ``diffssl-analyze``."""
    run(group)
