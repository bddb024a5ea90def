"""A pipeline of diffusers, by its files: what it is, without torch and without diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store import Block
from .errors import ExtractError, MissingLibrary, MissingWeights, UnknownModel
from .images import GUIDED, preprocessing
from .model import CONTIGUOUS
from .tensors import tensors_sha256

if TYPE_CHECKING:
    from types import ModuleType

    import torch

    from .backbone import Backbone

UNETS = ("UNet2DModel", "UNet2DConditionModel")
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")

_DESCRIPTIONS = ("model_index.json", "*config.json", "tokenizer/*")
_WEIGHTS = (".safetensors", ".safetensors.index.json", "-*-of-*.safetensors")
# Every scheduler's own defaults of what decides its alphas.
_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
# What a network may want besides x_t, the timestep, a prompt or a class. SDXL wants the first.
_UNKNOWN_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "time_cond_proj_dim")


class DiffusersModel:
    """A pipeline of diffusers as a :class:`~diffssl.extract.model.Model`.

    Args:
        where: a folder that ``pipeline.save_pretrained`` made, or a name on the Hugging Face hub, whose descriptions (not
            weights) are downloaded.

    Raises:
        UnknownModel: there is no such pipeline, or it is of a kind that is not known here.
        ExtractError: its files are damaged.
    """

    memory_formats = (CONTIGUOUS,)
    resize = GUIDED

    def __init__(self, where: str) -> None:
        self.name = f"diffusers:{where}"
        self._where = where
        self.folder = self._find(_DESCRIPTIONS)
        index = _read(self.folder / "model_index.json")
        self._classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1]}
        self.part = "transformer" if "transformer" in self._classes else "unet"
        self.network = str(self._classes.get(self.part))
        if self.network not in UNETS + TRANSFORMERS:
            known = ", ".join(UNETS + TRANSFORMERS)
            raise UnknownModel(f"{self.name} has a {self.network} as {self.part}; known are {known} (docs/backbones.md)")
        self.config = _read(self.place(self.part) / "config.json")
        self.vae = _read(self.place("vae") / "config.json") if "vae" in self._classes else None
        self.text = _read(self.place("text_encoder") / "config.json") if self.network == "UNet2DConditionModel" else None
        self.scheduler = _read(self.place("scheduler") / "scheduler_config.json")
        self.diffusion_steps = int(self.scheduler.get("num_train_timesteps", 1000))
        self._check()
        self.sample_size = self._side()
        self.image_size = self.sample_size * (1 if self.vae is None else 2 ** (len(self.vae["block_out_channels"]) - 1))

    def place(self, part: str) -> Path:
        """Folder of a part: its own, or that of the pipeline, as in the oldest ones."""
        return self.folder / part if (self.folder / part).is_dir() else self.folder

    @property
    def classes(self) -> int | None:
        """Number of classes of a class-conditional network."""
        name = "num_embeds_ada_norm" if self.network in TRANSFORMERS else "num_class_embeds"
        return None if self.text is not None else self.config.get(name)

    @property
    def conditional(self) -> bool:
        """Whether it takes a prompt or a class."""
        return self.text is not None or self.classes is not None

    def condition(self, wanted: str | None) -> str:
        """A prompt as it is, or a class number; ``none`` is the empty prompt, or the class that stands for no class."""
        if self.text is not None:
            if wanted is None:
                raise ExtractError(f"{self.name} takes prompts: choose --condition TEXT, or none for the empty prompt")
            return wanted or "none"
        if self.classes is None:
            if wanted not in (None, "none"):
                raise ExtractError(f"{self.name} is not conditional, so --condition {wanted} means nothing to it")
            return "none"
        if wanted == "none" and self.network in TRANSFORMERS:
            return "none"
        if wanted is None or not (wanted.isascii() and wanted.isdigit() and int(wanted) < self.classes):
            known = f"{'none or ' if self.network in TRANSFORMERS else ''}a class number from 0 to {self.classes - 1}"
            raise ExtractError(f"{self.name} is class-conditional: --condition is {known}, got {wanted}")
        return str(int(wanted))

    def identity(self) -> dict[str, Any]:
        """Configurations of the parts that features depend on, and what decides the scheduler's alphas."""
        parts = {"network": self.config, "vae": self.vae, "text_encoder": self.text}
        own = {name: None if part is None else _public(part) for name, part in parts.items()}
        schedule = {name: self.scheduler.get(name, default) for name, default in _SCHEDULE.items()}
        return {"library": "diffusers", "class": self.network, **own, "schedule": schedule}

    def preprocessing(self) -> dict[str, Any]:
        """As the papers' evaluation: shorter side resized, centre crop; with a VAE, the mode of its latents."""
        return preprocessing(self.image_size) | ({} if self.vae is None else {"latents": "mode of the VAE, scaled"})

    def weights_sha256(self) -> str | None:
        """:func:`~diffssl.extract.tensors.tensors_sha256` of the parts that features depend on; None while not downloaded."""
        files = {part: self._weights(part) for part in self._parts()}
        return tensors_sha256(files) if all(files.values()) else None

    def fetch(self, echo: Callable[[str], object]) -> None:
        """Download the weights, unless they are there. Raises ``MissingWeights``."""
        missing = [part for part in self._parts() if not self._weights(part)]
        if missing and not Path(self._where).is_dir():
            echo(f"downloading the weights of {self.name} to the hub's cache")
            names = [str((self.place(part) / _weights_name(part)).relative_to(self.folder)) for part in missing]
            patterns = [name + end for name in names for end in _WEIGHTS]
            self.folder = self._find((*_DESCRIPTIONS, *patterns))
            missing = [part for part in missing if not self._weights(part)]
        if missing:
            part = missing[0]
            there = sorted(path.name for path in self.place(part).glob("*"))
            raise MissingWeights(
                f"{self.place(part)} has no {_weights_name(part)}.safetensors, but {', '.join(there) or 'nothing'}; "
                "nothing else is read: save the pipeline with safe_serialization=True and no variant"
            )

    def measure_blocks(self) -> list[Block]:
        """Kind, channels, size and cumulative GFLOP of every block. Imports torch and diffusers."""
        found: list[Block] = self._library().measure_blocks(self)
        return found

    def load(self, device: torch.device, dtype: torch.dtype, condition: str, memory_format: str = CONTIGUOUS) -> Backbone:  # noqa: ARG002
        """The pipeline's network on its device, with its VAE. Raises ``ExtractError``."""
        backbone: Backbone = self._library().load_diffusers(self, device, dtype, condition)
        return backbone

    def _library(self) -> ModuleType:
        try:
            from . import diffusers_models
        except (ImportError, RuntimeError) as error:
            raise MissingLibrary("diffusers", error) from error
        return diffusers_models

    def _check(self) -> None:
        """Raise ``UnknownModel`` for a pipeline that wants what is not known here."""
        unknown = [f"{name} {self.config[name]}" for name in _UNKNOWN_INPUTS if self.config.get(name) is not None]
        if self.text is not None and self.config.get("num_class_embeds") is not None:
            unknown.append(f"num_class_embeds {self.config['num_class_embeds']}")
        if self.network in TRANSFORMERS and self.config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
            unknown.append(f"norm_type {self.config['norm_type']}")
        channels = 3 if self.vae is None else self.vae.get("latent_channels", 4)
        if self.config.get("in_channels") != channels:
            unknown.append(f"in_channels {self.config.get('in_channels')} for samples of {channels}")
        known = {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
        unknown += [f"{name} {self._classes[name]}" for name in self._parts()[1:] if self._classes[name] != known[name]]
        unknown += [name for name in ("vqvae", "movq") if name in self._classes]
        if self.vae is not None and (self.vae.get("latents_mean") or self.vae.get("latents_std")):
            unknown.append("a VAE with latents_mean and latents_std")
        if unknown:
            raise UnknownModel(f"{self.name} has {', '.join(unknown)}: it wants inputs that are not known here")

    def _side(self) -> int:
        side = self.config.get("sample_size")
        height, width = side if isinstance(side, list) else [side, side]
        if not isinstance(height, int) or height != width:
            raise UnknownModel(f"{self.name} has sample_size {side}; known are squares of a given size")
        return height

    def _parts(self) -> list[str]:
        """Parts whose weights features depend on, the network first."""
        own = {"vae": self.vae, "text_encoder": self.text}
        return [self.part, *(name for name, config in own.items() if config is not None)]

    def _weights(self, part: str) -> list[Path]:
        """Files of a part's weights; none if they are not all there."""
        folder, name = self.place(part), _weights_name(part)
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
        if not (folder / f"{name}.safetensors.index.json").is_file():
            return []
        names = _read(folder / f"{name}.safetensors.index.json")["weight_map"].values()
        files = [folder / one for one in sorted(set(names))]
        return files if all(file.is_file() for file in files) else []

    def _find(self, patterns: Collection[str]) -> Path:
        """The folder, or a snapshot of what is on the hub, by the hub's own cache."""
        if Path(self._where).is_dir():
            return Path(self._where)
        if self._where.count("/") != 1 or self._where.startswith((".", "/", "~")):
            raise UnknownModel(f"{self._where}: is neither a folder nor a name on the Hugging Face hub (owner/name)")
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise MissingLibrary("diffusers", error) from error
        try:
            return Path(snapshot_download(self._where, allow_patterns=list(patterns)))
        except Exception as error:  # of the hub, of httpx, of the file system
            raise MissingWeights(f"{self._where} is not in the hub's cache and cannot be downloaded ({error})") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExtractError(f"{path}: cannot be read ({error}); is this a pipeline of diffusers?") from error
    if not isinstance(value, dict):
        raise ExtractError(f"{path}: is no JSON object")
    return value


def _weights_name(part: str) -> str:
    return "model" if part == "text_encoder" else "diffusion_pytorch_model"


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Without what diffusers and transformers note for themselves."""
    return {name: value for name, value in sorted(config.items()) if not name.startswith("_") and not name.endswith("_version")}
