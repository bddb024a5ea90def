"""From a store to numbers: heads, fits, metrics, results. Never imports the backbone."""

from typing import TYPE_CHECKING, Any

from .errors import NothingToProbe, ProbeError, TooFewRows
from .metrics import classification_metrics, hits
from .protocol import Protocol, make_protocol
from .results import Results
from .spec import C_GRID, HEADS, ProbeSpec

if TYPE_CHECKING:
    from .loader import FeatureLoader

__all__ = [
    "C_GRID",
    "HEADS",
    "FeatureLoader",
    "NothingToProbe",
    "ProbeError",
    "ProbeSpec",
    "Protocol",
    "Results",
    "TooFewRows",
    "classification_metrics",
    "hits",
    "make_protocol",
]


def __getattr__(name: str) -> Any:
    """``FeatureLoader`` imports torch, so it is imported where it is used."""
    if name == "FeatureLoader":
        from .loader import FeatureLoader

        return FeatureLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
