"""A backbone of one's own: ``--backbone FILE.py:FUNCTION``. See ``docs/backbones.md``."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store import Block
from .errors import ExtractError
from .images import Resize, preprocessing
from .model import CONTIGUOUS

if TYPE_CHECKING:
    import torch

    from .backbone import Backbone

_ALWAYS = ("blocks", "device", "diffusion_steps", "encode", "features", "identity", "image_size", "resize", "sample_shape")
_WITH_TIMESTEPS = ("diffuse", "schedule")


class OwnModel:
    """A user's function as a :class:`~diffssl.extract.model.Model`; its backbone says what it is once it is made.

    Args:
        text: ``FILE.py:FUNCTION``. The function is called once, as ``function(device, dtype)`` with a torch device and
            dtype, and returns a :class:`~diffssl.extract.backbone.Backbone` that has an ``identity`` besides.
        device: as ``--device``.
        dtype: name of the compute dtype.

    Raises:
        ExtractError: there is no such file.
    """

    conditional = False
    memory_formats = (CONTIGUOUS,)

    def __init__(self, text: str, device: str, dtype: str) -> None:
        self.name = text
        path, _, self._function = text.rpartition(":")
        self._path = Path(path)
        if self._path.suffix != ".py" or not self._function.isidentifier():
            raise ExtractError(f"--backbone is FILE.py:FUNCTION, such as my_module.py:make_backbone, got {text!r}")
        if not self._path.is_file():
            raise ExtractError(f"{path}: there is no such file; --backbone is FILE.py:FUNCTION")
        self._device, self._dtype = device, dtype

    @property
    def image_size(self) -> int:
        """As the backbone says."""
        return self._backbone.image_size

    @property
    def resize(self) -> Resize:
        """As the backbone says."""
        return self._backbone.resize

    @property
    def diffusion_steps(self) -> int | None:
        """As the backbone says."""
        return self._backbone.diffusion_steps

    def condition(self, wanted: str | None) -> str:
        """There is none: what the function fixes is in its source and its identity. Raises ``ExtractError`` for another."""
        if wanted not in (None, "none"):
            raise ExtractError(f"{self.name} knows no conditions, so --condition {wanted} means nothing to it")
        return "none"

    def identity(self) -> dict[str, Any]:
        """What the backbone says of itself, and the SHA-256 of the file's source."""
        source = sha256(self._path.read_bytes()).hexdigest()
        return {"function": self._function, "source_sha256": source, "identity": self._own_identity()}

    def preprocessing(self) -> dict[str, Any]:
        """By the backbone's ``image_size`` and ``resize``."""
        return preprocessing(self.image_size, self.resize)

    def weights_sha256(self) -> str:
        """``weights_sha256`` of the backbone's identity, if it has one."""
        return str(self._own_identity().get("weights_sha256", "in model_config"))

    def fetch(self, echo: Callable[[str], object]) -> None:
        """Nothing: the function has its weights."""

    def measure_blocks(self) -> list[Block]:
        """As the backbone says."""
        return list(self._backbone.blocks)

    def load(self, device: torch.device, dtype: torch.dtype, condition: str, memory_format: str = CONTIGUOUS) -> Backbone:  # noqa: ARG002
        """The backbone, which is on its device already. Raises ``ExtractError`` where it is on another."""
        from .settings import torch_dtype

        if (torch_dtype(self._dtype), self.condition(None)) != (dtype, condition):
            raise ValueError(f"the backbone was made for {self._dtype}, and is asked for with {dtype}, {condition}")
        if self._backbone.device.type != device.type:
            raise ExtractError(f"{self.name} was asked for a backbone on {device}, and made one on {self._backbone.device}")
        return self._backbone

    @cached_property
    def _backbone(self) -> Backbone:
        from .settings import pick_device, torch_dtype

        function = getattr(_import(self._path), self._function, None)
        if function is None:
            raise ExtractError(f"{self._path} has no function {self._function}")
        try:
            inspect.signature(function).bind(None, None)
        except (TypeError, ValueError) as error:
            raise ExtractError(f"{self.name} is called as {self._function}(device, dtype): {error}") from error
        backbone: Backbone = function(pick_device(self._device), torch_dtype(self._dtype))
        self._check(backbone)
        return backbone

    def _own_identity(self) -> dict[str, Any]:
        own: dict[str, Any] = dict(self._backbone.identity)  # type: ignore[attr-defined]
        return own

    def _check(self, backbone: Backbone) -> None:
        """Raise ``ExtractError`` for what is not a backbone."""
        missing = [name for name in _ALWAYS if not hasattr(backbone, name)]
        if not missing and backbone.diffusion_steps is not None:
            missing = [name for name in _WITH_TIMESTEPS if not hasattr(backbone, name)]
        if missing:
            raise ExtractError(f"what {self.name} made is no backbone: it has no {', '.join(missing)} (docs/backbones.md)")
        numbers = [block.number for block in backbone.blocks]
        if numbers != list(range(1, len(numbers) + 1)) or not numbers:
            raise ExtractError(f"blocks are numbered 1, 2, … in the order the data flows; those of {self.name} are {numbers}")
        identity = backbone.identity  # type: ignore[attr-defined]
        if not isinstance(identity, Mapping) or not identity or not _is_json(dict(identity)):
            raise ExtractError(
                f"the identity of {self.name} is a mapping of JSON values that tells its weights from others, such as "
                f"their SHA-256, got {identity!r}"
            )


def _is_json(value: object) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def _import(path: Path) -> Any:
    """The module of a file. What it raises is its author's to see, traceback and all."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: what is beside the file can be imported, and hides nothing
    spec = importlib.util.spec_from_file_location(f"diffssl_backbone_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ExtractError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its classes look themselves up
    spec.loader.exec_module(module)
    return module
