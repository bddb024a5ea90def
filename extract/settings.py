"""What a run uses where the user said nothing: as the store has it, else a default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import Block, Identity, StoreHeader, expand
from ..store.layout import default_row_block, fit_row_block
from ..store.selection import CLASS_TOKEN, format_numbers
from . import noise
from .errors import ExtractError, UnknownBlock
from .model import Model
from .sources import DataSet
from .spec import ExtractSpec

if TYPE_CHECKING:
    import torch


def make_header(spec: ExtractSpec, model: Model, data: DataSet, there: StoreHeader | None) -> StoreHeader:
    """The header that the store must have for this run.

    Args:
        spec: what was asked.
        model: to use.
        data: the images.
        there: header of the store, None if there is none.
    """
    from_store: Mapping[str, Any] = there.identity.fields if there is not None else {}
    timesteps = timesteps_of(spec, model)
    fields = {
        "weights_sha256": model.weights_sha256() or from_store.get("weights_sha256", "not downloaded"),
        "model_config": model.identity(),
        "condition": condition_of(spec, model, there),
        "preprocessing": model.preprocessing(),
        "noise": _noise(spec, from_store.get("noise", {})) if timesteps != [None] else {"scheme": "none"},
        "compute_dtype": compute_dtype(spec, there),
    }
    blocks = there.blocks if there else model.measure_blocks()
    store_dtype = spec.store_dtype or (there.dtype if there else "float16")
    row_block = spec.row_block or (there.row_block if there else _row_block(spec, data, blocks, timesteps, store_dtype))
    batch_size = spec.batch_size or (there.batch_size if there else min(row_block, _batch_size(model.image_size, spec.device)))
    if batch_size > row_block:
        raise ExtractError(f"batches never cross a row block: --batch-size {batch_size} is more than its {row_block} rows")
    new_classes = sorted(set(data.classes) - set(there.classes)) if there else []
    return StoreHeader(
        identity=Identity(fields),
        # A split that lacks some of the store's classes is fine: labels are looked up by name.
        classes=there.classes if there is not None and not new_classes else data.classes,
        row_block=row_block,
        batch_size=batch_size,
        dtype=store_dtype,
        memory_format=_memory_format(spec, model, there),
        blocks=blocks,
        model=model.name,
    )


def condition_of(spec: ExtractSpec, model: Model, there: StoreHeader | None) -> str:
    """The condition asked for, else the store's. Raises ``ExtractError`` where it is missing or makes no sense."""
    stored = there.identity.fields.get("condition") if there is not None and model.conditional else None
    return model.condition(stored if spec.condition is None else spec.condition)


def timesteps_of(spec: ExtractSpec, model: Model) -> list[int | None]:
    """The timesteps asked for; [None] for an encoder without. Without blocks, there are none to ask for.

    Raises:
        ExtractError: a model with timesteps got none, or an encoder got what means nothing to it.
    """
    if model.diffusion_steps is not None:
        if not spec.timesteps and spec.blocks:
            last = model.diffusion_steps - 1
            raise ExtractError(f"--timesteps is needed, such as --timesteps 10,90: {model.name} has 0 to {last}")
        return list(spec.timesteps)
    given = {
        "--timesteps": format_numbers(list(spec.timesteps)),
        "--seed": "" if spec.seed is None else str(spec.seed),
        "--noise": "gaussian" if spec.noise == "gaussian" else "",
        "--draws": str(spec.draws) if spec.draws > 1 else "",
    }
    for option, value in given.items():
        if value:
            raise ExtractError(f"{model.name} is an encoder without timesteps, so {option} {value} means nothing to it")
    return [None]


def check_settings(spec: ExtractSpec, header: StoreHeader, model: Model) -> None:
    """Raise ``UnknownBlock`` for blocks, class tokens or timesteps that the model does not have."""
    numbers = [block.number for block in header.blocks]
    unknown = sorted(set(spec.blocks) - set(numbers))
    if unknown:
        raise UnknownBlock(
            f"{model.name} has no block {format_numbers(unknown)}; its blocks are {format_numbers(numbers)} (--list-blocks)"
        )
    with_token = [block.number for block in header.blocks if block.class_token]
    bare = [number for number, own in spec.blocks.items() if CLASS_TOKEN in (own or spec.pools) and number not in with_token]
    if bare:
        theirs = f"blocks {format_numbers(with_token)} have" if with_token else "none of its blocks has"
        raise UnknownBlock(f"{model.name} has no class token at block {format_numbers(bare)} (pool cls); {theirs} one")
    steps = model.diffusion_steps
    late = [] if steps is None else [timestep for timestep in spec.timesteps if not 0 <= timestep < steps]
    if steps is not None and late:
        raise UnknownBlock(f"{model.name} has no timestep {format_numbers(late)}; its timesteps are 0 to {steps - 1}")


def describe_blocks(blocks: list[Block]) -> list[str]:
    """A table of blocks for ``--list-blocks``."""
    lines = [f"{'block':>5}  {'kind':<14}{'channels':>8}{'size':>6}{'GFLOP':>11}{'share':>8}"]
    return lines + [
        f"{block.number:>5}  {block.kind:<14}{block.channels:>8}{block.size:>6}{block.gflop:>11.4g}{block.share:>8.1%}"
        for block in blocks
    ]


def pick_device(name: str) -> torch.device:
    """The torch device; ``auto`` is the first GPU, or the CPU. Raises ``ExtractError`` where it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ExtractError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def count_gpus(device: str) -> int:
    """GPUs to share out among processes: all of this machine for ``auto``, none for a device by name."""
    import torch

    return torch.cuda.device_count() if device == "auto" and torch.cuda.is_available() else 0


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a compute dtype's name; TF32 is a way of computing with float32."""
    import torch

    dtype: torch.dtype = getattr(torch, "float32" if name == "tf32" else name)
    return dtype


def _memory_format(spec: ExtractSpec, model: Model, there: StoreHeader | None) -> str:
    """The memory format asked for, else the store's, else the model's first. Raises ``ExtractError``."""
    wanted = spec.memory_format or (there.memory_format if there else model.memory_formats[0])
    if wanted not in model.memory_formats:
        raise ExtractError(f"{model.name} computes with --memory-format {' or '.join(model.memory_formats)}, not {wanted}")
    return wanted


def _noise(spec: ExtractSpec, there: Mapping[str, Any]) -> dict[str, Any]:
    kind = spec.noise or ("none" if there.get("scheme") == "none" else "gaussian")
    if kind == "none":
        if spec.seed is not None:
            raise ExtractError(f"clean images have no noise, so --seed {spec.seed} means nothing with --noise none")
        return {"scheme": "none"}
    return {"scheme": noise.SCHEME, "seed": there.get("seed", 0) if spec.seed is None else spec.seed}


def _row_block(spec: ExtractSpec, data: DataSet, blocks: Sequence[Block], timesteps: Sequence[int | None], dtype: str) -> int:
    """Rows of a row block of a new store, by the rows, the workers and the grid."""
    rows = [min(len(split.ids), spec.limit or len(split.ids)) for split in data.splits.values()]
    known = {block.number: own for block in blocks if (own := spec.blocks.get(block.number)) is not None}
    keys = expand(blocks, known, timesteps, spec.pools, range(spec.draws), range(spec.crops))
    layouts = (StoreHeader.row_shape(blocks, key) for key in keys)
    unit_bytes = sum(math.prod(shape) for shape in layouts) * np.dtype(dtype).itemsize // len(timesteps)
    most = max(len(split.ids) for split in data.splits.values())
    workers = max(spec.sharing, spec.part[1])
    return fit_row_block(default_row_block(most, spec.limit), sum(rows), workers, len(keys), unit_bytes)


def compute_dtype(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """The compute dtype asked for, else the store's, else float32 on a CPU and float16 by autocast on a GPU, as the papers."""
    stored = None if there is None else there.identity.fields.get("compute_dtype")
    if spec.dtype == "tf32" and pick_device(spec.device).type != "cuda":
        raise ExtractError("--dtype tf32 is a precision of GPUs; on a CPU, float32 and bfloat16 are fast")
    return spec.dtype or stored or ("float16" if pick_device(spec.device).type == "cuda" else "float32")


def _batch_size(image_size: int, device: str) -> int:
    """Images of a forward pass: on a CPU small enough for its caches, on a GPU large enough to fill it."""
    pixels = (1 << 22) if pick_device(device).type == "cuda" else (1 << 16)
    return max(1, min(256, pixels // image_size**2))
