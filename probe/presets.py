"""Protocols as JSON files beside this one: the options of each head, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

DEFAULT = "default"


@dataclass(frozen=True)
class Preset:
    """A protocol by name.

    Attributes:
        name: of its file.
        about: what it is, with its source.
        standardise: features are standardised with the training rows' moments.
        heads: head -> its options.
        warning: to be said before anything is fitted; "" for nothing.
        report_best_on_test: the accuracy of the trial that is best on the test rows is recorded too, apart and flagged.
    """

    name: str
    about: str
    standardise: bool
    heads: Mapping[str, Mapping[str, Any]]
    warning: str = ""
    report_best_on_test: bool = False

    def options(self, head: str) -> dict[str, Any]:
        """Options of a head. Raises ``ValueError`` if the protocol has none for it."""
        if head not in self.heads:
            raise ValueError(f"--protocol {self.name} says nothing of {head}; it is for {', '.join(self.heads)}")
        options = dict(self.heads[head])
        if "C_log10" in options:
            low, high, count = options.pop("C_log10")
            options["C"] = np.logspace(low, high, count).tolist()
        return options


def preset_names() -> list[str]:
    """Names of the protocols there are."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> Preset:
    """A protocol by name. Raises ``ValueError`` with the names there are."""
    if name not in preset_names():
        raise ValueError(f"unknown protocol {name!r}; known are {', '.join(preset_names())}")
    return Preset(name, **json.loads(_folder().joinpath(f"{name}.json").read_text("utf-8")))


def _folder() -> Any:
    return files(__package__).joinpath("protocols")
