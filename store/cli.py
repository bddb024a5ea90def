"""``diffssl-store``: what is in a store, how complete it is, and whether it is sound."""

from __future__ import annotations

import click
from tqdm import tqdm

from .describe import describe, progress_table
from .errors import DiffsslError
from .feature_store import FeatureStore
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
    with tqdm(total=shards, unit=" shards", desc="verify", disable=None) as bar:
        for damage in verify(opened, bar.update):
            found += 1
            tqdm.write(str(damage))
    click.echo(f"{shards} shards in {opened.journal.commits()} commits read: {found or 'no'} damaged")
    raise SystemExit(1 if found else 0)


def main() -> None:
    """Run the command; a ``DiffsslError`` becomes one line on stderr and exit code 1."""
    try:
        group()
    except DiffsslError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from error
