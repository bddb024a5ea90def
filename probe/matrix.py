"""A study from a file: stores x runs, and, where a paper has numbers, ours beside theirs. See ``docs/protocol.md``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..store.selection import parse_blocks, parse_numbers, parse_pools
from .errors import ProbeError
from .spec import ProbeSpec

_PARSERS: Mapping[str, Callable[[str], Any]] = {"blocks": parse_blocks, "timesteps": parse_numbers, "pools": parse_pools}
_PATHS = ("labels", "train_ids", "out", "save_heads")
_KNOWN = {field.name for field in fields(ProbeSpec)} - {"store", "part"} | {"head"}


@dataclass(frozen=True)
class Expected:
    """A number of a paper.

    Attributes:
        match: fields of a result line -> values that it is about.
        metric: field of the line.
        value: theirs.
        tolerance: how far from it ours may be.
        source: where it stands.
    """

    match: Mapping[str, Any]
    metric: str
    value: float
    tolerance: float
    source: str


@dataclass(frozen=True)
class StudyFile:
    """What a study file says.

    Attributes:
        about: for people.
        specs: every run on every store.
        expected: numbers of a paper.
    """

    about: str
    specs: Sequence[ProbeSpec]
    expected: Sequence[Expected]


def read_study(path: Path, stores: Sequence[str], overrides: Mapping[str, Any]) -> StudyFile:
    """Read a study.

    Args:
        path: JSON with ``runs``, a list of options as on the command line (``{"head": "linear", "blocks": "19,24"}``), and
            optionally ``about``, ``stores`` and ``expected``.
        stores: in place of the file's, if there are any.
        overrides: options of this machine for every run, such as ``device``.

    Raises:
        ProbeError: it cannot be read, or names what there is not.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        runs = content["runs"]
        expected = [Expected(**one) for one in content.get("expected", [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"{path}: cannot be read as a study ({error!r}); it is JSON with a list of runs") from error
    where = list(stores) or content.get("stores", [])
    if not where or not runs:
        raise ProbeError(f"{path}: has {len(where)} stores and {len(runs)} runs; name a store with --store, or in the file")
    return StudyFile(
        content.get("about", ""), [_spec(path, store, run, overrides) for store in where for run in runs], expected
    )


def compare_expected(expected: Sequence[Expected], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of ours beside theirs: the mean over the lines that match, and whether it is within the tolerance."""
    if not expected:
        return []
    lines = [f"{'what':<52}{'ours':>9}{'theirs':>9}{'within':>9}  source"]
    for one in expected:
        found = [result[one.metric] for result in results if all(result.get(name) == one.match[name] for name in one.match)]
        what = ", ".join(f"{name} {value}" for name, value in one.match.items())
        ours = sum(found) / len(found) if found else None
        verdict = "no fit" if ours is None else "yes" if abs(ours - one.value) <= one.tolerance else "NO"
        shown = "" if ours is None else f"{ours:.4f}"
        lines.append(f"{what:<52}{shown:>9}{one.value:>9.4f}{verdict:>9}  {one.source} (tolerance {one.tolerance:g})")
    return lines


def _spec(path: Path, store: str, run: Mapping[str, Any], overrides: Mapping[str, Any]) -> ProbeSpec:
    unknown = sorted(run.keys() - _KNOWN)
    if unknown or "head" not in run:
        problem = f"knows no {', '.join(unknown)}" if unknown else "lacks the head"
        raise ProbeError(f"{path}: the run {dict(run)} {problem}; options are {', '.join(sorted(_KNOWN))}")
    options = {**run, **overrides}
    options["heads"] = options.pop("head").split(",")
    try:
        for name, parse in _PARSERS.items():
            if name in options:
                options[name] = parse(str(options[name]))
        options |= {name: Path(options[name]) for name in _PATHS if options.get(name) is not None}
        return ProbeSpec(store, **options)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"{path}: the run {dict(run)} cannot be: {error}") from error
