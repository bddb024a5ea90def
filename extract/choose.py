"""Which model a run uses: the one asked for, else the store's, else the bundled one. No torch is imported with it."""

from __future__ import annotations

from ..store import StoreHeader
from .errors import ExtractError
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
    return find_model(name, spec.checkpoint, spec.model_config)


def describe_choice(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """The model in words, and whether it is a default."""
    if there is None:
        default = f"{BUNDLED} (bundled; --model for another)"
    else:
        default = f"{there.model} (the store's)"
    return str(spec.checkpoint or spec.backbone or spec.model or default)


def _named_again(spec: ExtractSpec, there: StoreHeader) -> str:
    """The store's model, if its name says all. A user's files are not looked for, and no code is run unasked."""
    name = there.model
    if name in (BUNDLED, *PUBLISHED):
        return name
    if "source_sha256" in there.identity.fields.get("model_config", {}):
        raise ExtractError(f"{spec.store} was made with --backbone {name}; give it again")
    raise ExtractError(f"{spec.store} was made with the checkpoint {name}; give --checkpoint and --model-config again")
