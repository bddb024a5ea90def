"""Many files by one name: ``{000..146}`` and ``{a,b}`` as in WebDataset, ``*``, ``?`` and ``[…]`` as in a shell."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from itertools import product
from math import prod
from pathlib import Path

from .errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
_LETTERS = re.compile(r"[a-z]+")
_WORDS = {"train", "training", "val", "valid", "validation", "test"}
_MOST = 1_000_000
_SHOWN = 3


def is_pattern(text: str) -> bool:
    """Whether a name stands for many files; a file that has it as its own name comes first."""
    return any(sign in text for sign in "*?[{") and not Path(text).exists()


def matching_files(pattern: str) -> list[Path]:
    """The files that a pattern names, sorted.

    Raises:
        DataError: a part of the pattern matches nothing, a file is not there, or the braces make no sense.
    """
    names = expand(pattern)
    paths: set[Path] = set()
    missing: list[str] = []
    for name in names:
        matches = [Path(match) for match in glob.glob(name, recursive=True)] if has_wildcard(name) else [Path(name)]  # noqa: PTH207
        files = [path for path in matches if path.is_file()]
        paths.update(files)
        missing += [] if files else [name]
    if missing:
        raise DataError(
            f"{pattern}: there is no file for {len(missing)} of its {len(names)} names, such as {', '.join(missing[:_SHOWN])}"
        )
    return sorted(paths)


def refuse_mixed_splits(pattern: str, paths: Iterable[Path | str]) -> None:
    """Raise ``DataError`` for files of train and of val in one pattern that does not say so: ``*.tar`` where all shards lie."""
    words = [_WORDS & set(_LETTERS.findall(str(path).lower())) for path in paths]
    differ = set().union(*words) - set(_WORDS).intersection(*words)
    unsaid = differ - set(_LETTERS.findall(pattern.lower()))
    if unsaid:
        both = " and ".join(sorted(differ)) if len(differ) > 1 else f"{min(differ)} and others"
        raise DataError(
            f"{pattern}: matches files of {both}; give each split a pattern, as --data train=… --data val=…, or name them all "
            "in braces for one split of both"
        )


def has_wildcard(text: str) -> bool:
    """Whether a name, its braces expanded, still stands for many."""
    return any(sign in text for sign in "*?[")


def expand(pattern: str) -> list[str]:
    """The names that braces stand for. Raises ``DataError`` where they make no sense."""
    pieces = _BRACES.split(pattern)
    choices = [[piece] if i % 2 == 0 else _choices(pattern, piece) for i, piece in enumerate(pieces)]
    if any(sign in piece for piece in pieces[::2] for sign in "{}"):
        raise DataError(f"{pattern}: its braces do not match, or lie in one another; they are as in {{000..146}} or {{a,b}}")
    total = prod(len(choice) for choice in choices)
    if total > _MOST:
        raise DataError(f"{pattern}: stands for {total} files, more than {_MOST}")
    return ["".join(words) for words in product(*choices)]


def _choices(pattern: str, braces: str) -> list[str]:
    match = _RANGE.fullmatch(braces)
    if match is None:
        if "," not in braces:
            raise DataError(f"{pattern}: {{{braces}}} is neither a range, as {{000..146}}, nor a list, as {{a,b}}")
        return braces.split(",")
    first, last = int(match[1]), int(match[2])
    if first > last or last - first >= _MOST:
        raise DataError(f"{pattern}: the range {{{braces}}} is empty, or has more than {_MOST} numbers")
    return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
