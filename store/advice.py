"""Which command completes a store: in the errors of readers, from the commands that wrote it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

DEFAULT_STORE = "feats.zarr"  # of all commands
DEFAULT_SIDE = 64  # of thumbnails, where one is to be proposed

_PROGRAM = "diffssl-extract"


def completing(path: str, command: str | None, *, beyond_limit: bool = False) -> str:
    """The command that completes a store, as it was typed, with where the store is now.

    Args:
        path: of the store.
        command: that wrote it, if it is known.
        beyond_limit: more rows are wanted than it was limited to.
    """
    if command is None:
        return f"{_PROGRAM}, with the options that made it"
    return shlex.join(_at(path, _without(shlex.split(command), ["--store", *(["--limit"] if beyond_limit else [])])))


def with_thumbnails(path: str, command: str | None, side: int = DEFAULT_SIDE) -> str:
    """The command that adds thumbnails to a store: the one that wrote its features, which it then finds complete."""
    if command is None:
        return f"{_PROGRAM} --thumbnails {side}, with the options that made it"
    program, *words = _without(shlex.split(command), ["--store", "--thumbnails"])
    return shlex.join(_at(path, [program, "--thumbnails", str(side), *words]))


def _without(words: list[str], options: Sequence[str]) -> list[str]:
    for option in options:
        words = [word for word in words if not word.startswith(f"{option}=")]
        if option in words[:-1]:
            place = words.index(option)
            words = words[:place] + words[place + 2 :]
    return words


def _at(path: str, words: list[str]) -> list[str]:
    return [*words, *(["--store", path] if path != DEFAULT_STORE else [])]
