"""Which model a run uses: the one asked for, else the store's, else the bundled one. No torch is imported with it."""

from __future__ import annotations

from pathlib import Path

from ..store import StoreHeader
from .diffusers_source import DiffusersModel
from .errors import ExtractError, MissingLibrary
from .model import Model
from .own import OwnModel
from .settings import compute_dtype
from .spec import ExtractSpec
from .zoo import BUNDLED, PUBLISHED, find_model


def pick_model(spec: ExtractSpec, there: StoreHeader | None) -> Model:
    """The model asked for, else the store's, else the bundled one. Raises ``ExtractError``."""
    if spec.backbone is not None:
        return OwnModel(spec.backbone, spec.device, compute_dtype(spec, there))
    name = spec.model
    if name is None and spec.checkpoint is None and there is not None:
        name = _named_again(spec, there)
    library, _, rest = (name or "").partition(":")
    if library == "timm":
        return _timm(rest, spec.checkpoint)
    if library == "diffusers":
        return DiffusersModel(rest)
    return find_model(name, spec.checkpoint, spec.model_config)


def describe_choice(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """The model in words, and whether it is a default."""
    if there is None:
        default = f"{BUNDLED} (bundled; --model for another)"
    else:
        default = f"{there.model} (the store's)"
    asked = spec.backbone or spec.model
    if spec.checkpoint is not None:
        asked = f"{asked} with {spec.checkpoint}" if asked else str(spec.checkpoint)
    return asked or default


def _timm(architecture: str, checkpoint: Path | None) -> Model:
    try:
        from .timm_models import TimmModel
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises the latter
        raise MissingLibrary("timm", error) from error
    return TimmModel(architecture, checkpoint)


def _named_again(spec: ExtractSpec, there: StoreHeader) -> str:
    """The store's model, if its name says all. A user's files are not looked for, and no code is run unasked."""
    name = there.model
    if name in (BUNDLED, *PUBLISHED) or name.startswith("diffusers:") or (name.startswith("timm:") and " with " not in name):
        return name
    if name.startswith("timm:"):
        raise ExtractError(f"{spec.store} was made with {name}; give --model and --checkpoint again")
    if "source_sha256" in there.identity.fields.get("model_config", {}):
        raise ExtractError(f"{spec.store} was made with --backbone {name}; give it again")
    raise ExtractError(f"{spec.store} was made with the checkpoint {name}; give --checkpoint and --model-config again")
