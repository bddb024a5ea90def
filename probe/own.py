"""A head of one's own: ``--head FILE.py:FUNCTION``. See ``docs/heads.md``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from .errors import ProbeError
from .heads import Maker, Shape


def load_maker(file: Path, function: str) -> Maker:
    """A user's function, called as ``function(shapes, outputs)`` for every fit.

    ``shapes`` is a list of (C, p, p), one a setting; the module it returns takes a list of (n, C, p, p) float32 tensors and
    gives (n, outputs). The file may import its neighbours.

    Raises:
        ProbeError: the file has no such function.
    """
    module = _import(file)
    made = getattr(module, function, None)
    if not callable(made):
        raise ProbeError(f"{file}: has no function {function!r}")

    def make(shapes: Sequence[Shape], outputs: int) -> nn.Module:
        head = made(list(shapes), outputs)
        if not isinstance(head, nn.Module):
            raise ProbeError(f"{file}:{function} returned {type(head).__name__}, expected a torch.nn.Module")
        if not any(parameter.requires_grad for parameter in head.parameters()):
            raise ProbeError(f"{file}:{function} returned a module without parameters to train")
        return head

    return make


def _import(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module
