"""Results in words: one line a setting and head, ranked by what selection may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from .scoring import score_name, score_title

_SHOWN = 40
_SETTING = ("store", "head", "block", "timestep", "pool", "draw", "crop", "shots", "fraction", "train_ids")


def ranking(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table ranked by the held-out score, with the test value of each and its interval, and the best setting by name.

    Several seeds, or several subsets of the training rows, of one setting are one line: means, and the spread.
    """
    if not results:
        return ["no fits in this part"]
    title = score_title(results[0]["task"])
    rows = sorted((_mean(group) for group in _by_setting(results)), key=lambda row: -row["val"])
    lines = _lines(rows, f"val {title}", f"test {title}")
    best = rows[0]
    lines.append(
        f"best by val: {best['head']} on {describe_setting(best)}: "
        f"test {title} {best['test']:.4f} [{best['low']:.4f}, {best['high']:.4f}] on {best['n_test']} rows"
    )
    return lines


def scores_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of heads that were kept, as they score on other rows; in the order given, since nothing is chosen."""
    rows = []
    for record in records:
        name = f"test_{score_name(record['task'])}"
        flags = "; ".join([*_copy(record), f"store {record['store']}"])
        low, high = record[f"{name}_low"], record[f"{name}_high"]
        rows.append({**record, "val": None, "test": record[name], "low": low, "high": high, "flags": flags})
    return _lines(rows, "", f"test {score_title(records[0]['task'])}")


def describe_setting(result: Mapping[str, Any]) -> str:
    """The setting, or settings, of a result in words."""
    if isinstance(result["block"], list):
        blocks = ",".join(f"{block}@{pool}" for block, pool in dict.fromkeys(zip(result["block"], result["pool"], strict=True)))
        steps = ",".join(map(str, dict.fromkeys(step for step in result["timestep"] if step is not None)))
        text = f"blocks {blocks}" + (f", timesteps {steps}" if steps else "")
    else:
        step = "" if result["timestep"] is None else f", timestep {result['timestep']}"
        text = f"block {result['block']}{step}, pool {result['pool']}"
    return text + "".join(f", {name}" for name in _copy(result))


def _lines(rows: Sequence[Mapping[str, Any]], val: str, test: str) -> list[str]:
    wide = [len(_cell(row, name)) for row in rows[:_SHOWN] for name in ("block",)]
    width = max([6, *(size + 1 for size in wide)])
    head = max([8, *(len(row["head"]) + 1 for row in rows[:_SHOWN])])
    lines = [f"{'head':<{head}}{'block':>{width}}{'timestep':>10}{'pool':>6}{val:>11}{test:>12}  {'95 % interval':<16}flags"]
    for row in rows[:_SHOWN]:
        held_out = "" if row["val"] is None else f"{row['val']:.4f}"
        lines.append(
            f"{row['head']:<{head}}{_cell(row, 'block'):>{width}}{_cell(row, 'timestep'):>10}{_cell(row, 'pool'):>6}"
            f"{held_out:>11}{row['test']:>12.4f}  [{row['low']:.4f}, {row['high']:.4f}] {row['flags']}".rstrip()
        )
    if len(rows) > _SHOWN:
        lines.append(f"… and {len(rows) - _SHOWN} more")
    return lines


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A block, timestep or pool; several with commas; a dash for an encoder without timesteps."""
    value = row[name]
    if isinstance(value, list):
        return ",".join("-" if one is None else str(one) for one in dict.fromkeys(value))
    return "-" if value is None else str(value)


def _by_setting(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(str([result.get(name) for name in _SETTING]), []).append(result)
    return list(groups.values())


def _copy(result: Mapping[str, Any]) -> list[str]:
    """Which further noise draw or crop a result is of."""
    return [f"{name} {result[name]}" for name in ("draw", "crop") if result[name]]


def _mean(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = group[0]
    name = score_name(first["task"])
    tests = [result[f"test_{name}"] for result in group]
    return {
        **{field: first[field] for field in ("head", "block", "timestep", "pool", "draw", "crop", "n_test")},
        "val": fmean(_number(result[f"val_{name}"]) for result in group),
        "test": fmean(_number(value) for value in tests),
        "low": fmean(_number(result[f"test_{name}_low"]) for result in group),
        "high": fmean(_number(result[f"test_{name}_high"]) for result in group),
        "flags": "; ".join(_flags(group, name, tests)),
    }


def _flags(group: Sequence[Mapping[str, Any]], name: str, tests: Sequence[float]) -> list[str]:
    first = group[0]
    flags = _copy(first)
    flags += [f"store {first['store']}"] if "store" in first else []
    flags += [f"{first['shots']} shots"] if first.get("shots") else []
    flags += [f"fraction {first['fraction']:.4g}"] if first.get("fraction") else []
    if any(result["at_edge"] for result in group):
        flags.append("choice at the grid's edge")
    if not all(result.get("converged", True) for result in group):
        flags.append("not converged")
    ensembles = [result[f"test_{name}_ensemble"] for result in group if f"test_{name}_ensemble" in result]
    if ensembles:
        draws = len(first[f"test_{name}_draws"])
        flags.append(f"mean of {draws} draws {fmean(ensembles):.4f}, sd over draws {stdev(first[f'test_{name}_draws']):.4f}")
    chosen_on_test = [result[f"best_of_grid_on_test_{name}"] for result in group if f"best_of_grid_on_test_{name}" in result]
    if chosen_on_test:
        flags.append(f"if it were chosen on test: {fmean(chosen_on_test):.4f}")
    if len(group) > 1:
        what = "subsets" if first.get("shots") or first.get("fraction") else "seeds"
        flags.append(f"sd over {len(group)} {what} {stdev(tests):.4f}")
    return flags


def _number(value: float | None) -> float:
    """A score; not a number where a fit diverged."""
    return float("nan") if value is None else value
