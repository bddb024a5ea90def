"""From stores and results to tables and pictures."""

from .compare import Comparison, Guideline, compare, guideline
from .neighbours import nearest
from .paired import DifferentRows
from .pictures import NoPicture, pca_images
from .table import AccuracyMap, NoResults, accuracy_maps

__all__ = [
    "AccuracyMap",
    "Comparison",
    "DifferentRows",
    "Guideline",
    "NoPicture",
    "NoResults",
    "accuracy_maps",
    "compare",
    "guideline",
    "nearest",
    "pca_images",
]
