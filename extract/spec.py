"""ExtractSpec: everything that one extraction was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .model import MEMORY_FORMATS
from .sources import DIGITS

COMPUTE_DTYPES = ("float32", "tf32", "float16", "bfloat16")
STORE_DTYPES = ("float16", "float32")
THUMBNAIL_SIDES = (8, 256)


@dataclass(frozen=True)
class ExtractSpec:
    """What to extract, from which images, with which backbone, into which store.

    ``None`` means: as the store has it if there is one, else a default that the run announces.

    Attributes:
        blocks: block number -> pools of its own, empty for ``pools``; none to add thumbnails alone to a store.
        timesteps: 0-based diffusion timesteps; none for an encoder without timesteps.
        pools: sides of pooled maps, ``"full"``, or ``"cls"`` for a class token.
        data: sources of images, see :func:`diffssl.extract.sources.load_data`.
        labels: CSV of labels for a flat folder.
        only: files of ids, ``FILE`` or ``split=FILE``, see :func:`diffssl.extract.subsets.restrict`; empty for all images.
        relist: list the images again, even if a listing of them was kept.
        model: name of a bundled or published model, ``timm:NAME`` or ``diffusers:ID``; the bundled one by default.
        checkpoint, model_config: files of a user's own ADM instead, both or neither; a checkpoint alone with ``timm:NAME``.
        backbone: ``FILE.py:FUNCTION`` of a user's own backbone instead.
        condition: for class-conditional models.
        store: path or URL of the store.
        seed: of the noise; 0 by default.
        noise: ``"gaussian"`` (default) or ``"none"`` for clean images.
        draws: number of noise draws.
        crops: number of crops of the rows to train on: the canonical one, and training crops.
        limit: only the first so many rows of every split.
        batch_size: images of a forward pass.
        device: torch device, or ``"auto"``.
        dtype: compute dtype (``float32``, ``tf32``, ``float16``, ``bfloat16``).
        memory_format: of activations; ``contiguous`` is a U-Net's own forward, ``channels_last`` a faster one.
        store_dtype: dtype on disk (``float16``, ``float32``).
        row_block: rows of a row block; a power of two.
        part: (I, N): compute only every N-th row block from the I-th on.
        sharing: processes that share the work, of which a new store's row blocks take account.
        thumbnails: side of pictures of the images to keep in the store, from 8 to 256 pixels; None for none.
        max_bad: images that may be undecodable before the run fails; 0.1 % of the images, at least 1, by default.
        command: the command line, kept in commits so that errors can name it.
    """

    blocks: Mapping[int, set[int | str]]
    timesteps: Sequence[int] = ()
    pools: Sequence[int | str] = (1,)
    data: Sequence[str] = (DIGITS,)
    labels: Path | None = None
    only: Sequence[str] = ()
    relist: bool = False
    model: str | None = None
    checkpoint: Path | None = None
    model_config: Path | None = None
    backbone: str | None = None
    condition: str | None = None
    store: Path | str = Path("feats.zarr")
    seed: int | None = None
    noise: str | None = None
    draws: int = 1
    crops: int = 1
    limit: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str | None = None
    memory_format: str | None = None
    store_dtype: str | None = None
    row_block: int | None = None
    part: tuple[int, int] = (0, 1)
    sharing: int = 1
    thumbnails: int | None = None
    max_bad: int | None = None
    command: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not (self.blocks or self.thumbnails) or not self.pools or not self.data:
            raise ValueError("at least one block, pool and source of images are needed")
        if not self.blocks and self.timesteps:
            raise ValueError("timesteps are of blocks, and no blocks are given")
        least, most = THUMBNAIL_SIDES
        if self.thumbnails is not None and not least <= self.thumbnails <= most:
            raise ValueError(f"--thumbnails are from {least} to {most} pixels, got {self.thumbnails}")
        if self.model is not None and self.model.startswith("timm:"):
            if self.model_config is not None:
                raise ValueError(f"--model-config is of guided-diffusion, and --model is {self.model}")
        elif (self.checkpoint is None) != (self.model_config is None):
            raise ValueError("--checkpoint and --model-config go together")
        elif self.checkpoint is not None and self.model is not None:
            raise ValueError("--model and --checkpoint exclude each other")
        if self.backbone is not None and (self.model is not None or self.checkpoint is not None):
            raise ValueError("--backbone excludes --model and --checkpoint")
        if self.row_block is not None and (self.row_block < 1 or self.row_block & (self.row_block - 1)):
            raise ValueError(f"--row-block must be a power of two, got {self.row_block}")
        if self.noise == "none" and self.draws > 1:
            raise ValueError(f"clean images have one draw, got --draws {self.draws}")
        if self.noise not in (None, "gaussian", "none"):
            raise ValueError(f"--noise is gaussian or none, got {self.noise}")
        if self.dtype not in (None, *COMPUTE_DTYPES):
            raise ValueError(f"--dtype is float32, tf32, float16 or bfloat16, got {self.dtype}")
        if self.memory_format not in (None, *MEMORY_FORMATS):
            raise ValueError(f"--memory-format is contiguous or channels_last, got {self.memory_format}")
        if self.store_dtype not in (None, *STORE_DTYPES):
            raise ValueError(f"--store-dtype is float32 or float16, got {self.store_dtype}")
        for name in ("draws", "crops", "limit", "batch_size", "sharing"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"parts are numbered from 0: --part I/N with I below N, got {self.part[0]}/{self.part[1]}")
        if self.max_bad is not None and self.max_bad < 0:
            raise ValueError(f"--max-bad must be at least 0, got {self.max_bad}")


def parse_part(text: str) -> tuple[int, int]:
    """``"2/8"`` -> (2, 8). Raises ``ValueError``."""
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal()):
        raise ValueError(f"a part is I/N, such as 0/8 for the first of eight, got {text!r}")
    return int(number), int(parts)
