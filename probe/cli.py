"""``diffssl-probe``: train heads from a store, without the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..store.cli import run
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .spec import HEADS, ProbeSpec


@click.command()
@click.version_option(package_name="diffssl")
@click.option("--store", default="feats.zarr", show_default=True, help="Folder, or s3://bucket/feats.zarr.")
@click.option("--head", required=True, help=f"One or several of {', '.join(HEADS)}, with commas.")
@click.option("--blocks", help="Only these, such as 18,24 or 1-37 or 19@8,24@full; default: all of the store.")
@click.option("--timesteps", help="Only these; default: all of the store.")
@click.option("--pools", help="Only these; default: all of the store.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Fits a setting.")
@click.option("--limit", type=int, help="Only the first N rows of every split.")
@click.option("--no-refit", is_flag=True, help="Do not fit again on train and held-out rows.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results; default: the store's name with .results.")
@click.option("--steps", type=int, help="Optimiser steps; default 2000 (linear), 1000 (mlp).")
@click.option("--hidden", default="256", show_default=True, help="Hidden widths of mlp, with commas.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, … (linear, mlp).")
def command(**options: Any) -> None:
    """Fit heads on the settings of a store and rank the settings by held-out accuracy."""
    parsers = {"blocks": parse_blocks, "timesteps": parse_numbers, "pools": parse_pools}
    try:
        for name, parse in parsers.items():
            options[name] = parse(options[name]) if options[name] else None
        options["hidden"] = [int(width) for width in options["hidden"].split(",")]
        options["heads"] = list(dict.fromkeys(options.pop("head").split(",")))
        spec = ProbeSpec(refit=not options.pop("no_refit"), **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    from .study import probe  # imports torch, which --help can do without

    probe(spec, click.echo)


def main() -> None:
    """Entry point of ``diffssl-probe``."""
    run(command, "stopped; every finished fit is kept, and the same command goes on")
