"""Row blocks as tasks of Dask workers: processes of this machine (``--workers``) or a running cluster (``--dask``).

Dask schedules and starts tasks anew where a worker died; it never touches an array. A task does what a process with
``--part`` does for one row block: it opens the store, computes what is missing and commits. So nothing depends on who
computed what, and two workers on one row block do no harm.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, KilledWorker, as_completed

from ..store import FeatureStore
from ..store.cluster import resources_of
from ..store.location import is_url
from .errors import ExtractError
from .job import Echo, Job, begin, compute, prepare
from .listing import named_split
from .sources import is_absolute
from .spec import ExtractSpec
from .timings import Timings

if TYPE_CHECKING:
    from .backbone import Backbone


@dataclass(frozen=True)
class _Session:
    """What a worker keeps from one row block to the next, so that the model is loaded once."""

    job: Job
    store: FeatureStore
    backbone: Backbone | None


_sessions: dict[str, _Session] = {}
# A worker with several threads still has one model: its row blocks take turns.
_turn = threading.Lock()


def for_other_folders(spec: ExtractSpec) -> ExtractSpec:
    """The same extraction from any working folder. Raises ``ExtractError`` for relative sources of images."""
    relative = [source for source in spec.data if not is_absolute(source)]
    if relative:
        raise ExtractError(f"--dask: workers run in folders of their own; give --data as a full path, not {relative[0]!r}")
    paths: dict[str, Any] = {
        name: value.absolute() for name in ("labels", "checkpoint", "model_config") if (value := getattr(spec, name))
    }
    named = [named_split(text) for text in spec.only]
    only = [str(Path(file).absolute()) if split is None else f"{split}={Path(file).absolute()}" for split, file in named]
    if spec.backbone is not None:
        file, colon, function = spec.backbone.rpartition(":")
        paths["backbone"] = f"{Path(file).absolute()}{colon}{function}"
    return replace(spec, only=only, store=spec.store if is_url(spec.store) else Path(spec.store).absolute(), **paths)


def compute_on_cluster(job: Job, client: Client, progress: Callable[[int], object], echo: Echo) -> Timings:
    """Compute a job's row blocks on the workers; return where their time went, summed.

    Args:
        job: what to do.
        client: of the cluster.
        progress: called with the steps of every row block that is done.
        echo: called with each line for people.

    Raises:
        DiffsslError: a worker met it, or row blocks kill their workers; what others committed is kept.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if len(job.plan.work) < len(workers):
        echo(
            f"only {len(job.plan.work)} row blocks for {len(workers)} workers; a new store with a smaller --row-block has more"
        )
    resources = resources_of(client)
    run, spec = uuid.uuid4().hex, job.spec
    items = {
        client.submit(
            extract_row_block, run, spec, item.split, item.row_block, item.crop, resources=resources, pure=False
        ): item
        for item in job.plan.work
    }
    total = Timings()
    try:
        for future in as_completed(items):
            total += future.result()
            progress(items[future].steps)
    except KilledWorker as error:
        raise ExtractError(
            f"a row block ended several workers in a row ({error}); they are killed where memory runs out, say: "
            "see their logs. What is committed is kept"
        ) from error
    finally:
        client.cancel(list(items))
        client.run(_forget, run, wait=False, on_error="ignore")
    return total


def extract_row_block(run: str, spec: ExtractSpec, split: str, row_block: int, crop: int) -> Timings:
    """On a worker: compute what is missing of a row block, and commit it. Raises ``DiffsslError``.

    Args:
        run: names the run; the worker keeps its model, store and list of images until another run comes.
        spec: what to extract.
        split: name of the split.
        row_block: number of the row block.
        crop: number of the crop.
    """
    with _turn:
        if run not in _sessions:
            _sessions.clear()
            _sessions[run] = _Session(*begin(prepare(spec, lambda _: None)))
        session = _sessions[run]
        plan = session.job.plan
        work = [item for item in plan.work if (item.split, item.row_block, item.crop) == (split, row_block, crop)]
        job = replace(session.job, plan=replace(plan, work=work))
        return compute(job, session.store, session.backbone, lambda _: None)


async def _forget(run: str) -> None:
    """On a worker: give the memory of a run back. A coroutine, so that nobody waits for a worker that just died."""
    _sessions.pop(run, None)
