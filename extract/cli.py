"""``diffssl-extract``: run the backbone once per image and timestep, and keep the features."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..store.cli import run
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .errors import Interrupted
from .run import extract, prepare, show_plan
from .settings import describe_blocks
from .sources import DIGITS
from .spec import COMPUTE_DTYPES, STORE_DTYPES, ExtractSpec
from .zoo import BUNDLED, PUBLISHED, find_model, model_config


class _List(click.ParamType[Any]):
    """A click type from one of the parsers of ``store.selection``."""

    name = "list"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of the option."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.version_option(package_name="diffssl")
@click.option("--blocks", type=_List(parse_blocks), help="Blocks, such as 18,24 or 1-37 or 19@8,24@full.")
@click.option("--timesteps", type=_List(parse_numbers), help="Timesteps, such as 10,90 or 10-500:20.")
@click.option("--pools", type=_List(parse_pools), default="1", show_default=True, help="Pool sizes, or full.")
@click.option("--data", multiple=True, default=[DIGITS], help="Images, or split=IMAGES (see docs/data.md); default: digits.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV (file,label) of a flat folder of images.")
@click.option("--only", multiple=True, metavar="FILE", help="Only the ids in FILE, one a line, or split=FILE (repeatable).")
@click.option("--model", help=f"{BUNDLED} (default), {', '.join(PUBLISHED)}.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights of your own model, with --model-config.")
@click.option("--model-config", type=click.Path(path_type=Path), help="JSON of guided_diffusion's flags.")
@click.option("--condition", help="For class-conditional models: none, mean or a class number.")
@click.option("--store", type=click.Path(path_type=Path), default=Path("feats.zarr"), show_default=True)
@click.option("--seed", type=int, help="Of the noise; default 0, or the store's.")
@click.option("--noise", type=click.Choice(["gaussian", "none"]), help="none extracts from clean images.")
@click.option("--draws", type=int, default=1, show_default=True, help="Noise draws.")
@click.option("--limit", type=int, help="Only the first N rows of every split (a random sample).")
@click.option("--batch-size", type=int, help="Images of a forward pass; fixed when the store is created.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …")
@click.option("--dtype", type=click.Choice(COMPUTE_DTYPES), help="Compute dtype; default float32, float16 on a GPU.")
@click.option("--store-dtype", type=click.Choice(STORE_DTYPES), help="Dtype on disk; default float16.")
@click.option("--row-block", type=int, help="Rows of a commit, a power of two; default by the number of rows.")
@click.option("--max-bad", type=int, help="Undecodable images allowed; default 0.1 % of them, at least 1.")
@click.option("--plan", is_flag=True, help="Say what would be computed and written, and stop.")
@click.option("--measure", is_flag=True, help="With --plan: time one batch.")
@click.option("--list-blocks", is_flag=True, help="List the model's blocks and stop.")
def command(**options: Any) -> None:
    """Run a frozen diffusion U-Net once per image and timestep and keep the features of a grid of settings."""
    plan, measure, list_blocks = (options.pop(name) for name in ("plan", "measure", "list_blocks"))
    if list_blocks:
        _list_blocks(options)
        return
    for name in ("blocks", "timesteps"):
        if not options[name]:
            raise click.UsageError(f"--{name} is needed, such as --blocks 18,24 --timesteps 10,90")
    if measure and not plan:
        raise click.UsageError("--measure goes with --plan")
    try:
        spec = ExtractSpec(**options, command=_command_line())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if plan:
        show_plan(prepare(spec, click.echo), measure, click.echo)
    else:
        extract(spec, click.echo)


def _list_blocks(options: dict[str, Any]) -> None:
    from .adm import measure_blocks

    name, checkpoint = options["model"], options["checkpoint"]
    if (checkpoint is None) != (options["model_config"] is None):
        raise click.UsageError("--checkpoint and --model-config go together")
    # A published model's blocks can be listed without its weights.
    published = checkpoint is None and name not in (None, BUNDLED)
    config = model_config(name) if published else find_model(name, checkpoint, options["model_config"]).config
    click.echo("\n".join(describe_blocks(measure_blocks(config))))


def main() -> None:
    """Entry point of ``diffssl-extract``."""
    run(command, str(Interrupted(_command_line())))


def _command_line() -> str:
    return shlex.join(["diffssl-extract", *sys.argv[1:]])
