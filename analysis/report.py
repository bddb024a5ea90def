"""One page about a study: everything that the other commands find, from stores and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..probe import Results
from ..probe.table import describe_setting
from ..store import DiffsslError, FeatureStore, UnknownFeatures
from ..store.choice import Choice
from .cka import UNBIASED
from .compare import compare
from .page import Section, Words, render
from .paired import paired_settings
from .picture_sections import neighbours_section, pictures_section
from .result_sections import (
    comparison_section,
    complement_section,
    confusion_section,
    curves_section,
    guideline_section,
    maps_section,
)
from .scope import evenly
from .similarity import similarity, statistics_table
from .statistics import MAX_FEATURES
from .store_sections import cost_section, identity_section, run_section, similarity_section, statistics_section, store_of
from .stored_rows import Selected, common_split, select
from .table import CLASSIFY, NoResults, accuracy_maps, of_most_rows
from .test_set import settings_of

Result = Mapping[str, Any]
Say = Callable[[str], object]

MOST_SETTINGS = 100  # in the matrix of similarity, each pair a cell that can be hovered over


def make_report(
    stores: Sequence[FeatureStore], results: Mapping[str, Sequence[Result]], command: str, rows: int, seed: int, say: Say
) -> str:
    """The page as HTML.

    A section that cannot be made, for want of results, thumbnails or maps, says why and what to do, in its place.

    Args:
        stores: pictures and costs are of the first, similarity and statistics of all, confusions of the best setting's.
        results: folder -> lines of probing, of these stores; may be empty.
        command: that makes the page, to be shown on it.
        rows: for similarity and statistics, at most so many.
        seed: of the bootstrap of the comparison.
        say: called with the name of each section before it is made.

    Raises:
        UnknownFeatures: a store has no features.
    """
    store = stores[0]
    _require_features(stores)
    lines, notes = _shown(results)

    @cache
    def chosen() -> Selected:
        split = common_split(stores)
        choices = [_choice(one, split, MOST_SETTINGS // len(stores)) for one in stores]
        found = select(stores, [choice for choice, _ in choices], split, rows, MAX_FEATURES)
        return Selected(found.settings, found.labels, [*found.notes, *(note for _, own in choices for note in own)])

    compared = cache(lambda: compare(lines, np.random.default_rng(seed)))
    maps = cache(lambda: accuracy_maps(lines))
    best = cache(lambda: _best(lines, store))

    def best_store() -> FeatureStore:
        return store_of(best(), stores) or store

    makers: dict[str, Callable[[], Section]] = {
        "What was run": lambda: run_section(stores, results, command, notes),
        "Which setting to use": lambda: guideline_section(compared()),
        "Maps": lambda: maps_section(maps()),
        "Curves": lambda: curves_section(maps()),
        "Comparison": lambda: comparison_section(compared()),
        "Complements": lambda: complement_section(paired_settings(lines), np.random.default_rng(seed)),
        "Confusions": lambda: confusion_section(best(), stores),
        "Similarity": lambda: similarity_section(chosen(), similarity(chosen(), UNBIASED), UNBIASED),
        "Pictures": lambda: pictures_section(store),
        "Neighbours": lambda: neighbours_section(best_store(), settings_of(best())[0]),
        "Statistics": lambda: statistics_section(statistics_table(chosen())),
        "Costs": lambda: cost_section(store),
        "Identity": lambda: identity_section(stores, results),
    }
    sections = [_made(name, make, say) for name, make in makers.items()]
    models = ", ".join(dict.fromkeys(one.header.model for one in stores))
    fits = sum(map(len, results.values()))
    subtitle = f"{models}: {', '.join(one.path for one in stores)}; {fits} fits"
    return render(f"diffssl: {Path(store.path).name}", subtitle, sections)


def read_results_of(stores: Sequence[FeatureStore], folders: Sequence[Path]) -> dict[str, Sequence[Result]]:
    """Lines of each folder, failures left out; no entry for a folder without any.

    Raises:
        NoResults: some are of other features or samples than the stores'.
    """
    found: dict[str, Sequence[Result]] = {}
    for folder in folders:
        lines = Results(folder).read()
        strange = next((line for line in lines if store_of(line, stores) is None), None)
        if strange is not None:
            raise NoResults(
                f"{folder} has results of other features or samples (feature_id {strange['feature_id']}, data_id "
                f"{strange['data_id']}) than {', '.join(store.path for store in stores)}; name their store too, with --store"
            )
        if lines:
            found[str(folder)] = lines
    return found


def _require_features(stores: Sequence[FeatureStore]) -> None:
    for one in stores:
        if not any(one.keys(split) for split in one.splits):
            raise UnknownFeatures(one.path, "the store has no features yet; run diffssl-extract first")


def _best(lines: Sequence[Result], store: FeatureStore) -> Result:
    """The best by held-out accuracy, of equals the first by name."""
    if not lines:
        raise NoResults(f"there are no results; run diffssl-probe --store {store.path}")
    return min(lines, key=lambda line: (-line["val_top1"], line["results"], line["head"], describe_setting(line)))


def _shown(results: Mapping[str, Sequence[Result]]) -> tuple[list[Result], list[str]]:
    """Lines that maps and comparisons are of, with their folders, and what is said about the others."""
    lines: list[Result] = []
    notes = []
    for folder, own in results.items():
        classified = [line for line in own if line.get("task", CLASSIFY) == CLASSIFY]
        if len(classified) < len(own):
            notes.append(
                f"{folder}: {len(own) - len(classified)} fits of labels that are not classes are in the table of fits alone"
            )
        kept, said = of_most_rows(classified)
        notes += [f"{folder}: {note}" for note in said]
        lines += [{**line, "results": folder} for line in kept]
    return lines, notes


def _made(name: str, make: Callable[[], Section], say: Say) -> Section:
    say(name)
    try:
        return make()
    except DiffsslError as error:
        return Section(name, [Words(f"Not shown: {error}", "note")])


def _choice(store: FeatureStore, split: str, most: int) -> tuple[Choice, list[str]]:
    """Of every block the smallest pool that it has at most timesteps, of draw 0; so few timesteps that it is at most so many.

    Returns:
        The choice, and what is said about what was left out.
    """
    timesteps: dict[int, dict[int | str, set[int]]] = {}
    for key in store.keys(split):
        pools = timesteps.setdefault(key.block, {}).setdefault(key.pool, set())
        pools |= set() if key.timestep is None else {key.timestep}
    pool_of = {
        block: min(pools, key=lambda pool: (-len(pools[pool]), isinstance(pool, str), pool))
        for block, pools in timesteps.items()
    }
    steps = sorted(set().union(*(timesteps[block][pool] for block, pool in pool_of.items())))
    count = max(1, most // max(1, len(pool_of)))
    notes = []
    if len(steps) > count:
        shown = evenly(steps, count)
        notes.append(f"{store.path}: timesteps {', '.join(map(str, shown))} of {len(steps)}; diffssl-analyze cka has all")
        steps = shown
    blocks = {block: {pool} for block, pool in pool_of.items()}
    return Choice(blocks=blocks, timesteps=steps or None, draws=[0]), notes
