"""One page about a study: everything that the other commands find, from stores and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..probe import Results
from ..store import DiffsslError, FeatureStore
from ..store.choice import Choice
from .cka import UNBIASED
from .compare import Comparison, compare
from .page import Section, Words, render
from .paired import Setting, paired_settings
from .picture_sections import neighbours_section, pictures_section
from .result_sections import (
    comparison_section,
    complement_section,
    confusion_section,
    curves_section,
    guideline_section,
    maps_section,
)
from .similarity import similarity, statistics_table
from .store_sections import cost_section, identity_section, run_section, similarity_section, statistics_section
from .stored_rows import Selected, select
from .table import NoResults, accuracy_maps, of_most_rows
from .test_set import settings_of

Result = Mapping[str, Any]
Say = Callable[[str], object]


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
    """
    store = stores[0]
    lines = [{**line, "results": folder} for folder, own in results.items() for line in of_most_rows(own)[0]]

    @cache
    def chosen() -> Selected:
        return select(stores, [_smallest_pools(one) for one in stores], None, rows)

    @cache
    def compared() -> Comparison:
        return compare(lines, np.random.default_rng(seed))

    @cache
    def settings() -> Sequence[Setting]:
        return paired_settings(lines)

    def best() -> Result:
        return lines[0] if len(lines) == 1 else settings()[0].lines[0]

    def best_store() -> FeatureStore:
        return next(one for one in stores if one.feature_id == best()["feature_id"])

    makers: dict[str, Callable[[], Section]] = {
        "What was run": lambda: run_section(stores, results, command),
        "Which setting to use": lambda: guideline_section(compared()),
        "Maps": lambda: maps_section(accuracy_maps(lines)),
        "Curves": lambda: curves_section(accuracy_maps(lines)),
        "Comparison": lambda: comparison_section(compared()),
        "Complements": lambda: complement_section(settings(), np.random.default_rng(seed)),
        "Confusions": lambda: confusion_section(best(), best_store()),
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
    """Lines of each folder that has any, failures left out. Raises ``NoResults`` for results of other stores."""
    known = {store.feature_id for store in stores}
    found: dict[str, Sequence[Result]] = {}
    for folder in folders:
        lines = Results(folder).read()
        others = {line["feature_id"] for line in lines} - known
        if others:
            raise NoResults(
                f"{folder} has results of other features ({', '.join(sorted(others))}) than those of "
                f"{', '.join(store.path for store in stores)}; name their store too, with --store"
            )
        if lines:
            found[str(folder)] = lines
    return found


def _made(name: str, make: Callable[[], Section], say: Say) -> Section:
    say(name)
    try:
        return make()
    except DiffsslError as error:
        return Section(name, [Words(f"Not shown: {error}", "note")])


def _smallest_pools(store: FeatureStore) -> Choice:
    """Of every block its smallest stored pool: what all blocks are compared at."""
    smallest: dict[int, int | str] = {}
    for key in store.keys(store.splits[0]):
        sizes = [pool for pool in (smallest.get(key.block), key.pool) if pool is not None]
        smallest[key.block] = min(sizes, key=lambda pool: (isinstance(pool, str), pool))
    return Choice(blocks={block: {pool} for block, pool in smallest.items()})
