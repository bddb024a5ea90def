"""Ranks: shares and sums, and real processes that torchrun starts, over Gloo on this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.probe import ProbeError, ProbeSpec
from diffssl.probe.ranks import ALONE, Ranks, joined, under_torchrun
from diffssl.probe.saved import load_heads
from diffssl.probe.study import probe
from diffssl.probe.train import copy_losses
from diffssl.store import FeatureKey, FeatureStore
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

MakeStore = Callable[..., FeatureStore]
Launch = Callable[..., subprocess.CompletedProcess[str]]

SECONDS = 240
STEPS = 30
FAILING = """
import os
from torch import nn
class Failing(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer, self.calls = nn.Linear(inputs, outputs), 0
    def forward(self, maps):
        self.calls += 1
        if self.calls == 3 and os.environ["RANK"] == "1":
            raise MemoryError("no memory is left on rank 1")
        return self.layer(maps[0].flatten(1))
def make(shapes, outputs):
    return Failing(shapes[0][0] * shapes[0][1] ** 2, outputs)
"""

TALKING = """
import torch
from torch import nn
from diffssl.probe import ProbeError
from diffssl.probe.ranks import joined
with joined("auto" if not torch.cuda.is_available() else "cpu") as ranks:
    rank = ranks.rank
    head = nn.Linear(2, 1)
    head.unused = nn.Parameter(torch.full((3,), float(rank)))
    nn.init.constant_(head.weight, 5.0 + rank)
    ranks.start(head, 2)
    assert head.weight.tolist() == [[5.0, 5.0]] and head.unused.tolist() == [0.0] * 3
    head(torch.tensor([[1.0, 2.0]]) * (1 + 9 * rank)).sum().backward()
    ranks.add_gradients(head)
    assert head.weight.grad.tolist() == [[11.0, 22.0]] and head.bias.grad.tolist() == [2.0]
    assert head.unused.grad.tolist() == [0.0] * 3
    own = torch.tensor([rank + 1.0, float("nan")])
    assert ranks.agreed(own)[0] == 1 and own[0] == rank + 1
    assert ranks.known_to_first(["a", "b"], {"a"} if rank == 0 else {"b"}) == {"a"}
    try:
        ranks.known_to_first(["a", "b", "c"] if rank == 0 else ["a", "b"], {})
    except ProbeError as error:
        assert "rank 1 sees other rows" in str(error) and rank == 1
        ranks.agreed(torch.zeros(3, dtype=torch.bool))  # what rank 0 says next
    else:
        assert rank == 0
"""


@pytest.fixture
def store(make_maps: MakeStore) -> FeatureStore:
    return make_maps([FeatureKey(1, 10, 4)])


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A function that runs a program, or diffssl-probe with options, as two processes."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
        if arguments[0].startswith("--"):
            command[-len(arguments) :] = ["-m", "diffssl.probe.cli", *arguments, "--device", "cpu", "--threads", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]


# One process


@given(st.integers(0, 1000), st.integers(1, 64))
def test_shares_are_the_batch(rows: int, world: int) -> None:
    shares = [np.arange(rows)[Ranks(rank, world).share(rows)] for rank in range(world)]
    assert np.concatenate(shares).tolist() == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("task", ["classify", "multilabel", "regress"])
def test_losses_of_shares_add_up_to_that_of_the_batch(task: str) -> None:
    """Also where a share knows nothing."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 11, 4, generator=generator)
    targets = torch.randint(4, (11,), generator=generator)
    if task != "classify":
        targets = torch.randint(2, (11, 4), generator=generator).float()
        targets[:4] = torch.nan
        targets[7, 2] = torch.nan
    shares = [Ranks(rank, 3).share(11) for rank in range(3)]
    total = sum(copy_losses(outputs[:, own], targets[own], task, targets) for own in shares)
    torch.testing.assert_close(total, copy_losses(outputs, targets, task))


def test_a_process_alone_has_everything() -> None:
    head = nn.Linear(2, 2)
    assert ALONE.share(7) == slice(0, 7)
    assert ALONE.known_to_first(["aa", "bb"], {"bb": 1, "cc": 2}) == {"bb"}
    assert ALONE.agreed(values := torch.ones(2)) is values
    ALONE.start(head, 1)
    ALONE.add_gradients(head)
    assert head.weight.grad is None


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False)], ids=["1d", "2d"])
def test_batch_normalisation_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ProbeError, match="batch normalisation wants whole batches"):
        Ranks(0, 2).start(nn.Sequential(nn.Linear(4, 4), norm), 8)


def test_batches_smaller_than_the_ranks_are_refused() -> None:
    with pytest.raises(ProbeError, match="4 ranks cannot share batches of 3 rows"):
        Ranks(0, 4).start(nn.Linear(4, 4), 3)


def test_heads_without_gradients_are_refused(store: FeatureStore) -> None:
    with pytest.raises(ProbeError, match=r"logreg, knn: for one process each; leave out torchrun"):
        probe(ProbeSpec(store.path, ["attention", "logreg", "knn"]), lambda _: None, ranks=Ranks(1, 2))


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:1", "each process takes the GPU of its number"), ("cuda", r"2 processes on this machine, which has \d+ GPUs")],
)
def test_a_device_that_ranks_cannot_have(monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    numbers = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": str(torch.cuda.device_count()), "LOCAL_WORLD_SIZE": "2"}
    for name, value in {"TORCHELASTIC_RUN_ID": "x", **numbers}.items():
        monkeypatch.setenv(name, value)
    assert under_torchrun()
    with pytest.raises(ProbeError, match=message), joined(device):
        pass


# Two processes


def test_what_two_ranks_tell_each_other(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "talking.py").write_text(TALKING)
    done = launch("talking.py")
    assert done.returncode == 0, done.stderr


def test_two_ranks_make_the_fits_of_one_process(store: FeatureStore, launch: Launch, tmp_path: Path) -> None:
    """Same keys, same choices, the same weights but for the order of sums; written once, and what is there is not made."""

    def alone(*heads: str, **more: Any) -> list[dict[str, Any]]:
        options: dict[str, Any] = {"learning_rates": [0.001, 0.01], "width": 16, "depth": 1, "steps": STEPS, "batch_size": 33}
        options |= more
        named = {name: value for name, value in options.items() if "attention" in heads or name not in ("width", "depth")}
        return probe(ProbeSpec(store.path, heads, device="cpu", threads=1, **named), lambda _: None)

    (there,) = alone("linear", out=tmp_path / "both")
    expected = {one["key"]: one for one in alone("attention", "cnn", "mlp", save_heads=tmp_path / "own")}
    options = ["--store", "feats.zarr", "--head", "attention,cnn,mlp,linear", "--learning-rates", "0.001,0.01"]
    options += ["--width", "16", "--depth", "1", "--steps", str(STEPS), "--batch-size", "33"]  # shares of 16 and 17 rows
    done = launch(*options, "--out", "both", "--save-head", "kept")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 of 4 fits are there already") == 1
    assert done.stdout.count("3 fits to make on 1 inputs of up to 240 training rows, each by 2 processes") == 1
    found = {one["key"]: one for one in lines(tmp_path / "both")}
    assert len(lines(tmp_path / "both")) == 4
    assert found.pop(there["key"])["versions"]["ranks"] == "1"
    assert found.keys() == expected.keys()
    for key, one in found.items():
        same = expected[key]
        assert (one["versions"]["ranks"], same["versions"]["ranks"]) == ("2", "1")
        assert (one["learning_rate"], one.get("steps_used")) == (same["learning_rate"], same.get("steps_used"))
        assert one["test_top1"] == pytest.approx(same["test_top1"], abs=0.02)
        assert one["test_nll"] == pytest.approx(same["test_nll"], rel=1e-3)
        assert one["val_top1_grid"] == pytest.approx(same["val_top1_grid"], abs=0.05)
    kept = {head.path.name: head.weights for head in load_heads(tmp_path / "kept")}
    assert len(kept) == 3
    for head in load_heads(tmp_path / "own"):
        for name, value in head.weights.items():
            np.testing.assert_allclose(kept[head.path.name][name], value, rtol=2e-2, atol=2e-3)


def test_a_rank_that_fails_ends_all(store: FeatureStore, launch: Launch, tmp_path: Path) -> None:  # noqa: ARG001
    (tmp_path / "own.py").write_text(FAILING)
    done = launch("--store", "feats.zarr", "--head", "own.py:make", "--steps", str(STEPS))
    assert done.returncode != 0
    assert "no memory is left on rank 1" in done.stderr
    assert lines(tmp_path / "feats.results") == []
