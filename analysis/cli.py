"""``diffssl-analyze``: pictures from results."""

from __future__ import annotations

from pathlib import Path

import click

from ..probe import Results
from ..store.cli import run
from ..store.selection import parse_pools
from .plots import SUFFIXES, draw_maps
from .table import accuracy_maps


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
    maps = accuracy_maps(Results(results).read(), head.split(",") if head else None, sizes)
    draw_maps(maps, value, out)
    click.echo(f"{len(maps)} map{'s' if len(maps) > 1 else ''} in {out}")


def main() -> None:
    """Entry point of ``diffssl-analyze``."""
    run(group)
