"""Results in words: one line a setting and head, ranked by what selection may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

_SHOWN = 40
_SETTING = ("head", "block", "timestep", "pool", "draw", "crop")


def ranking(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table ranked by val top-1, with the test value of each and its interval, and the best setting by name.

    Several seeds of one setting are one line: means, and the spread of test top-1 over seeds.
    """
    rows = sorted((_mean(group) for group in _by_setting(results)), key=lambda row: -row["val"])
    lines = [
        f"{'head':<8}{'block':>6}{'timestep':>10}{'pool':>6}{'val top-1':>11}{'test top-1':>12}  {'95 % interval':<16}flags"
    ]
    for row in rows[:_SHOWN]:
        lines.append(
            f"{row['head']:<8}{row['block']:>6}{_step(row):>10}{row['pool']!s:>6}{row['val']:>11.4f}"
            f"{row['test']:>12.4f}  [{row['low']:.4f}, {row['high']:.4f}] {row['flags']}".rstrip()
        )
    if len(rows) > _SHOWN:
        lines.append(f"… and {len(rows) - _SHOWN} more")
    best = rows[0]
    copy = "".join(f", {name}" for name in _copy(best))
    step = "" if best["timestep"] is None else f", timestep {best['timestep']}"
    lines.append(
        f"best by val: {best['head']} on block {best['block']}{step}, pool {best['pool']}{copy}: "
        f"test top-1 {best['test']:.4f} [{best['low']:.4f}, {best['high']:.4f}] on {best['n_test']} rows"
    )
    return lines


def _by_setting(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in _SETTING), []).append(result)
    return list(groups.values())


def _step(result: Mapping[str, Any]) -> str:
    """The timestep; a dash for an encoder without."""
    return "-" if result["timestep"] is None else str(result["timestep"])


def _copy(result: Mapping[str, Any]) -> list[str]:
    """Which further noise draw or crop a result is of."""
    return [f"{name} {result[name]}" for name in ("draw", "crop") if result[name]]


def _mean(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    flags = _copy(group[0])
    if any(result["at_edge"] for result in group):
        flags.append("choice at the grid's edge")
    if not all(result.get("converged", True) for result in group):
        flags.append("not converged")
    tests = [result["test_top1"] for result in group]
    if len(group) > 1:
        flags.append(f"sd over {len(group)} seeds {stdev(tests):.4f}")
    return {
        **{name: group[0][name] for name in (*_SETTING, "n_test")},
        "val": fmean(result["val_top1"] for result in group),
        "test": fmean(tests),
        "low": fmean(result["test_top1_low"] for result in group),
        "high": fmean(result["test_top1_high"] for result in group),
        "flags": "; ".join(flags),
    }
