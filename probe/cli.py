"""``diffssl-probe``: train heads from a store, without the backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..store.cli import ListType, run
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .presets import DEFAULT, preset_names
from .spec import HEADS, ProbeSpec
from .targets import TASKS

if TYPE_CHECKING:
    from .ranks import Ranks


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _part(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    return int(first), int(step)


_PATH = click.Path(path_type=Path)


@click.command()
@click.version_option(package_name="diffssl")
@click.option("--store", multiple=True, help="Folder, or s3://bucket/feats.zarr; several in turn; default: feats.zarr.")
@click.option("--head", type=ListType(_names), help=f"One or several of {', '.join(HEADS)}, FILE.py:FUNCTION, with commas.")
@click.option(
    "--study", type=_PATH, metavar="FILE.json", help="Many runs, and a paper's numbers beside them; instead of --head."
)
@click.option("--blocks", type=ListType(parse_blocks), help="Only these, such as 18,24 or 1-37 or 19@8,24@full; default: all.")
@click.option("--timesteps", type=ListType(parse_numbers), help="Only these; default: all of the store.")
@click.option("--pools", type=ListType(parse_pools), help="Only these; default: all of the store.")
@click.option("--concat", is_flag=True, help="All selected settings side by side are the input of one fit.")
@click.option("--mix-copies", is_flag=True, help="Train on all noise draws and crops in turns; score one draw, and their mean.")
@click.option("--protocol", default=DEFAULT, show_default=True, help=f"Options of the heads: {', '.join(preset_names())}.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Fits of each input.")
@click.option("--limit", type=int, help="Only the first N rows of every split.")
@click.option("--shots", type=ListType(_integers), default=(), help="Train on so many rows a class, such as 2,5,10.")
@click.option("--fraction", type=ListType(_floats), default=(), help="Train on such parts of each class, such as 0.01,0.1.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Subsets of each of these.")
@click.option("--train-ids", type=_PATH, help="Train on the ids in this file alone, one a line.")
@click.option("--labels", type=_PATH, help="CSV of other answers than the store's classes: id,ANSWER,… (see docs/protocol.md).")
@click.option("--task", type=click.Choice(TASKS), default="classify", show_default=True, help="What --labels holds.")
@click.option("--test-store", help="Score the test rows of another store of the same features.")
@click.option("--no-refit", is_flag=True, help="Do not fit again on train and held-out rows.")
@click.option("--out", type=_PATH, help="Folder of results; default: the store's name with .results.")
@click.option("--save-head", "save_heads", type=_PATH, metavar="FOLDER", help="Keep the fitted heads in this folder.")
@click.option("--load-head", type=_PATH, metavar="FOLDER", help="Fit nothing: score the heads kept in this folder.")
@click.option("--save-probabilities", is_flag=True, help="Keep the probabilities of all test rows beside the results.")
@click.option("--learning-rates", type=ListType(_floats), help="To try together; default: the protocol's.")
@click.option("--weight-decays", type=ListType(_floats), help="To try together; default: the protocol's.")
@click.option("--steps", type=int, help="Optimiser steps; default: the protocol's.")
@click.option("--batch-size", type=int, help="Rows of a step; default: the protocol's.")
@click.option("--C", "C", type=ListType(_floats), help="Of logreg, to choose among; default: the protocol's.")
@click.option("--hidden", type=ListType(_integers), help="Hidden widths of mlp, with commas; default 256.")
@click.option("--width", type=int, help="Of tokens (attention, difformer; default 1024) or channels (cnn; default 128).")
@click.option("--depth", type=int, help="Transformer blocks (attention, difformer); default 2.")
@click.option("--tokenizer", type=click.Choice(["none", "norm"]), help="Of attention; norm: layer norm and projection.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--threads", type=int, help="Of the CPU; default: all cores.")
@click.option("--part", type=ListType(_part), default="0/1", help="I/N: only the I-th of N parts, from 0; for job arrays.")
@click.option("--workers", type=click.IntRange(min=1), help="So many processes on this machine, one a GPU if there are GPUs.")
@click.option("--dask", metavar="ADDRESS", help="Fit on a running Dask cluster, such as tcp://node1:8786.")
def command(**options: Any) -> None:
    """Fit heads on the settings of a store and rank the settings by held-out accuracy."""
    stores = options.pop("store")
    head, study, load_head, workers, dask = (options.pop(name) for name in ("head", "study", "load_head", "workers", "dask"))
    if (workers is not None) + (dask is not None) + (options["part"][1] > 1) > 1:
        raise click.UsageError("--part, --workers and --dask exclude each other")
    if sum(given is not None for given in (head, study, load_head)) != 1:
        raise click.UsageError("give one of --head, to fit; --study, to fit many; --load-head, to score heads that were kept")
    if study is not None:
        _study(study, stores, options, workers, dask)
        return
    options["refit"] = not options.pop("no_refit")
    stores = stores or ["feats.zarr"]
    try:
        spec = ProbeSpec(stores[0], head or ["linear"], **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    from .apply import apply_heads  # these import torch, which --help can do without
    from .study import probe_stores

    if load_head is not None:
        apply_heads(load_head, stores, spec, click.echo)
        return
    specs = [replace(spec, store=store) for store in stores]
    with _ranks(spec.device, spec.part, workers, dask) as ranks:
        probe_stores(specs, click.echo, workers=workers, dask=dask, ranks=ranks)


def _study(path: Path, stores: list[str], options: dict[str, Any], workers: int | None, dask: str | None) -> None:
    """Carry out a study file; of the command line, what belongs to this machine."""
    from .matrix import compare_expected, read_study
    from .study import probe_stores

    machine = {name: options[name] for name in ("device", "threads", "part", "out") if options[name] is not None}
    study = read_study(path, stores, machine)
    with _ranks(options["device"], options["part"], workers, dask) as ranks:
        if study.about and ranks.first:
            click.echo(study.about)
        results = probe_stores(study.specs, click.echo, workers=workers, dask=dask, ranks=ranks)
    for line in compare_expected(study.expected, results) if ranks.first else ():
        click.echo(line)


@contextmanager
def _ranks(device: str, part: tuple[int, int], workers: int | None, dask: str | None) -> Iterator[Ranks]:
    """The processes that torchrun started, which train together unless each does a part; else this one alone."""
    from .ranks import ALONE, joined, under_torchrun

    if not under_torchrun() or part[1] > 1:
        yield ALONE
        return
    if workers is not None or dask is not None:
        raise click.UsageError("torchrun has started the processes; leave out --workers and --dask, or torchrun")
    with joined(device) as ranks:
        yield ranks


def main() -> None:
    """Entry point of ``diffssl-probe``."""
    run(command, "stopped; every finished fit is kept, and the same command goes on")


if __name__ == "__main__":  # python -m, as torchrun likes it
    main()
