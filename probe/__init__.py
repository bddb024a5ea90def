"""From a store to numbers: heads, fits, metrics, results. Never imports the backbone."""

from .errors import NothingToProbe, ProbeError, TooFewRows
from .metrics import classification_metrics, hits
from .protocol import Protocol, make_protocol
from .results import Results
from .spec import C_GRID, HEADS, ProbeSpec

__all__ = [
    "C_GRID",
    "HEADS",
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
