"""``diffssl-store``: what is in a store, how complete it is, whether it is sound, and what to do about it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .choice import Choice, choose
from .describe import describe, human_bytes, not_committed, progress_table
from .drop import drop, plan_drop, plan_drop_thumbnails
from .errors import DiffsslError
from .feature_store import FeatureStore
from .key import FeatureKey, grids
from .progress import progress_bar
from .repair import repair
from .selection import parse_blocks, parse_numbers, parse_pools
from .storage import NO_ROOM
from .verify import committed_shards, verify

_STORE = click.argument("store", default="feats.zarr")
_FILE = click.argument("file", type=click.Path(path_type=Path))


class ListType(click.ParamType[Any]):
    """A click type from a function that reads the text of an option and raises ``ValueError``."""

    name = "list"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of the option; defaults that are no text are left as they are."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that a :class:`Choice` is made of."""
    options = {
        "--crops": (parse_numbers, "Only these crops, such as 1-3; 0 is the canonical one."),
        "--draws": (parse_numbers, "Only these noise draws, such as 1-3; 0 is the first."),
        "--pools": (parse_pools, "Only these, as they are stored, or full."),
        "--timesteps": (parse_numbers, "Only these, such as 10,90 or 10-500:20."),
        "--blocks": (parse_blocks, "Only these, such as 18,24 or 1-37 or 19@8,24@full."),
        "--splits": (lambda text: [name.strip() for name in text.split(",")], "Only these, such as train,test."),
    }
    for name, (parse, text) in options.items():
        command = click.option(name, type=ListType(parse), help=text)(command)
    return command


@click.group()
@click.version_option(package_name="diffssl")
def group() -> None:
    """Look after a feature store (default: feats.zarr)."""


@group.command()
@_STORE
def info(store: str) -> None:
    """Show what is in a store: identity, splits, settings, rows left out, bytes and files."""
    click.echo("\n".join(describe(FeatureStore.open(store))))


@group.command()
@_STORE
def status(store: str) -> None:
    """Show how complete each array is; exit code 1 if one lacks rows that were asked for."""
    lines, complete = progress_table(FeatureStore.open(store))
    click.echo("\n".join(lines))
    raise SystemExit(0 if complete else 1)


@group.command("verify")
@_STORE
def verify_command(store: str) -> None:
    """Read every document and every chunk, name all that is damaged or missing; exit code 1 if there is something."""
    opened = FeatureStore.open(store, tolerant=True)
    shards = len(committed_shards(opened))
    found = 0
    with progress_bar(shards, " shards", "verify") as bar:
        for damage in verify(opened, bar.update):
            found += 1
            bar.write(str(damage))
    click.echo(f"{shards} shards in {opened.journal.commits()} commits read: {found or 'no'} damaged")
    absent = not_committed(opened)
    if absent:  # an extraction that is not through, or a commit that was removed: nothing tells them apart
        click.echo(f"not committed, so not read: {len(absent)} row blocks of arrays, such as {absent[0]} (status lists them)")
    raise SystemExit(1 if found else 0)


@group.command("repair")
@_STORE
@click.option("--bad", is_flag=True, help="Forget row blocks with samples left out too: their images were replaced.")
def repair_command(store: str, bad: bool) -> None:
    """Forget what is damaged or missing, so that the same extraction computes exactly that anew."""
    done = repair(store, bad, click.echo)
    if not done.forgotten and not done.mended and not done.failed:
        click.echo(f"nothing to repair in {store}")
        return
    click.echo(f"{store}: {done.forgotten} forgotten, {done.mended} written anew, {len(done.failed)} left alone")
    if done.failed:
        click.echo("what is left alone could not be read, but may be sound: make it readable, or remove it, and repair again")
    if done.forgotten:
        commands = sorted(done.commands) or ["diffssl-extract, with the options that made the store"]
        click.echo("compute what was forgotten with:\n  " + "\n  ".join(commands))
    raise SystemExit(1 if done.failed else 0)


@group.command("drop")
@_STORE
@_selection
@click.option("--thumbnails", is_flag=True, help="The pictures of the images and no settings; of --splits, or of all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(store: str, thumbnails: bool, yes: bool, **selection: Any) -> None:
    """Remove settings from a store, for good; or its thumbnails."""
    choice = Choice(**selection)
    if choice == Choice() and not thumbnails:
        raise click.UsageError("say what to drop: --splits, --blocks, --timesteps or --pools, or --thumbnails")
    if thumbnails and choice != Choice(splits=choice.splits):
        raise click.UsageError("--thumbnails are of whole splits: they go with --splits and with nothing else")
    opened = FeatureStore.open(store)
    plan = plan_drop_thumbnails(opened, choice.splits) if thumbnails else plan_drop(opened, choice)
    what = f"{plan.arrays} arrays, {len(plan.shards)} shards, {human_bytes(plan.bytes)}"
    if not yes:
        for split, keys in plan.keys.items():
            names = [str(key) for key in keys] if thumbnails else grids(key for key in keys if isinstance(key, FeatureKey))
            click.echo("\n".join(f"{split}: {name}" for name in names))
        click.confirm(f"{what} will be removed from {store} for good. Go on?", abort=True)
    drop(opened, plan)
    click.echo(f"{what} removed from {store}")


@group.command("export")
@click.argument("store")
@_FILE
@_selection
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def export_command(store: str, file: Path, force: bool, **selection: Any) -> None:
    """Write settings that are complete to one HDF5 file, for other programs or to be imported again."""
    from .hdf5 import export_hdf5

    opened = FeatureStore.open(store)
    choice = Choice(**selection)
    settings = choose(opened, choice, {split: opened.keys(split) for split in opened.splits})
    whole = choice == Choice(splits=choice.splits)  # thumbnails go with all settings of a split, not with some
    keys = {split: opened.journal.arrays(split) if whole else own for split, own in settings.items()}
    export_hdf5(opened, file, keys, force=force)
    arrays = sum(map(len, keys.values()))
    click.echo(f"{arrays} arrays of {', '.join(keys)} written to {file} ({human_bytes(file.stat().st_size)})")


@group.command("import")
@_FILE
@_STORE
def import_command(file: Path, store: str) -> None:
    """Make a store of an exported file, or add to a store what it lacks."""
    from .hdf5_import import import_hdf5

    written = import_hdf5(file, store, click.echo)
    click.echo(
        f"{written} commits written to {store}" if written else f"nothing to do: {store} has everything that is in {file}"
    )


def run(command: click.Command, stopped: str = "stopped") -> None:
    """Run a command of diffssl as a program.

    A ``DiffsslError`` becomes one message on stderr and exit code 1, and so does what the system says of a file; SIGINT and
    SIGTERM become the message ``stopped`` and exit code 130; bad options exit with 2; a bug keeps its traceback.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        command(standalone_mode=False)
    except click.exceptions.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"Error: {stopped}", err=True)
        raise SystemExit(130) from None
    except DiffsslError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        click.echo(f"Error: {where}{error.strerror}", err=True)
        raise SystemExit(1) from None


def main() -> None:
    """Entry point of ``diffssl-store``."""
    run(group)
