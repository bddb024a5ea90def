from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffssl.extract import ExtractSpec, extract
from diffssl.extract.sources import load_data
from diffssl.extract.zoo import DEFAULTS
from diffssl.store import FeatureKey

SCRIPT = Path(__file__).parents[2] / "studies" / "train_backbone.py"
CONFIG = {
    "image_size": 16,
    "num_channels": 32,
    "channel_mult": "1,2",
    "num_res_blocks": 1,
    "attention_resolutions": "8",
    "num_head_channels": 32,
    "resblock_updown": True,
}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_backbone", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_backbone"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def run(script: Any, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[float]]:
    options = replace(script.Training(), steps=20, batch_size=16, learning_rate=2e-3, warmup=3, ema_decay=0.9, seed=seed)
    data = load_data(["digits"]).splits["all"]
    result: tuple[dict[str, torch.Tensor], list[float]] = script.train(
        data, DEFAULTS | CONFIG, options, torch.device("cpu"), lambda _: None
    )
    return result


def test_twenty_steps_lower_the_loss_and_depend_on_the_seed_alone(script: Any) -> None:
    """An untrained ADM predicts zero noise, a loss of 1."""
    before = torch.random.get_rng_state()
    state, losses = run(script)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[0] == pytest.approx(1, abs=0.05)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    again, same = run(script)
    assert same == losses
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert run(script, seed=1)[1] != losses


def test_what_it_saves_can_be_extracted_from(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flags.json").write_text(json.dumps(CONFIG))
    out = tmp_path / "mine"
    command = ["--data", "digits", "--out", str(out), "--model-config", str(tmp_path / "flags.json"), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["train_backbone.py", *command, "--batch-size", "4", "--device", "cpu"])
    script.main()
    assert "mean of the last 2 steps" in capsys.readouterr().out
    state = safetensors.torch.load_file(tmp_path / "mine.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
    spec = ExtractSpec(
        blocks={3: set()},
        timesteps=[90],
        checkpoint=tmp_path / "mine.safetensors",
        model_config=tmp_path / "mine.json",
        store=tmp_path / "feats.zarr",
        limit=16,
        device="cpu",
    )
    store = extract(spec, lambda _: None)
    assert np.isfinite(store.read(FeatureKey(3, 90, 1), "all")).all()


@pytest.mark.parametrize(("step", "rate"), [(0, 1 / 200), (199, 1.0), (200, 1.0), (2216, 0.5), (4232, 0.0)])
def test_schedule(script: Any, step: int, rate: float) -> None:
    rated: Callable[[int, Any], float] = script._rate
    assert rated(step, script.Training()) == pytest.approx(rate, abs=1e-3)
