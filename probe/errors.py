"""Errors of probing, all below ``DiffsslError``::

ProbeError
├── FitsFailed          some fits could not be made; the others are there
├── LabelsError         a file of labels cannot be read as such, or is about other rows
├── OtherFeatures       a head, or a store to test on, is of other features
├── NothingToProbe      the selection names no setting, or no split can train or test
└── TooFewRows          too few labelled rows, or fewer than two classes
"""

from __future__ import annotations

from ..store import DiffsslError


class ProbeError(DiffsslError):
    """Base of the errors of probing."""


class FitsFailed(ProbeError):
    """Some fits could not be made; the others are there."""


class LabelsError(ProbeError):
    """A file of labels cannot be read as such, or is about other rows."""


class NothingToProbe(ProbeError):
    """The selection names no setting, or the store has no split to train or test on."""


class OtherFeatures(ProbeError):
    """A head, or a store to test on, is of other features."""


class TooFewRows(ProbeError):
    """There are too few labelled rows, or fewer than two classes among them."""
