"""Which model a run uses: the one asked for, else the store's, else the bundled one. No torch is imported with it."""

from __future__ import annotations

from ..store import StoreHeader
from .errors import ExtractError
from .model import Model
from .spec import ExtractSpec
from .zoo import BUNDLED, PUBLISHED, find_model


def pick_model(spec: ExtractSpec, there: StoreHeader | None) -> Model:
    """The model asked for, else the store's, else the bundled one. Raises ``ExtractError``."""
    name = spec.model
    if name is None and spec.checkpoint is None and there is not None:
        name = there.model
        if name != BUNDLED and name not in PUBLISHED:
            raise ExtractError(f"{spec.store} was made with the checkpoint {name}; give --checkpoint and --model-config again")
    return find_model(name, spec.checkpoint, spec.model_config)


def describe_choice(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """The model in words, and whether it is a default."""
    if there is None:
        default = f"{BUNDLED} (bundled; --model for another)"
    else:
        default = f"{there.model} (the store's)"
    return str(spec.checkpoint or spec.model or default)
