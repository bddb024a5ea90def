"""ADMs: the bundled one, OpenAI's published checkpoints, and a user's own. No torch is imported with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store import Block
from .errors import ExtractError, UnknownModel
from .images import GUIDED, Resize, preprocessing
from .model import CHANNELS_LAST, CONTIGUOUS

if TYPE_CHECKING:
    import torch

    from .adm import ADM

BUNDLED = "adm32-cifar10"
CONDITIONS = "none, mean, or a class number"
_WEIGHTS = Path(__file__).parent / "weights"
_PUBLIC = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"

# guided_diffusion.script_util.model_and_diffusion_defaults(), which cannot be imported without torch; a test compares.
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}

# How the network was trained or is run, not what it computes in evaluation mode.
_NOT_IDENTITY = ("dropout", "use_checkpoint", "use_fp16", "use_kl", "predict_xstart", "rescale_learned_sigmas")

_ADM: dict[str, Any] = {
    "attention_resolutions": "32,16,8",
    "diffusion_steps": 1000,
    "learn_sigma": True,
    "noise_schedule": "linear",
    "num_channels": 256,
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_fp16": True,
    "use_scale_shift_norm": True,
}
_LSUN: dict[str, Any] = {**_ADM, "image_size": 256, "num_head_channels": 64, "class_cond": False, "dropout": 0.1}

# name -> (file, flags), as published in the README of openai/guided-diffusion
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "adm64": (
        "64x64_diffusion.pt",
        {
            **_ADM,
            "image_size": 64,
            "class_cond": True,
            "dropout": 0.1,
            "noise_schedule": "cosine",
            "num_channels": 192,
            "num_head_channels": 64,
            "num_res_blocks": 3,
            "use_new_attention_order": True,
        },
    ),
    "adm128": ("128x128_diffusion.pt", {**_ADM, "image_size": 128, "class_cond": True, "num_heads": 4}),
    "adm256": ("256x256_diffusion.pt", {**_ADM, "image_size": 256, "class_cond": True, "num_head_channels": 64}),
    "adm256-uncond": (
        "256x256_diffusion_uncond.pt",
        {**_ADM, "image_size": 256, "class_cond": False, "num_head_channels": 64},
    ),
    "adm512": (
        "512x512_diffusion.pt",
        {**_ADM, "image_size": 512, "class_cond": True, "num_head_channels": 64, "use_fp16": False},
    ),
    "lsun-bedroom": ("lsun_bedroom.pt", _LSUN),
    "lsun-cat": ("lsun_cat.pt", _LSUN),
    "lsun-horse": ("lsun_horse.pt", _LSUN),
    "lsun-horse-nodropout": ("lsun_horse_nodropout.pt", {**_LSUN, "dropout": 0.0}),
}


@dataclass(frozen=True)
class ModelSource:
    """An ADM as a :class:`~diffssl.extract.model.Model`: its configuration and where its weights are.

    Attributes:
        name: for people.
        weights: file of the weights, ``.safetensors`` or a torch ``state_dict``.
        url: where published weights can be downloaded.
        config: arguments of ``guided_diffusion.script_util.create_model_and_diffusion``, all of them.
    """

    name: str
    weights: Path
    config: Mapping[str, Any]
    url: str | None = None

    def sha256(self) -> str:
        """SHA-256 of the weights file."""
        with self.weights.open("rb") as file:
            checksum = sha256()
            while block := file.read(1 << 22):
                checksum.update(block)
        return checksum.hexdigest()

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that decides what features are."""
        return {name: value for name, value in sorted(self.config.items()) if name not in _NOT_IDENTITY}

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return int(self.config["image_size"])

    @property
    def resize(self) -> Resize:
        """guided-diffusion's own."""
        return GUIDED

    @property
    def diffusion_steps(self) -> int:
        """Number of timesteps."""
        return int(self.config["diffusion_steps"])

    @property
    def conditional(self) -> bool:
        """Whether it is class-conditional."""
        return bool(self.config["class_cond"])

    @property
    def memory_formats(self) -> Sequence[str]:
        """The fast blocks, and guided_diffusion's own."""
        return (CHANNELS_LAST, CONTIGUOUS)

    def condition(self, wanted: str | None) -> str:
        """See :func:`check_condition`."""
        return check_condition(self.config, wanted)

    def preprocessing(self) -> dict[str, Any]:
        """guided-diffusion's own."""
        return preprocessing(self.image_size)

    def weights_sha256(self) -> str | None:
        """SHA-256 of the weights file; None while it is not downloaded."""
        return self.sha256() if self.weights.exists() else None

    def fetch(self, echo: Callable[[str], object]) -> None:
        """Download published weights, unless they are there. Raises ``MissingWeights``."""
        from .download import fetch_weights

        fetch_weights(self, echo)

    def measure_blocks(self) -> list[Block]:
        """Kind, channels, size and cumulative GFLOP of every block. Imports torch."""
        from .adm import measure_blocks

        return measure_blocks(self.config)

    def load(self, device: torch.device, dtype: torch.dtype, condition: str, memory_format: str = CONTIGUOUS) -> ADM:
        """The U-Net on its device. Raises ``CheckpointMismatch`` or ``ExtractError``."""
        from .adm import load_adm

        return load_adm(self, device, condition, dtype, memory_format)


def cache_folder() -> Path:
    """Where published weights are kept: ``$DIFFSSL_CACHE``, or ``~/.cache/diffssl``."""
    return Path(os.environ.get("DIFFSSL_CACHE") or Path.home() / ".cache" / "diffssl")


def find_model(name: str | None, checkpoint: Path | None, config_file: Path | None) -> ModelSource:
    """Resolve ``--model``, or ``--checkpoint`` with ``--model-config``; the bundled model without either.

    The weights of a published model may still have to be downloaded.

    Raises:
        UnknownModel: no model of that name.
        ExtractError: the checkpoint or configuration file cannot be used.
    """
    if checkpoint is not None and config_file is not None:
        return ModelSource(checkpoint.name, _existing(checkpoint), _read_config(config_file))
    if name is None or name == BUNDLED:
        card = json.loads((_WEIGHTS / f"{BUNDLED}.json").read_text())
        return ModelSource(BUNDLED, _WEIGHTS / card["file"], DEFAULTS | card["model_config"])
    file = PUBLISHED[name][0] if name in PUBLISHED else ""
    return ModelSource(name, cache_folder() / file, model_config(name), f"{_PUBLIC}/{file}")


def model_config(name: str) -> dict[str, Any]:
    """Full configuration of a published model. Raises ``UnknownModel``."""
    if name not in PUBLISHED:
        raise UnknownModel(f"there is no model {name!r}; known are {', '.join([BUNDLED, *PUBLISHED])}, timm:NAME, diffusers:ID")
    return DEFAULTS | PUBLISHED[name][1]


def check_condition(config: Mapping[str, Any], condition: str | None) -> str:
    """The condition to use. Raises ``ExtractError`` where one is missing, not known, or makes no sense."""
    if not config["class_cond"]:
        if condition not in (None, "none"):
            raise ExtractError(f"the model is not class-conditional, so --condition {condition} means nothing to it")
        return "none"
    if condition is None:
        raise ExtractError(f"the model is class-conditional: choose --condition ({CONDITIONS})")
    if condition not in ("none", "mean") and not (condition.isascii() and condition.isdigit() and int(condition) < 1000):
        raise ExtractError(f"--condition {condition} is not known to this model; it takes {CONDITIONS} from 0 to 999")
    return condition


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ExtractError(f"{path}: there is no such checkpoint file")
    return path


def _read_config(path: Path) -> dict[str, Any]:
    """A JSON object with flags of guided_diffusion, or a model card that holds one as ``model_config``."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExtractError(f"{path}: cannot read the model configuration as JSON ({error})") from error
    config = config.get("model_config", config) if isinstance(config, dict) else {}
    config = config if isinstance(config, dict) else {}
    unknown = sorted(config.keys() - DEFAULTS.keys())
    if unknown or not config:
        raise ExtractError(
            f"{path}: a model configuration is a JSON object of guided_diffusion's flags; unknown: {unknown}; "
            f"known: {sorted(DEFAULTS)}"
        )
    return DEFAULTS | config
