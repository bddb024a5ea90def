"""From images to features in a store: images, noise, backbones, one pass. Importing it does not import torch."""

from .errors import (
    CheckpointMismatch,
    DataError,
    ExtractError,
    Interrupted,
    MissingLibrary,
    MissingWeights,
    TooManyBadSamples,
    UnknownBlock,
    UnknownModel,
)
from .noise import noise_for
from .run import extract
from .spec import ExtractSpec

__all__ = [
    "CheckpointMismatch",
    "DataError",
    "ExtractError",
    "ExtractSpec",
    "Interrupted",
    "MissingLibrary",
    "MissingWeights",
    "TooManyBadSamples",
    "UnknownBlock",
    "UnknownModel",
    "extract",
    "noise_for",
]
