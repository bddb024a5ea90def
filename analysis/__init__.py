"""From stores and results to tables and pictures."""

from .cka import Similarity, cka
from .compare import Comparison, Guideline, compare, guideline
from .complement import Complement, complement
from .confusion import ConfusedPair, confusion, most_confused
from .neighbours import nearest
from .paired import DifferentRows, Setting, paired_settings
from .pictures import NoPicture, pca_images
from .statistics import Statistics, noise_share, statistics
from .table import AccuracyMap, NoResults, accuracy_maps

__all__ = [
    "AccuracyMap",
    "Comparison",
    "Complement",
    "ConfusedPair",
    "DifferentRows",
    "Guideline",
    "NoPicture",
    "NoResults",
    "Setting",
    "Similarity",
    "Statistics",
    "accuracy_maps",
    "cka",
    "compare",
    "complement",
    "confusion",
    "guideline",
    "most_confused",
    "nearest",
    "noise_share",
    "paired_settings",
    "pca_images",
    "statistics",
]
