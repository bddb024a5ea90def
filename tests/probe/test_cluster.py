"""Fits in other processes: the same results as in this one, none lost and none twice, whatever is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffssl.probe import ProbeSpec, Results
from diffssl.probe.cluster import carry_out_on_cluster, for_other_folders
from diffssl.probe.study import fixed_threads, prepare, probe
from diffssl.store import ClusterError, FeatureKey, FeatureStore
from diffssl.store.cluster import local_cluster
from distributed import Client

MakeStore = Callable[..., FeatureStore]

SECONDS = 180
GRID = [FeatureKey(block, timestep, 1) for block in (1, 2) for timestep in (10, 50, 90)]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2, 0) as client:
        client.wait_for_workers(2, timeout=SECONDS)
        yield client


def numbers(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results by key, without what a clock or a machine decides."""
    return {result["key"]: {k: v for k, v in result.items() if k not in ("seconds", "versions")} for result in results}


def small(store: FeatureStore, **options: Any) -> ProbeSpec:
    return ProbeSpec(store.path, ["linear", "logreg"], **{"steps": 20, "threads": 1, "device": "cpu", **options})


def test_results_are_those_of_one_process(make_store: MakeStore, client: Client, tmp_path: Path) -> None:
    store = make_store({"train": 150, "test": 100}, GRID)
    alone = probe(small(store), lambda _: None)
    study = prepare(small(store, out=tmp_path / "other"), lambda _: None)
    known = {alone[0]["key"]}
    found = list(carry_out_on_cluster(study, known, client))
    assert len(found) == len(alone) - 1
    assert numbers(found).items() <= numbers(alone).items()


def test_a_fit_that_fails_on_a_worker_is_a_failure_here(make_store: MakeStore, client: Client) -> None:
    store = make_store({"train": 150, "test": 100}, [FeatureKey(1, 10, 4), FeatureKey(1, 10, 1)])
    spec = ProbeSpec(store.path, ["cnn"], steps=2, width=8, threads=1, device="cpu")
    found = list(carry_out_on_cluster(prepare(spec, lambda _: None), set(), client))
    assert sorted("error" in result for result in found) == [False, True]
    assert next(result["error"] for result in found if "error" in result) == "--head cnn wants maps of 4x4 at least, got 1x1"


def test_paths_mean_the_same_to_workers_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def make(shapes, outputs): ...\n")
    spec = for_other_folders(
        ProbeSpec("feats.zarr", ["own.py:make", "linear"], labels=Path("a.csv"), test_store="s3://b/c.zarr")
    )
    assert spec.heads == [f"{tmp_path}/own.py:make", "linear"]
    assert (spec.store, spec.labels, spec.test_store) == (tmp_path / "feats.zarr", tmp_path / "a.csv", "s3://b/c.zarr")
    assert spec.results == tmp_path / "feats.results"


@pytest.mark.parametrize("wanted", [1, 2])
def test_a_fit_has_a_fixed_number_of_threads(wanted: int) -> None:
    import torch

    before = torch.get_num_threads()
    with fixed_threads(wanted):
        assert torch.get_num_threads() == wanted
    assert torch.get_num_threads() == before


def test_parts_are_all_fits_once(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"train": 150, "test": 100}, GRID)
    whole = numbers(probe(small(store), lambda _: None))
    parts = [probe(small(store, part=(i, 4), out=tmp_path / "parts"), lambda _: None) for i in range(4)]
    assert sum(len(part) for part in parts) == len(whole)
    assert numbers(Results(tmp_path / "parts").read()) == whole


def test_a_hundred_fits_killed_at_random_moments_end_as_a_hundred(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"train": 120, "test": 80}, [FeatureKey(1, timestep, 1) for timestep in range(50)])
    folder = tmp_path / "feats.results"
    command = [sys.executable, "-c", "from diffssl.probe.cli import main; main()", "--store", store.path]
    command += ["--head", "linear,logreg", "--steps", "40", "--device", "cpu", "--threads", "1"]
    rng = random.Random(0)

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))

    for wanted in (15, 40, 70):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS
        while lines() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait(SECONDS) == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["key"] for path in folder.glob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(found) == 100
    assert set(Counter(found).values()) == {1}


def test_a_cluster_that_is_not_there(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffssl.store.cluster._CONNECT_SECONDS", 1)
    store = make_store({"train": 150, "test": 100}, GRID[:1])
    with pytest.raises(ClusterError, match="there is no Dask scheduler at tcp"):
        probe(small(store), lambda _: None, dask="tcp://127.0.0.1:1")
