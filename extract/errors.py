"""Errors of extraction, all below ``DiffsslError``::

ExtractError
├── DataError             the images cannot be listed: layout, ids, labels, archive
├── TooManyBadSamples     more images could not be decoded than --max-bad allows
├── UnknownBlock          the backbone has no such block or timestep; the known ones are listed
├── UnknownModel          no bundled or published model of that name; the known ones are listed
├── MissingWeights        a published model whose weights cannot be downloaded
├── MissingLibrary        timm or diffusers cannot be imported
├── CheckpointMismatch    a checkpoint that does not fit its configuration; differing keys are listed
└── Interrupted           SIGINT or SIGTERM; everything committed is kept
"""

from __future__ import annotations

from ..store import DiffsslError


class ExtractError(DiffsslError):
    """Base of the errors of extraction."""


class DataError(ExtractError):
    """The images cannot be listed as they are."""


class TooManyBadSamples(ExtractError):
    """More images could not be decoded than allowed; everything else is committed."""


class UnknownBlock(ExtractError):
    """The backbone has no such block or timestep."""


class UnknownModel(ExtractError):
    """There is no model of that name."""


class MissingWeights(ExtractError):
    """The weights of a published model are not in the cache folder and cannot be downloaded."""


class MissingLibrary(ExtractError):
    """A library that the model wants cannot be imported.

    Args:
        name: of the library and of the extra that installs it.
        error: why not.
    """

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{name} cannot be used here ({error}); install it with pip install 'diffssl[{name}]'")


class CheckpointMismatch(ExtractError):
    """A checkpoint does not fit its configuration."""


class Interrupted(ExtractError):
    """The run was stopped by SIGINT or SIGTERM; everything committed is kept.

    Args:
        command: the command line that goes on.
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"stopped; everything committed is kept. To go on, run again:\n  {command}")
