"""Fits as tasks of Dask workers: processes of this machine (``--workers``) or a running cluster (``--dask``).

A task is all fits of one input that are due. The lines come back to the process that asked, which alone writes results.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, as_completed

from ..store.cluster import resources_of
from ..store.location import is_url
from .errors import ProbeError
from .results import result_key
from .spec import ProbeSpec, own_head
from .study import Study, carry_out, fixed_threads, prepare

_studies: dict[str, Study] = {}
# A worker with several threads fits one group at a time: each uses all of its cores.
_turn = threading.Lock()


def carry_out_on_cluster(study: Study, known: Collection[str], client: Client) -> Iterator[dict[str, Any]]:
    """Make the fits that are not known on the workers; yield each result line as it comes back.

    Args:
        study: what to do.
        known: keys of the fits that are there.
        client: of the cluster.

    Raises:
        DiffsslError: a worker met it, or fits kill their workers; what came back before is kept.
    """
    run, spec, resources = uuid.uuid4().hex, for_other_folders(study.spec), resources_of(client)
    due = {
        number: [result_key(fit) for fit in group.fits if result_key(fit) in known]
        for number, group in enumerate(study.groups)
        if any(result_key(fit) not in known for fit in group.fits)
    }
    tasks = [client.submit(fit_group, run, spec, number, own, resources=resources, pure=False) for number, own in due.items()]
    try:
        for future in as_completed(tasks):
            yield from future.result()
    except KilledWorker as error:
        raise ProbeError(
            f"a fit ended several workers in a row ({error}); they are killed where memory runs out, say: see their logs. "
            "What is finished is kept"
        ) from error
    finally:
        client.cancel(tasks)
        client.run(_forget, run, wait=False, on_error="ignore")


def fit_group(run: str, spec: ProbeSpec, number: int, known: Collection[str]) -> list[dict[str, Any]]:
    """On a worker: the result lines of a group's fits that are not known. Raises ``DiffsslError``.

    Args:
        run: names the run; the worker keeps what it resolved until another run comes.
        spec: what to fit.
        number: of the group.
        known: keys of its fits that are there.
    """
    with _turn:
        if run not in _studies:
            _studies.clear()
            _studies[run] = prepare(spec, lambda _: None)
        study = _studies[run]
        with fixed_threads(spec.threads):
            return list(carry_out(replace(study, groups=[study.groups[number]]), set(known)))


def for_other_folders(spec: ProbeSpec) -> ProbeSpec:
    """The same run from any working folder."""
    paths: dict[str, Any] = {
        name: value.absolute() for name in ("labels", "train_ids", "save_heads") if (value := getattr(spec, name)) is not None
    }
    for name in ("store", "test_store"):
        value = getattr(spec, name)
        if value is not None and not is_url(value):
            paths[name] = Path(value).absolute()
    heads = []
    for head in spec.heads:
        own = own_head(head)
        heads.append(head if own is None else f"{own[0].absolute()}:{own[1]}")
    return replace(spec, heads=heads, out=spec.results.absolute(), **paths)


async def _forget(run: str) -> None:
    """On a worker: give the memory of a run back. A coroutine, so that nobody waits for a worker that just died."""
    _studies.pop(run, None)
