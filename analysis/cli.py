"""``diffssl-analyze``: pictures and comparisons from results."""

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
from ..store.feature_store import DEFAULT_STORE
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .choose import choose_results, read_results
from .cka import ESTIMATORS, MIN_ROWS, UNBIASED
from .compare import compare, describe, write_csv
from .number_file import NUMBER_SUFFIXES, require_writer, write_numbers
from .plots import SUFFIXES, draw_maps, draw_similarity
from .similarity import groups_of, labels, noise_to_noise, pairs, similarity, statistics_table
from .stored_rows import Selected, select
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


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose rows and settings of stores."""
    options: dict[str, dict[str, Any]] = {
        "--features": {"type": click.IntRange(min=1), "help": "Average maps down to at most so many numbers."},
        "--draws": {"type": ListType(parse_numbers), "help": "Only these noise draws; default: all."},
        "--pools": {"type": ListType(parse_pools), "help": "Only these, as they are stored, or full; default: all."},
        "--timesteps": {"type": ListType(parse_numbers), "help": "Only these; default: all."},
        "--blocks": {
            "type": ListType(parse_blocks),
            "multiple": True,
            "help": "Only these, such as 18,24 or 19@8,24@full; given again: of the next store; default: all.",
        },
        "--split": {"help": "Split of the rows; default: the only one that all stores have, or val, or test."},
    }
    for name, more in options.items():
        command = click.option(name, **more)(command)
    return command


def _select(
    stores: Sequence[str], blocks: Sequence[Any], split: str | None, n: int | None, features: int | None, **rest: Any
) -> Selected:
    if len(blocks) > 1 and len(blocks) != len(stores):
        raise click.UsageError(f"--blocks is given {len(blocks)} times for {len(stores)} stores; give it once, or once a store")
    if len(set(stores)) < len(stores):
        raise click.UsageError("a store is given twice")
    own = [*blocks] if len(blocks) > 1 else [*(blocks or [None])] * len(stores)
    selected = select(list(map(FeatureStore.open, stores)), [Choice(blocks=one, **rest) for one in own], split, n, features)
    for note in selected.notes:
        click.echo(note)
    return selected


def _check_suffix(path: Path, known: Sequence[str]) -> None:
    if path.suffix not in known:
        raise click.UsageError(f"--out {path}: files are {', '.join(known)}")
    require_writer(path)
    path.parent.mkdir(parents=True, exist_ok=True)


@group.command("cka")
@click.argument("stores", nargs=-1)
@_settings
@click.option("--n", type=click.IntRange(min=MIN_ROWS), default=2000, show_default=True, help="First so many rows.")
@click.option("--estimator", type=click.Choice(ESTIMATORS), default=UNBIASED, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    default=["cka.png", "cka.csv"],
    show_default=True,
    help=f"Picture ({', '.join(SUFFIXES)}) or numbers ({', '.join(NUMBER_SUFFIXES)}); may be given again.",
)
def cka_command(stores: Sequence[str], estimator: str, out: Sequence[Path], **selection: Any) -> None:
    """Similarity (linear CKA) of all settings of one or several STORES, on the rows that all have.

    Default: feats.zarr. --features 4096 is the papers' way; an encoder without timesteps takes no part in --timesteps.
    """
    for path in out:
        _check_suffix(path, (*SUFFIXES, *NUMBER_SUFFIXES))
    selected = _select(stores or [DEFAULT_STORE], **selection)
    found = similarity(selected, estimator)
    for line in noise_to_noise(selected, found):
        click.echo(line)
    table = pairs(selected, found, estimator)
    title = f"linear CKA, {estimator}, {table[0]['rows']} rows, split {table[0]['split']}"
    for path in out:
        if path.suffix in SUFFIXES:
            draw_similarity(found.value, labels(selected.settings), groups_of(selected.settings), title, path)
        else:
            write_numbers(table, path)
    click.echo(f"{len(selected.settings)} settings, {len(table)} pairs in {', '.join(map(str, out))}")


@group.command("statistics")
@click.argument("store", default=DEFAULT_STORE)
@_settings
@click.option("--n", type=click.IntRange(min=1), help="Only the first so many rows; default: all.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("statistics.csv"), show_default=True)
def statistics_command(store: str, out: Path, **selection: Any) -> None:
    """Rank, class separability, norms, sparsity and share of noise of every setting of a STORE, a line each.

    docs/analysis.md defines them. They take a matrix of the numbers of a row squared: --features bounds those of maps.
    """
    _check_suffix(out, NUMBER_SUFFIXES)
    table = statistics_table(_select([store], **selection))
    write_numbers(table, out)
    click.echo(f"{len(table)} settings in {out}")


def main() -> None:
    """Entry point of ``diffssl-analyze``."""
    run(group)
