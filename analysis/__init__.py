"""From stores and results to tables and pictures."""

from .compare import Comparison, DifferentRows, compare
from .table import AccuracyMap, NoResults, accuracy_maps

__all__ = ["AccuracyMap", "Comparison", "DifferentRows", "NoResults", "accuracy_maps", "compare"]
