"""Errors of probing, all below ``DiffsslError``::

ProbeError
├── NothingToProbe      the selection names no setting, or no split can train or test
└── TooFewRows          too few labelled rows, or fewer than two classes
"""

from __future__ import annotations

from ..store import DiffsslError


class ProbeError(DiffsslError):
    """Base of the errors of probing."""


class NothingToProbe(ProbeError):
    """The selection names no setting, or the store has no split to train or test on."""


class TooFewRows(ProbeError):
    """There are too few labelled rows, or fewer than two classes among them."""
