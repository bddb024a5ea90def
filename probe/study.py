"""A probing run: every head on every selected input, results as they come, a ranked table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from ..store import FeatureStore
from ..store.progress import progress_bar
from .data import Moments, ProbeData
from .errors import FitsFailed, ProbeError
from .fit import Fit, Material, Request, fit_torch_heads
from .fit_numpy import FITTERS
from .inputs import FitInput, input_fields, make_inputs, read_keys, select_keys
from .own import load_maker
from .predictions import test_rows_digest, write_probabilities
from .protocol import Protocol, make_protocol, size, used_splits
from .ranks import ALONE, Ranks
from .records import failure, fit_seed, make_record, specifications, stream_seed
from .results import Results, result_key
from .saved import save_head
from .spec import NUMPY_HEADS, VECTOR_HEADS, ProbeSpec, own_head
from .subsets import Subset
from .table import ranking
from .targets import Targets, read_targets, store_targets
from .train import pick_device
from .transfer import Tested, same_store, tested_elsewhere

Echo = Callable[[str], object]


@dataclass(frozen=True)
class Group:
    """Fits of one input on one subset of the training rows.

    Attributes:
        input: what they read.
        protocol: which rows.
        fits: specification of each.
    """

    input: FitInput
    protocol: Protocol
    fits: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """A spec resolved against its store.

    Attributes:
        spec: what was asked for.
        store: where the features are.
        targets: what is predicted.
        tested: where the test rows are.
        groups: of all fits, those of one input one after the other.
        test_rows: digest of the test rows, which are the same for all fits.
    """

    spec: ProbeSpec
    store: FeatureStore
    targets: Targets
    tested: Tested
    groups: Sequence[Group]
    test_rows: str


def probe(
    spec: ProbeSpec, echo: Echo = print, *, workers: int | None = None, dask: str | None = None, ranks: Ranks = ALONE
) -> list[dict[str, Any]]:
    """Fit every head on every selected input, skipping what the results have, and print a ranked table.

    Args:
        spec: what to fit.
        echo: called with each line for people.
        workers: so many processes on this machine, one a GPU where there are GPUs; None for this process alone.
        dask: address of a running Dask cluster that fits instead.
        ranks: the processes that call this together, to train each head in shares.

    Returns:
        The results of all selected fits, new and old; none on ranks but the first.

    Raises:
        DiffsslError: the store cannot be read, or there is nothing to fit. Results written until then are kept.
    """
    return probe_stores([spec], echo, workers=workers, dask=dask, ranks=ranks)


def _probe(
    spec: ProbeSpec, echo: Echo, workers: int | None, dask: str | None, ranks: Ranks
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of all selected fits, made as far as they are not there; and the failures."""
    if ranks.device is not None:
        spec = replace(spec, device=str(ranks.device))
    pick_device(spec.device)  # a wrong one is told before anything is read
    if spec.threads is None and (workers is not None or not ranks.alone):
        spec = replace(spec, threads=max(1, (os.cpu_count() or 1) // (workers or ranks.local)))
    study = prepare(spec, echo)
    results = Results(spec.results)
    known = {result["key"]: result for result in results.read()}
    wanted = [result_key(fit) for group in study.groups for fit in group.fits]
    there = ranks.known_to_first(wanted, known)
    if not ranks.first:
        with fixed_threads(spec.threads):
            return list(carry_out(study, there, ranks)), []
    left = sum(key not in there for key in wanted)
    if left < len(wanted):
        echo(f"{len(wanted) - left} of {len(wanted)} fits are there already")
    if left:
        rows = max(size(group.protocol.refit) for group in study.groups)
        together = "" if ranks.alone else f", each by {ranks.world} processes"
        echo(f"{left} fits to make on {len(study.groups)} inputs of up to {rows} training rows{together}")
    with progress_bar(left, " fits", "probe") as bar, fixed_threads(spec.threads):
        failed = []
        for result in _carry_out_anywhere(study, there, workers, dask, ranks):
            results.append(result)
            if "error" in result:
                failed.append(result)
            else:
                known[result["key"]] = result
            bar.update(1)
    return [known[key] for key in wanted if key in known], failed


def _carry_out_anywhere(
    study: Study, known: Collection[str], workers: int | None, dask: str | None, ranks: Ranks
) -> Iterator[dict[str, Any]]:
    """Make the fits that are not known in this process, in others of this machine, or on a cluster."""
    if workers is None and dask is None:
        yield from carry_out(study, known, ranks)
        return
    from ..store.cluster import connect, local_cluster
    from .cluster import carry_out_on_cluster

    gpus = torch.cuda.device_count() if study.spec.device == "auto" and torch.cuda.is_available() else 0
    with local_cluster(workers, gpus) if workers else connect(str(dask)) as client:
        yield from carry_out_on_cluster(study, known, client)


def probe_stores(
    specs: Sequence[ProbeSpec],
    echo: Echo = print,
    *,
    workers: int | None = None,
    dask: str | None = None,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]]:
    """Carry out several specs in turn, and print one table of all; how, and by whom, as :func:`probe`.

    Returns:
        The results of all, each with its ``store`` if there are several; none on ranks but the first, which alone prints.

    Raises:
        FitsFailed: some could not be made. The table of the others is printed before.
        DiffsslError: as :func:`probe`.
    """
    single = dict.fromkeys(head for spec in specs for head in spec.heads if head in NUMPY_HEADS)
    if single and not ranks.alone:
        raise ProbeError(f"{', '.join(single)}: for one process each; leave out torchrun, or use --workers for many fits")
    found: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    several = len({str(spec.store) for spec in specs}) > 1
    for spec in specs:
        made, not_made = _probe(spec, echo if ranks.first else _silent, workers, dask, ranks)
        found += [{**result, "store": str(spec.store)} for result in made] if several else made
        failed += not_made
    found = list({(str(result.get("store")), result["key"]): result for result in found}.values())  # runs may overlap
    for line in ranking(found) if ranks.first else ():
        echo(line)
    if failed:
        first = failed[0]
        raise FitsFailed(
            f"{len(failed)} of {len(found) + len(failed)} fits failed, such as {first['head']} on {first['setting']}: "
            f"{first['error']}"
        )
    return found


def prepare(spec: ProbeSpec, echo: Echo = print) -> Study:
    """Compare a spec with its store, and say what will be used. Raises ``DiffsslError``."""
    store = FeatureStore.open(spec.store)
    keys = select_keys(store, spec)
    splits = used_splits(store)
    targets = store_targets(store, splits)
    if spec.labels is not None:
        targets = read_targets(spec.labels, spec.task, store, splits)
    by_input: dict[FitInput, list[str]] = {}
    for head in spec.heads:
        for one in make_inputs(store, spec, head, keys):
            by_input.setdefault(one, []).append(head)
    tested = same_store(store, targets)
    if spec.test_store is not None:
        tested = tested_elsewhere(spec.test_store, store, targets, spec.labels, list(by_input), spec.limit)
    subsets = _subsets(spec)
    read = read_keys(list(by_input), splits)
    ids = cache(store.ids)  # for all subsets, and given back with this function
    protocols = [tested.scored(make_protocol(store, read, targets, spec.limit, spec.refit, one, ids)) for one in subsets]
    first, step = spec.part
    groups = [
        Group(one, protocol, specifications(store, spec, targets, protocol, one, subset, heads, tested.store))
        for one, heads in list(by_input.items())[first::step]
        for subset, protocol in zip(subsets, protocols, strict=True)
    ]
    echo(f"store {spec.store}: {len(keys)} settings, heads {', '.join(spec.heads)}, results in {spec.results}")
    for note in dict.fromkeys(note for own in (targets.notes, *(protocol.notes for protocol in protocols)) for note in own):
        echo(note)
    fixed = [head for head in spec.heads if head in NUMPY_HEADS]
    if spec.seeds > 1 and fixed:
        echo(f"{', '.join(fixed)}: no randomness, fitted once")
    if spec.save_heads is not None and "knn" in spec.heads:
        echo("knn has no weights: --save-head keeps nothing of it")
    if spec.preset.warning:
        echo(f"protocol {spec.protocol}: {spec.preset.warning}")
    return Study(spec, store, targets, tested, groups, test_rows_digest(*tested.ids_and_labels(protocols[0])))


def carry_out(study: Study, known: Collection[str], ranks: Ranks = ALONE) -> Iterator[dict[str, Any]]:
    """Make the fits that are not known; yield each result line as soon as it is there, on the first rank alone."""
    data: ProbeData | None = None
    for group in study.groups:
        due = [fit for fit in group.fits if result_key(fit) not in known]
        if not due:
            continue
        if data is None or data.keys != list(group.input.keys) or data.copies_by_split != group.input.copies:
            data = ProbeData(study.store, group.input.keys, study.targets, group.input.copies)
        yield from _fit_group(study, group, due, data, ranks)


def _fit_group(
    study: Study, group: Group, due: Sequence[Mapping[str, Any]], data: ProbeData, ranks: Ranks
) -> Iterator[dict[str, Any]]:
    spec, protocol = study.spec, group.protocol
    test = data if study.tested.store is study.store else study.tested.data(group.input)
    moments = data.moments(protocol.moments) if spec.preset.standardise else Moments.none(data.dimension)
    material = Material(data, test, moments, protocol, group.input.timesteps, spec.refit)
    about = input_fields(study.store, group.input)
    for together in _passes(due):
        started = time.perf_counter()
        try:
            made = _fit(study, material, together, ranks)
        except ProbeError as error:  # of these fits, on all ranks alike; what is wrong with the store ends the run
            yield from ({**failure(fit), "error": str(error)} for fit in together if ranks.first)
            continue
        if not ranks.first:
            continue
        for fit, fitted in zip(together, made, strict=True):
            result = make_record(fit, group.input, fitted, protocol, study.targets, study.test_rows) | about
            result["versions"]["ranks"] = str(ranks.world)
            result["seconds"] = (time.perf_counter() - started) / len(together)
            if spec.save_probabilities and fitted.probabilities is not None:
                write_probabilities(spec.results, result["key"], fitted.probabilities)
            if spec.save_heads is not None:
                save_head(spec.save_heads, result, fitted, moments, data.shapes, study.targets, study.store)
            yield result


def _passes(due: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Fits that are made in the same passes over the features: the heads on vectors all together, others alone."""
    vectors = [fit for fit in due if fit["head"] in VECTOR_HEADS]
    others = [[fit] for fit in due if fit["head"] not in VECTOR_HEADS]
    return [*([vectors] if vectors else []), *others]


def _fit(study: Study, material: Material, fits: Sequence[Mapping[str, Any]], ranks: Ranks) -> list[Fit]:
    head = fits[0]["head"]
    if head in NUMPY_HEADS:
        return [FITTERS[head](material, fits[0]["options"], pick_device(study.spec.device))]
    own = own_head(head)
    request = partial(Request, own=load_maker(*own) if own else None, report_best_on_test=study.spec.preset.report_best_on_test)
    requests = [request(fit["head"], fit["options"], fit_seed(fit)) for fit in fits]
    return fit_torch_heads(material, requests, pick_device(study.spec.device), stream_seed(fits[0]), ranks)


def _silent(_: str) -> None:
    """Nobody is told."""


def _subsets(spec: ProbeSpec) -> list[Subset | None]:
    """The subsets of the training rows that are asked for; [None] for all rows."""
    found: list[Subset | None] = []
    for repeat in range(spec.repeats):
        found += [Subset(shots=shots, repeat=repeat) for shots in spec.shots]
        found += [Subset(fraction=fraction, repeat=repeat) for fraction in spec.fraction]
    if spec.train_ids is not None:
        found.append(Subset(ids=spec.train_ids))
    return found or [None]


@contextmanager
def fixed_threads(wanted: int | None) -> Iterator[None]:
    """A fixed number of torch's threads: what is summed in another number of parts is another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
