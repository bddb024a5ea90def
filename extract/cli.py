"""``diffssl-extract``: run the backbone once per image and timestep, and keep the features."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..store.cli import ListType, run
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .choose import pick_model
from .errors import Interrupted
from .job import prepare
from .model import MEMORY_FORMATS
from .run import extract, show_plan
from .settings import describe_blocks
from .sources import DIGITS
from .spec import COMPUTE_DTYPES, STORE_DTYPES, THUMBNAIL_SIDES, ExtractSpec, parse_part
from .zoo import BUNDLED, PUBLISHED


def _row_block(text: str) -> int | None:
    if text != "auto" and not text.isdecimal():
        raise ValueError(f"a row block is a number of rows, or auto, got {text!r}")
    return None if text == "auto" else int(text)


@click.command()
@click.version_option(package_name="diffssl")
@click.option("--blocks", type=ListType(parse_blocks), help="Blocks, such as 18,24 or 1-37 or 19@8,24@full.")
@click.option("--timesteps", type=ListType(parse_numbers), help="Timesteps, such as 10,90 or 10-500:20.")
@click.option("--pools", type=ListType(parse_pools), default="1", show_default=True, help="Pool sizes, or full.")
@click.option("--data", multiple=True, default=[DIGITS], help="Images, or split=IMAGES (see docs/data.md); default: digits.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV (file,label) of a flat folder of images.")
@click.option("--only", multiple=True, metavar="FILE", help="Only the ids in FILE, one a line, or split=FILE (repeatable).")
@click.option("--relist", is_flag=True, help="List the images again, even if a listing of them was kept.")
@click.option("--model", help=f"{BUNDLED} (default), {', '.join(PUBLISHED)}, timm:NAME, diffusers:ID.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Your own weights, with --model-config or timm:NAME.")
@click.option("--model-config", type=click.Path(path_type=Path), help="JSON of guided_diffusion's flags.")
@click.option("--backbone", metavar="FILE.py:FUNCTION", help="Your own network: a function that makes one.")
@click.option("--condition", help="For conditional models: none, mean, a class number, a prompt.")
@click.option("--store", default="feats.zarr", show_default=True, help="Folder, or s3://bucket/feats.zarr.")
@click.option("--seed", type=int, help="Of the noise; default 0, or the store's.")
@click.option("--noise", type=click.Choice(["gaussian", "none"]), help="none extracts from clean images.")
@click.option("--draws", type=int, default=1, show_default=True, help="Noise draws.")
@click.option("--crops", type=int, default=1, show_default=True, help="Crops of training rows: the canonical one, and more.")
@click.option("--limit", type=int, help="Only the first N rows of every split (a random sample).")
@click.option("--batch-size", type=int, help="Images of a forward pass; fixed when the store is created.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--dtype", type=click.Choice(COMPUTE_DTYPES), help="Compute dtype; default float32, float16 on a GPU.")
@click.option("--memory-format", type=click.Choice(MEMORY_FORMATS), help="contiguous: guided_diffusion's own modules.")
@click.option("--store-dtype", type=click.Choice(STORE_DTYPES), help="Dtype on disk; default float16.")
@click.option(
    "--row-block", type=ListType(_row_block), default="auto", show_default=True, help="Rows of a commit, a power of 2."
)
@click.option("--part", type=ListType(parse_part), default="0/1", help="I/N: only the I-th of N parts, from 0; for job arrays.")
@click.option("--workers", type=click.IntRange(min=1), help="So many processes on this machine, one a GPU if there are GPUs.")
@click.option("--dask", metavar="ADDRESS", help="Compute on a running Dask cluster, such as tcp://node1:8786.")
@click.option(
    "--thumbnails", metavar="N", type=click.IntRange(*THUMBNAIL_SIDES), help="Keep pictures of NxN pixels too, 8 to 256."
)
@click.option("--max-bad", type=int, help="Undecodable images allowed; default 0.1 % of them, at least 1.")
@click.option("--plan", is_flag=True, help="Say what would be computed and written, and stop.")
@click.option("--measure", is_flag=True, help="With --plan: time one batch.")
@click.option("--gpus", type=click.IntRange(min=1), help="With --plan: for so many workers.")
@click.option("--list-blocks", is_flag=True, help="List the model's blocks and stop.")
def command(**options: Any) -> None:
    """Run a frozen diffusion U-Net once per image and timestep and keep the features of a grid of settings."""
    plan, measure, list_blocks = (options.pop(name) for name in ("plan", "measure", "list_blocks"))
    workers, dask, gpus = (options.pop(name) for name in ("workers", "dask", "gpus"))
    if not options["blocks"] and not options["thumbnails"] and not list_blocks:
        raise click.UsageError("--blocks is needed, such as --blocks 18,24 --timesteps 10,90 (--list-blocks lists them)")
    options |= {"blocks": options["blocks"] or ({1: set()} if list_blocks else {}), "timesteps": options["timesteps"] or ()}
    if (workers is not None) + (dask is not None) + (options["part"][1] > 1) > 1:
        raise click.UsageError("--part, --workers and --dask exclude each other")
    if (measure or gpus) and not plan:
        raise click.UsageError(f"{'--measure' if measure else '--gpus'} goes with --plan")
    try:
        spec = ExtractSpec(**options, sharing=gpus or workers or 1, command=_command_line(whole=True))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if list_blocks:
        click.echo("\n".join(describe_blocks(pick_model(spec, None).measure_blocks())))
    elif plan:
        show_plan(prepare(spec, click.echo, fetch=measure), measure, click.echo, gpus or 1)
    else:
        extract(spec, click.echo, workers=workers, dask=dask)


def main() -> None:
    """Entry point of ``diffssl-extract``."""
    run(command, str(Interrupted(_command_line())))


def _command_line(*, whole: bool = False) -> str:
    """The command line as typed; ``whole`` without ``--part``, so that it completes the store alone."""
    arguments = sys.argv[1:]
    if whole and "--part" in arguments:
        at = arguments.index("--part")
        arguments = arguments[:at] + arguments[at + 2 :]
    arguments = [argument for argument in arguments if not (whole and argument.startswith("--part="))]
    return shlex.join(["diffssl-extract", *arguments])
