"""From stores and results to tables and pictures."""

from .compare import Comparison, Guideline, compare, guideline
from .paired import DifferentRows
from .table import AccuracyMap, NoResults, accuracy_maps

__all__ = ["AccuracyMap", "Comparison", "DifferentRows", "Guideline", "NoResults", "accuracy_maps", "compare", "guideline"]
