"""From stores and results to tables and pictures."""

from .compare import Comparison, DifferentRows, compare
from .neighbours import nearest
from .pictures import NoPicture, pca_images
from .table import AccuracyMap, NoResults, accuracy_maps

__all__ = [
    "AccuracyMap",
    "Comparison",
    "DifferentRows",
    "NoPicture",
    "NoResults",
    "accuracy_maps",
    "compare",
    "nearest",
    "pca_images",
]
