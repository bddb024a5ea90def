"""An extraction in processes of its own: killed at any moment, and started several times at once.

``DIFFSSL_KILLS`` sets how often it is killed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import ExtractSpec, extract
from diffssl.store import FeatureStore
from diffssl.store.location import open_storage
from diffssl.store.verify import verify

Start = Callable[..., "subprocess.Popen[str]"]
SameValues = Callable[[FeatureStore, FeatureStore], None]

# The bundled model on bundled digits: eight row blocks, two timesteps, sixteen units.
COMMAND = ["--blocks", "8@1,8@2,18", "--timesteps", "10,90", "--limit", "256", "--row-block", "32"]
UNITS = 16
KILLS = int(os.environ.get("DIFFSSL_KILLS", "5"))
SECONDS = 180  # for one process, on a machine that is busy with other things


def commits(path: Path) -> int:
    folder = path / "journal/all"
    return sum(name.endswith(".json") for name in os.listdir(folder)) if folder.is_dir() else 0  # noqa: PTH208


def finished(process: subprocess.Popen[str], tmp_path: Path, name: str = "run") -> None:
    code = process.wait(SECONDS)
    assert code == 0, (tmp_path / f"{name}.err").read_text()


def check_sound(store: FeatureStore, rows: int) -> None:
    """Complete, and every byte as it was committed."""
    keys = store.keys("all")
    assert keys
    assert store.missing(keys, "all", rows) == []
    assert list(verify(store)) == []


def kill_somewhere(process: subprocess.Popen[str], store: Path, rng: random.Random, unit: float) -> bool:
    """SIGKILL at a random moment: in one of five while it starts, else between two units; False if it was faster."""
    before = commits(store)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 4))
    else:
        wanted = min(before + rng.randint(0, 3), UNITS - 1)
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and (commits(store) < wanted or not (store / "zarr.json").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 1.5 * unit))
    process.kill()
    return process.wait(SECONDS) == -signal.SIGKILL


def test_a_store_survives_being_killed(start: Start, tmp_path: Path, same_values: SameValues) -> None:
    """Restarted with the same command each time, it becomes the store of an uninterrupted run, value for value."""
    finished(start(*COMMAND, "--store", "whole.zarr", name="whole"), tmp_path, "whole")
    whole = FeatureStore.open(tmp_path / "whole.zarr")
    check_sound(whole, 256)
    assert commits(tmp_path / "whole.zarr") == UNITS
    times = sorted(path.stat().st_mtime for path in (tmp_path / "whole.zarr/journal/all").iterdir())
    unit = (times[-1] - times[0]) / (UNITS - 1)

    rng = random.Random(20230717)
    killed, number, left_in_the_middle = 0, 0, 0
    path = tmp_path / "killed0.zarr"
    while killed < KILLS:
        if kill_somewhere(start(*COMMAND, "--store", path.name), path, rng, unit):
            killed += 1
            left_in_the_middle += 0 < commits(path) < UNITS
            if (path / "zarr.json").exists() and commits(path):
                assert list(verify(FeatureStore.open(path))) == []
        else:  # it had finished before: the next kills are for a new one
            check_sound(FeatureStore.open(path), 256)
            same_values(FeatureStore.open(path), whole)
            number += 1
            path = tmp_path / f"killed{number}.zarr"
    assert left_in_the_middle >= 1
    finished(start(*COMMAND, "--store", path.name), tmp_path)
    store = FeatureStore.open(path)
    check_sound(store, 256)
    same_values(store, whole)
    assert store.header == whole.header
    assert commits(path) == UNITS
    process = start(*COMMAND, "--store", path.name, name="again")
    finished(process, tmp_path, "again")
    assert "nothing to do" in (tmp_path / "again.out").read_text()


def test_thumbnails_survive_being_killed(start: Start, tmp_path: Path, alone: FeatureStore) -> None:
    """SIGKILL between any two of 57 commits; nothing that is committed is lost, and the end is that of one run."""
    path = tmp_path / "feats.zarr"
    shutil.copytree(alone.path, path)
    features = commits(path)
    rng = random.Random(20231130)
    killed = 0
    while killed < KILLS and commits(path) < features + 50:
        before = commits(path)
        process = start("--thumbnails", "16", "--store", path.name)
        deadline = time.monotonic() + SECONDS
        while commits(path) < before + rng.randint(1, 8) and process.poll() is None:
            assert time.monotonic() < deadline
        process.kill()
        killed += process.wait(SECONDS) == -signal.SIGKILL
        assert commits(path) > before
        assert list(verify(FeatureStore.open(path))) == []
    assert killed >= 1
    finished(start("--thumbnails", "16", "--store", path.name), tmp_path)
    assert commits(path) == features + 57
    spec = ExtractSpec({8: set()}, [90], limit=64, row_block=32, store=tmp_path / "whole.zarr", device="cpu")
    extract(spec, lambda _: None)
    whole = extract(replace(spec, blocks={}, timesteps=(), limit=None, thumbnails=16), lambda _: None)
    store = FeatureStore.open(path)
    assert list(verify(store)) == []
    np.testing.assert_array_equal(store.thumbnails("all"), whole.thumbnails("all"))


def test_parts_survive_being_killed(start: Start, tmp_path: Path, same_values: SameValues) -> None:
    """Four parts at once, any of them killed at random moments and started again: the store of one process."""
    rng = random.Random(20231129)
    command = ["--blocks", "8@1,18", "--timesteps", "10,90", "--limit", "256", "--row-block", "32"]
    running = {part: start(*command, "--store", "parts.zarr", "--part", f"{part}/4", name=f"part{part}") for part in range(4)}
    killed = 0
    for kill in range(KILLS):
        time.sleep(rng.uniform(0.5, 4))
        part = rng.choice(sorted(running))
        running[part].kill()
        killed += running[part].wait(SECONDS) == -signal.SIGKILL
        running[part] = start(*command, "--store", "parts.zarr", "--part", f"{part}/4", name=f"part{part}-{kill}")
    assert killed >= 1
    for process in running.values():
        assert process.wait(SECONDS) == 0
    store = FeatureStore.open(tmp_path / "parts.zarr")
    check_sound(store, 256)
    blocks: dict[int, set[int | str]] = {8: {1}, 18: set()}
    spec = ExtractSpec(blocks, [10, 90], limit=256, row_block=32, store=tmp_path / "alone.zarr", device="cpu")
    same_values(store, extract(spec, lambda _: None))


RACE = ["--blocks", "8", "--timesteps", "90", "--limit", "64", "--row-block", "32"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store of one process that nobody disturbs."""
    path = tmp_path_factory.mktemp("alone") / "feats.zarr"
    return extract(ExtractSpec({8: set()}, [90], limit=64, row_block=32, store=path, device="cpu"), lambda _: None)


def test_a_store_in_a_bucket_survives_being_killed(
    start: Start, tmp_path: Path, same_values: SameValues, alone: FeatureStore, s3: Any
) -> None:
    """Killed by SIGKILL after its first commit, over a real S3 API; the store is that of a local run, value for value."""
    url = f"{s3.bucket()}/killed.zarr"
    process = start(*RACE, "--store", url, name="first")
    deadline = time.monotonic() + SECONDS
    while not open_storage(url).names("journal/all"):
        assert time.monotonic() < deadline
        assert process.poll() is None, (tmp_path / "first.err").read_text()
        time.sleep(0.01)
    process.kill()
    process.wait(SECONDS)
    finished(start(*RACE, "--store", url, name="second"), tmp_path, "second")
    store = FeatureStore.open(url)
    check_sound(store, 64)
    same_values(store, alone)
    finished(start(*RACE, "--store", url, name="third"), tmp_path, "third")
    assert "nothing to do" in (tmp_path / "third.out").read_text()


def let_go(gate: Path, tmp_path: Path, names: list[str]) -> None:
    """Open the gate when everybody stands before it."""
    deadline = time.monotonic() + SECONDS
    while not all((tmp_path / f"{name}.ready").exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.touch()


@pytest.mark.parametrize("at_once", ["started at once", "let go at once"])
def test_four_processes_make_one_store(
    start: Start, tmp_path: Path, same_values: SameValues, alone: FeatureStore, at_once: str
) -> None:
    """The same command on an empty path at the same instant, before or after each has imported everything."""
    gate = tmp_path / "gate" if at_once.startswith("let") else None
    names = [f"run{i}" for i in range(4)]
    processes = {name: start(*RACE, "--store", "feats.zarr", name=name, gate=gate) for name in names}
    if gate is not None:
        let_go(gate, tmp_path, names)
    for name, process in processes.items():
        finished(process, tmp_path, name)
    store = FeatureStore.open(tmp_path / "feats.zarr")
    check_sound(store, 64)
    assert len(store.ids("all")) == 1797
    same_values(store, alone)
    assert not [path for path in (tmp_path / "feats.zarr/journal").rglob("*") if path.name.startswith("tmp-")]


def test_two_seeds_do_not_make_one_store(start: Start, tmp_path: Path) -> None:
    """One wins; the other is refused with what differs, and has changed nothing."""
    gate = tmp_path / "gate"
    processes = [start(*RACE, "--store", "feats.zarr", "--seed", str(seed), name=f"seed{seed}", gate=gate) for seed in (3, 4)]
    let_go(gate, tmp_path, ["seed3", "seed4"])
    codes = [process.wait(SECONDS) for process in processes]
    assert sorted(codes) == [0, 1]
    winner, loser = (3, 4) if codes[0] == 0 else (4, 3)
    err = (tmp_path / f"seed{loser}.err").read_text()
    assert err.count("Error: ") == 1
    assert "Traceback" not in err
    assert f"noise.seed: store has {winner}, now {loser}" in err
    assert "--store" in err
    store = FeatureStore.open(tmp_path / "feats.zarr")
    check_sound(store, 64)
    assert store.identity.fields["noise"]["seed"] == winner
    for commit in (tmp_path / "feats.zarr/journal/all").iterdir():
        assert f"--seed {winner}" in commit.read_text()
