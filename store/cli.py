"""``diffssl-store``: what is in a store, how complete it is, and whether it is sound."""

from __future__ import annotations

import signal

import click

from .describe import describe, progress_table
from .errors import DiffsslError
from .feature_store import FeatureStore
from .progress import progress_bar
from .verify import committed_shards, verify

_STORE = click.argument("store", default="feats.zarr")


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
    """Read every chunk and name every damaged or missing row block; exit code 1 if there is one."""
    opened = FeatureStore.open(store)
    shards = len(committed_shards(opened))
    found = 0
    with progress_bar(shards, " shards", "verify") as bar:
        for damage in verify(opened, bar.update):
            found += 1
            bar.write(str(damage))
    click.echo(f"{shards} shards in {opened.journal.commits()} commits read: {found or 'no'} damaged")
    raise SystemExit(1 if found else 0)


def run(command: click.Command, stopped: str = "stopped") -> None:
    """Run a command of diffssl as a program.

    A ``DiffsslError`` becomes one message on stderr and exit code 1; SIGINT and SIGTERM the message ``stopped`` and exit
    code 130; bad options exit with 2; a bug keeps its traceback.
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


def main() -> None:
    """Entry point of ``diffssl-store``."""
    run(group)
