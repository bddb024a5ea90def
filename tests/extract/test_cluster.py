"""Many processes on one store: parts of a job array, processes of this machine, a Dask cluster whose workers are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffssl.extract import ExtractError, ExtractSpec, extract
from diffssl.extract.cluster import compute_on_cluster, for_other_folders
from diffssl.extract.job import prepare
from diffssl.extract.spec import parse_part
from diffssl.store import FeatureStore, NotFinite
from diffssl.store.cluster import local_cluster
from diffssl.store.verify import verify
from distributed import Client, LocalCluster, Worker

MakeSpec = Callable[..., ExtractSpec]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
SameValues = Callable[[FeatureStore, FeatureStore], None]

ROW_BLOCKS = 5  # of 72 photographs in row blocks of 16
SECONDS = 180


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2, 0) as client:
        client.wait_for_workers(2, timeout=SECONDS)
        yield client


@pytest.fixture
def alone(make_spec: MakeSpec, run_extract: RunExtract, tmp_path: Path) -> FeatureStore:
    return run_extract(make_spec(timesteps=[10, 90], store=tmp_path / "alone.zarr"))[0]


def nothing(_: object) -> None:
    pass


# Parts


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_parts_make_the_store_of_one_process(
    order: list[int], make_spec: MakeSpec, run_extract: RunExtract, alone: FeatureStore, same_values: SameValues
) -> None:
    spec = make_spec(timesteps=[10, 90])
    for i in order:
        store, _ = run_extract(replace(spec, part=(i, 3)))
    same_values(store, alone)
    assert store.missing(store.keys("all"), "all") == []


def test_a_part_is_the_same_row_blocks_whatever_is_there(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    """Or a part that is run again, when others have gone on, would compute what is theirs."""
    spec = make_spec()
    store, _ = run_extract(replace(spec, part=(1, 2)))
    assert store.missing(store.keys("all"), "all") == [0, 2, 4]
    run_extract(replace(spec, part=(0, 4)))
    store, lines = run_extract(replace(spec, part=(1, 2)))
    assert any(line.endswith("has all 2 units of part 1/2") for line in lines)
    assert store.missing(store.keys("all"), "all") == [2]


def test_a_part_of_nothing_is_fine(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    """A job array with more parts than row blocks."""
    store, _ = run_extract(make_spec(part=(ROW_BLOCKS, 8)))
    assert store.keys("all") == []
    store, _ = run_extract(make_spec(part=(0, 1)))
    assert store.missing(store.keys("all"), "all") == []


def test_parts_with_a_limit_that_is_raised(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    """Where the rows are there already, the part of the first row block notes that more of them are wanted."""
    for limit in (60, 72):
        for i in (1, 0):
            store, _ = run_extract(make_spec(limit=limit, part=(i, 2)))
        assert store.wanted_rows(store.keys("all"), "all") == limit


@pytest.mark.parametrize("text", ["1", "1/", "/2", "a/2", "-1/2", "1/2/3", ""])
def test_a_part_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="a part is I/N"):
        parse_part(text)


@pytest.mark.parametrize("part", [(2, 2), (0, 0), (3, 2)])
def test_a_part_that_there_is_not(part: tuple[int, int], make_spec: MakeSpec) -> None:
    with pytest.raises(ValueError, match="parts are numbered from 0"):
        make_spec(part=part)


def test_an_error_names_the_command_that_completes_all_parts(
    run_main: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One part's command would leave the others' rows out."""
    monkeypatch.chdir(tmp_path)  # there may be a feats.zarr where the tests are run
    command = ["--blocks", "18", "--timesteps", "10", "--limit", "128", "--row-block", "64"]
    assert run_main(*command, "--part", "1/2")[0] == 0
    store = FeatureStore.open("feats.zarr")
    (key,) = store.keys("all")
    written = store.journal.command("all", key)
    assert written is not None
    assert "--part" not in written
    assert "--row-block 64" in written


@pytest.mark.parametrize("options", [["--part", "0/2", "--workers", "2"], ["--workers", "2", "--dask", "tcp://127.0.0.1:1"]])
def test_ways_of_working_exclude_each_other(options: list[str], run_main: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run_main("--blocks", "18", "--timesteps", "10", *options)
    assert code == 2
    assert "exclude each other" in err


# Workers


def test_workers_make_the_store_of_one_process(
    client: Client, make_spec: MakeSpec, alone: FeatureStore, same_values: SameValues
) -> None:
    job = prepare(make_spec(timesteps=[10, 90]), nothing)
    done: list[int] = []
    timings = compute_on_cluster(job, client, done.append, nothing)
    store = FeatureStore.open(job.spec.store)
    same_values(store, alone)
    assert list(verify(store)) == []
    assert sorted(done) == [16, 32, 32, 32, 32]
    assert timings.backbone > 0
    # the second run has nothing to do
    lines: list[str] = []
    extract(job.spec, lines.append, workers=2)
    assert any("nothing to do" in line for line in lines)


def test_extract_with_workers(make_spec: MakeSpec, alone: FeatureStore, same_values: SameValues) -> None:
    lines: list[str] = []
    store = extract(make_spec(timesteps=[10, 90]), lines.append, workers=2)
    same_values(store, alone)
    assert any("forward passes in" in line for line in lines)


def test_a_killed_worker_loses_nothing(
    client: Client, make_spec: MakeSpec, run_extract: RunExtract, same_values: SameValues, tmp_path: Path
) -> None:
    spec = make_spec(timesteps=[10, 50, 90, 150], row_block=8)
    client.wait_for_workers(2, timeout=SECONDS)
    running = [next(iter(client.run(os.getpid).values()))]

    def kill_one(_: int) -> None:
        if running:
            os.kill(running.pop(), signal.SIGKILL)

    compute_on_cluster(prepare(spec, nothing), client, kill_one, nothing)
    assert running == []
    store = FeatureStore.open(spec.store)
    assert list(verify(store)) == []
    assert store.missing(store.keys("all"), "all") == []
    same_values(store, run_extract(replace(spec, store=tmp_path / "alone.zarr"))[0])


def test_an_error_of_a_worker_arrives_as_it_is(
    client: Client, make_spec: MakeSpec, save_model: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def overflow(state: dict[str, torch.Tensor]) -> None:
        state["input_blocks.0.0.weight"].mul_(1e9)

    config = {
        "image_size": 16,
        "num_channels": 32,
        "channel_mult": "1,2",
        "num_res_blocks": 1,
        "attention_resolutions": "8",
        "num_head_channels": 32,
        "resblock_updown": True,
    }
    job = prepare(make_spec(blocks={1: set()}, **save_model(tmp_path / "large", config, overflow)), nothing)
    with pytest.raises(NotFinite, match="float16") as caught:
        compute_on_cluster(job, client, nothing, nothing)
    assert caught.value.key.block == 1
    assert caught.value.sample_id


def test_more_workers_than_row_blocks_are_said(client: Client, make_spec: MakeSpec) -> None:
    lines: list[str] = []
    compute_on_cluster(prepare(make_spec(row_block=128), nothing), client, nothing, lines.append)
    assert lines == ["only 1 row blocks for 2 workers; a new store with a smaller --row-block has more"]


def test_gpus_that_workers_declare_are_asked_for(make_spec: MakeSpec) -> None:
    """A worker without the resource gets no row block, though it is idle."""
    options: dict[str, Any] = {"processes": False, "dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}}
    with LocalCluster(1, **options) as cluster, Client(cluster) as client, ExitStack() as stack:
        worker = client.sync(_worker_without_gpu, cluster.scheduler_address)
        stack.callback(client.sync, worker.close)  # it is not the cluster's, whose loop would be stopped while it closes
        client.wait_for_workers(2, timeout=SECONDS)
        where: set[str] = set()

        def look(_: int) -> None:
            where.update(state.address for task in cluster.scheduler.tasks.values() for state in task.who_has or ())

        compute_on_cluster(prepare(make_spec(), nothing), client, look, nothing)
        assert where == {cluster.workers[0].address}


async def _worker_without_gpu(address: str) -> Worker:
    worker: Worker = await Worker(address, nthreads=4)
    return worker


# A running cluster


def test_paths_mean_the_same_to_workers_elsewhere(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    spec = for_other_folders(make_spec(store="feats.zarr", data=("digits",), labels=Path("labels.csv")))
    assert (spec.store, spec.labels) == (tmp_path / "feats.zarr", tmp_path / "labels.csv")
    assert for_other_folders(make_spec(store="s3://bucket/feats.zarr")).store == "s3://bucket/feats.zarr"
    for data in ("photos", "train=photos", "cub:CUB_200_2011"):
        with pytest.raises(ExtractError, match="full path"):
            for_other_folders(make_spec(data=(data,)))
    for data in ("/photos", "train=/photos", "cub:/CUB_200_2011", "digits"):
        assert for_other_folders(make_spec(data=(data,))).data == (data,)


def test_a_cluster_is_used_by_its_address(client: Client, make_spec: MakeSpec) -> None:
    started = time.monotonic()
    store = extract(make_spec(), nothing, dask=client.scheduler_info()["address"])
    assert store.missing(store.keys("all"), "all") == []
    assert time.monotonic() - started < SECONDS
    assert len(client.scheduler_info()["workers"]) == 2  # it is not ours to close
