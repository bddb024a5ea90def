"""From stores and results to tables and pictures."""

from .table import AccuracyMap, NoResults, accuracy_maps

__all__ = ["AccuracyMap", "NoResults", "accuracy_maps"]
