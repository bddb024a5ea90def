"""Sections of the report that come from stores: what was run, costs, similarity, statistics, pictures, identity."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..probe.spec import FUSION_HEADS
from ..store import FeatureKey, FeatureStore
from ..store.key import grids
from .cka import Similarity
from .page import Heat, Part, Section, Table, Words
from .similarity import labels
from .stored_rows import Selected
from .test_set import settings_of

Result = Mapping[str, Any]

_READABLE = 20  # settings, of which a matrix can have numbers in its cells


def run_section(
    stores: Sequence[FeatureStore], results: Mapping[str, Sequence[Result]], command: str, notes: Sequence[str]
) -> Section:
    """What was run on which data, the commands that run it again, and what the page leaves out."""
    parts: list[Part] = []
    rows = [
        [
            store.path,
            store.header.model,
            split,
            _extracted(store, split),
            len(store.header.classes),
            "; ".join(grids(store.keys(split))),
        ]
        for store in stores
        for split in store.splits
    ]
    parts.append(Table("Features", ["store", "model", "split", "rows", "classes", "settings"], rows))
    groups: dict[tuple[Any, ...], list[float]] = {}
    for folder, lines in results.items():
        for line in lines:
            about = (folder, *(line[name] for name in ("head", "n_train", "n_test", "task")))
            groups.setdefault(about, []).append(float(line["seconds"]))
    fits = [[*about, len(seconds), sum(seconds)] for about, seconds in groups.items()]
    header = ["results", "head", "training rows", "test rows", "task", "fits", "seconds"]
    parts.append(Table("Fits", header, fits, digits=1))
    parts += [Words(note, "note") for note in notes]
    parts.append(
        Words(
            "To run it again. The commands of diffssl-probe name settings and heads alone: subsets, labels, seeds, test stores "
            "and options of heads are in every result line, under its specification."
        )
    )
    commands = [own for store in stores for own in _commands(store)]
    for folder, lines in results.items():
        for store in stores:
            commands += _probes(store, folder, [line for line in lines if store_of(line, stores) is store])
    parts.append(Words("\n".join(dict.fromkeys([*commands, command])), "code"))
    return Section("What was run", parts)


def cost_section(store: FeatureStore) -> Section:
    """What a feature costs: operations of the backbone up to its block, and bytes."""
    split = next(iter(store.splits))
    blocks = {block.number: block for block in store.header.blocks}
    kept = {(key.block, key.pool): store.layout(key, split).row_bytes for key in store.keys(split)}
    rows = [
        [number, own.kind, f"{own.channels} x {own.size} x {own.size}", pool, own.gflop, 100 * own.share, size]
        for (number, pool), size in sorted(kept.items(), key=lambda item: (item[0][0], str(item[0][1])))
        for own in [blocks[number]]
    ]
    header = ["block", "kind", "map", "pool", "GFLOP an image", "% of the network", "bytes an image"]
    about = "Of one image at one timestep: a forward pass that stops after the block, and the stored feature."
    return Section("Costs", [Table(store.path, header, rows)], about)


def similarity_section(selected: Selected, found: Similarity, estimator: str) -> Section:
    """CKA of all pairs of settings as a heat table."""
    several = len({one.store.path for one in selected.settings}) > 1
    short = labels(selected.settings)
    names = [
        f"{Path(one.store.path).stem} {name}" if several else name for one, name in zip(selected.settings, short, strict=True)
    ]
    values = found.value
    hover = [
        [
            f"{names[i]} and {names[j]}: {values[i, j]:.3f} [{found.low[i, j]:.3f}, {found.high[i, j]:.3f}]"
            for j in range(len(names))
        ]
        for i in range(len(names))
    ]
    one = selected.settings[0]
    caption = f"linear CKA, {estimator}, {len(one.rows)} rows of {one.split}; bright is 1"
    low = min(0.0, float(np.nanmin(values)))
    heat = Heat(caption, names, names, "setting", "setting", values, hover, low, 1.0, 2 if len(names) <= _READABLE else None)
    return Section(
        "Similarity",
        [*map(Words, selected.notes), heat],
        "How alike the features of two settings are, up to rotation and scale; 95 % intervals, by bootstrap, are shown when "
        "the pointer is on a cell.",
    )


def statistics_section(table: Sequence[Mapping[str, Any]]) -> Section:
    """Statistics of the features of every setting."""
    header = [name for name in table[0] if any(row[name] is not None for row in table)]
    names = [name.replace("_", " ") for name in header]
    return Section(
        "Statistics",
        [Table(f"{len(table)} settings", names, [[row[name] for name in header] for row in table], digits=3)],
        "Effective rank and participation ratio say over how many directions the features spread, the Fisher ratio how far "
        "class means lie apart, the noise share how much of the variance another noise draw changes.",
    )


def identity_section(stores: Sequence[FeatureStore], results: Mapping[str, Sequence[Result]]) -> Section:
    """What decides the numbers, and what they were made with."""
    rows: list[list[Any]] = []
    for store in stores:
        rows.append([store.path, "feature_id", store.feature_id])
        rows += [[store.path, f"data_id of {split}", store.data_id(split)] for split in store.splits]
        rows += [[store.path, name, str(value)] for name, value in store.header.identity.fields.items()]
        rows += [[store.path, f"made by: {name}", value] for name, value in store.header.versions.items()]
    for folder, lines in results.items():
        versions = dict.fromkeys(", ".join(f"{name} {own}" for name, own in line["versions"].items()) for line in lines)
        rows += [[folder, "fitted with", text] for text in versions]
    return Section("Identity", [Table("What decides the numbers", ["of", "what", "value"], rows)])


def _extracted(store: FeatureStore, split: str) -> str:
    """How many rows settings have: of some there may be fewer than of others."""
    counts = [store.wanted_rows([key], split) for key in store.keys(split)] or [0]
    fewest, most = min(counts), max(counts)
    return f"{most if fewest == most else f'{fewest} to {most}'} of {store.n_rows(split)}"


def _commands(store: FeatureStore) -> list[str]:
    """The commands that the store's commits were made by."""
    found = (store.journal.command(split, key) for split in store.splits for key in store.keys(split))
    return list(dict.fromkeys(command for command in found if command))


def _probes(store: FeatureStore, folder: str, lines: Sequence[Result]) -> list[str]:
    """The commands that fit the heads again: those on the same settings together, and those on several at once apart."""
    alone: dict[str, set[FeatureKey]] = {}
    chosen: dict[tuple[str, ...], dict[str, None]] = {}
    for line in lines:
        if not isinstance(line["block"], list):
            alone.setdefault(line["head"], set()).update(settings_of(line))
        else:
            concat = [] if line["head"] in FUSION_HEADS else ["--concat"]
            chosen.setdefault((*_selection(store, set(settings_of(line)), False), *concat), {})[line["head"]] = None
    for head, keys in alone.items():
        chosen.setdefault(tuple(_selection(store, keys, True)), {})[head] = None
    return [
        shlex.join(["diffssl-probe", "--store", store.path, "--head", ",".join(heads), *selection, "--out", folder])
        for selection, heads in chosen.items()
    ]


def store_of(line: Result, stores: Sequence[FeatureStore]) -> FeatureStore | None:
    """The store that a result is of: with its features, of its samples."""
    for store in stores:
        there = {split: store.data_id(split) for split in store.splits}
        if store.feature_id == line["feature_id"] and line["data_id"].items() <= there.items():
            return store
    return None


def _selection(store: FeatureStore, keys: Set[FeatureKey], all_is_default: bool) -> list[str]:
    """Options that choose settings; if that is the default, none for all that any split of the store has."""
    if all_is_default and keys >= {replace(key, draw=0, crop=0) for split in store.splits for key in store.keys(split)}:
        return []
    blocks = sorted({(key.block, key.pool) for key in keys}, key=lambda pair: (pair[0], str(pair[1])))
    steps = sorted({key.timestep for key in keys if key.timestep is not None})
    timesteps = ["--timesteps", ",".join(map(str, steps))] if steps else []
    return ["--blocks", ",".join(f"{block}@{pool}" for block, pool in blocks), *timesteps]
