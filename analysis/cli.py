"""``diffssl-analyze``: pictures and comparisons from results."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..store import FeatureStore
from ..store.advice import DEFAULT_STORE
from ..store.choice import Choice
from ..store.cli import ListType, run
from ..store.describe import human_bytes
from ..store.location import local_path
from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .by_class import best_by_class
from .by_class import describe as describe_classes
from .by_class import write_csv as write_classes
from .choose import choose_results, read_results
from .cka import ESTIMATORS, MIN_ROWS, UNBIASED
from .compare import compare, describe, write_csv
from .complement import complement
from .complement import describe as describe_complement
from .complement import write_csv as write_complement
from .costs import add_costs
from .curves import OVER, make_curves
from .number_file import NUMBER_SUFFIXES, require_writer, write_numbers
from .paired import paired_settings
from .pictures import FIT_ROWS
from .plots import SUFFIXES, draw_curves, draw_maps, draw_sheet, draw_similarity
from .report import make_report, read_results_of
from .scope import pick_maps, pick_rows, pick_split, pick_vectors
from .sheets import map_sheet, neighbour_sheet
from .similarity import groups_of, labels, noise_to_noise, pairs, similarity, statistics_table
from .stored_rows import Selected, select
from .table import AccuracyMap, NoResults, accuracy_maps, of_most_rows, write_maps
from .test_set import find_test_set

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path)
_RESULTS = Path("feats.results")


@click.group()
@click.version_option(package_name="diffssl")
def group() -> None:
    """Draw and compare what probing found, and what is in a store."""


def _of_maps(command: Callable[..., None]) -> Callable[..., None]:
    """The options of what is drawn from maps."""
    for option in (
        click.option("--csv", type=_FILE, help="Write the numbers, with their intervals, as CSV too."),
        click.option(
            "--store", "stores", multiple=True, help="Of results that older versions wrote: has their costs and log-SNR."
        ),
        click.option("--value", type=click.Choice(["val", "test"]), default="val", show_default=True),
        click.option("--pools", type=ListType(parse_pools), help="Only these pool sizes; default: all."),
        click.option("--head", help="Only these heads, with commas; default: all."),
        click.option(
            "--results", type=_FOLDER, multiple=True, default=[_RESULTS], show_default=True, help="Several side by side."
        ),
    ):
        command = option(command)
    return command


def _read_maps(
    results: Sequence[Path], head: str | None, pools: Any, stores: Sequence[str], csv: Path | None
) -> list[AccuracyMap]:
    found, notes = of_most_rows(add_costs(read_results(results), stores))
    for note in notes:
        click.echo(note)
    maps = accuracy_maps(found, head.split(",") if head else None, pools)
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_maps(maps, csv)
    return maps


def _picture(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise click.UsageError(f"--out {out}: pictures are {', '.join(SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)


@group.command("map")
@_of_maps
@click.option("--out", type=_FILE, default=Path("map.png"), show_default=True)
def map_command(value: str, out: Path, **selection: Any) -> None:
    """Draw accuracy over block x timestep; the best setting is chosen by val, and named with its test value."""
    _picture(out)
    maps = _read_maps(**selection)
    draw_maps(maps, value, out)
    click.echo(f"{len(maps)} map{'s' if len(maps) > 1 else ''} in {out}")


@group.command("curves")
@_of_maps
@click.option("--over", type=click.Choice(OVER), default="block", show_default=True, help="The axis.")
@click.option("--best", is_flag=True, help="One line a head, pool and store: that of the best setting by val.")
@click.option("--out", type=_FILE, default=Path("curves.png"), show_default=True)
def curves_command(value: str, over: str, best: bool, out: Path, **selection: Any) -> None:
    """Draw accuracy over blocks, a line a timestep, or over noise, a line a block, with bands of 95 % intervals."""
    _picture(out)
    panels = make_curves(_read_maps(**selection), over, value, best)
    draw_curves(panels, over, value, out)
    click.echo(f"{sum(len(panel.curves) for panel in panels)} lines in {out}")


@group.command("compare")
@click.argument("results", type=_FOLDER, nargs=-1)
@click.option("--head", help="Only these heads, with commas; default: all.")
@click.option("--blocks", type=ListType(parse_blocks), help="Only these, such as 18,24 or 1-37 or 19@8,24@full; default: all.")
@click.option("--timesteps", type=ListType(parse_numbers), help="Only these; default: all.")
@click.option("--pools", type=ListType(parse_pools), help="Only these; default: all.")
@click.option("--store", "stores", multiple=True, help="Of results that older versions wrote: has their costs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampled test rows.")
@click.option("--out", type=_FILE, help="Write all rows of the table as CSV too.")
def compare_command(
    results: Sequence[Path], head: str | None, stores: Sequence[str], seed: int, out: Path | None, **selection: Any
) -> None:
    """Test on the same test rows which settings and heads differ from the best by val, corrected for all comparisons.

    RESULTS are folders of results, of one store or several with the same test rows; default: feats.results.
    """
    heads = head.split(",") if head else None
    lines = add_costs(read_results(results or [_RESULTS]), stores)
    comparison = compare(choose_results(lines, heads, **selection), np.random.default_rng(seed))
    for line in describe(comparison):
        click.echo(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(comparison, out)
        click.echo(f"{len(comparison.settings)} settings in {out}")


@group.command("complement")
@click.argument("results", type=_FOLDER, nargs=-1)
@click.option("--head", help="Only these heads, with commas; default: all.")
@click.option("--blocks", type=ListType(parse_blocks), help="Only these; default: all.")
@click.option("--timesteps", type=ListType(parse_numbers), help="Only these; default: all.")
@click.option("--pools", type=ListType(parse_pools), help="Only these; default: all.")
@click.option("--store", help="Has the labels of the test rows: the setting that is best at each class is told too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampled test rows.")
@click.option("--out", type=_FILE, help="Write the best pair and triple as CSV too.")
@click.option("--classes", type=_FILE, help="Write the classes of --store as CSV too.")
def complement_command(
    results: Sequence[Path],
    head: str | None,
    store: str | None,
    seed: int,
    out: Path | None,
    classes: Path | None,
    **selection: Any,
) -> None:
    """Which settings get right what others do not: best pair and triple, and the best setting of each class.

    RESULTS are folders of results with the same test rows; default: feats.results. What is chosen by test rows is measured
    on others: one half of them chooses.
    """
    if classes is not None and store is None:
        raise click.UsageError("--classes needs the labels of the test rows: give --store")
    settings = paired_settings(
        choose_results(read_results(results or [_RESULTS]), head.split(",") if head else None, **selection)
    )
    rng = np.random.default_rng(seed)
    several = sum(len(one.lines) > 1 for one in settings)
    if several:
        click.echo(f"{several} of {len(settings)} settings have several fits: the first of each counts")
    found = complement(settings, rng)
    _tell(describe_complement(found), out, partial(write_complement, found))
    if store is not None:
        by_class = best_by_class(settings, find_test_set(settings[0].lines[0], FeatureStore.open(store)), rng)
        _tell(describe_classes(by_class), classes, partial(write_classes, by_class))


def _tell(lines: Sequence[str], path: Path | None, write: Callable[[Path], None]) -> None:
    """Print lines, and write the file that is asked for."""
    for line in lines:
        click.echo(line)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        click.echo(f"written to {path}")


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
        raise click.UsageError(f"--blocks is given {len(blocks)} times, stores {len(stores)}; give it once, or once a store")
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
            {"default": DEFAULT_STORE, "show_default": True, "help": "With thumbnails: diffssl-extract --thumbnails 64."},
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
@click.option("--out", type=_FILE, default=Path("pictures.png"), show_default=True)
def pictures_command(
    store: str, split: str | None, ids: Sequence[str], n: int, fit_rows: int, out: Path, **selection: Any
) -> None:
    """Draw feature maps beside their images: the first three principal components as colours, over blocks and timesteps."""
    _picture(out)
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
@click.option("--out", type=_FILE, default=Path("neighbours.png"), show_default=True)
def neighbours_command(store: str, split: str | None, ids: Sequence[str], n: int, k: int, out: Path, **selection: Any) -> None:
    """Draw the images that a setting takes for the most similar to a few given ones."""
    _picture(out)
    opened = FeatureStore.open(store)
    split = pick_split(opened, split)
    keys, notes = pick_vectors(opened, split, Choice(splits=[split], **selection), settings=4)
    for note in notes:
        click.echo(note)
    rows = pick_rows(opened, split, ids, n, keys)
    draw_sheet(neighbour_sheet(opened, keys, split, rows, k), out)
    click.echo(f"{len(rows)} images, {len(keys)} settings in {out}")


@group.command("report")
@click.option("--store", "stores", multiple=True, default=[DEFAULT_STORE], show_default=True, help="Several side by side.")
@click.option("--results", type=_FOLDER, multiple=True, help="Default: those beside each store, such as feats.results.")
@click.option("--n", type=click.IntRange(min=MIN_ROWS), default=2000, show_default=True, help="Rows for CKA and statistics.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampled test rows.")
@click.option("--out", type=_FILE, default=Path("report.html"), show_default=True)
def report_command(stores: Sequence[str], results: Sequence[Path], n: int, seed: int, out: Path) -> None:
    """Write one page about stores and their results, which opens from a file without a network."""
    if len(set(stores)) < len(stores):
        raise click.UsageError(f"--store: each store once, got {', '.join(stores)}")
    opened = [FeatureStore.open(store) for store in stores]
    folders = results or [local_path(store, ".results") for store in stores]
    named = [
        word for name, values in (("--store", stores), ("--results", folders)) for one in values for word in (name, str(one))
    ]
    command = shlex.join(["diffssl-analyze", "report", *named, "--n", str(n), "--seed", str(seed), "--out", str(out)])
    found = read_results_of(opened, folders)
    empty = [str(folder) for folder in results if str(folder) not in found]
    if empty:
        raise NoResults(f"{', '.join(empty)}: no results; run diffssl-probe first, or leave --results out")
    page = make_report(opened, found, command, n, seed, lambda name: click.echo(f"  {name}"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    click.echo(f"{human_bytes(out.stat().st_size)} in {out}")


def main() -> None:
    """Entry point of ``diffssl-analyze``."""
    run(group)
