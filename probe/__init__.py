"""From a store to numbers: heads, fits, metrics, results. Never imports the backbone; importing it does not import torch."""

from .errors import NothingToProbe, ProbeError, TooFewRows
from .loader import FeatureLoader
from .metrics import classification_metrics, hits
from .protocol import Protocol, make_protocol
from .results import Results
from .spec import C_GRID, HEADS, ProbeSpec

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
