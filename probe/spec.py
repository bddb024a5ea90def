"""ProbeSpec: everything that one probing run was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..store.location import local_path
from .presets import DEFAULT, Preset, load_preset
from .targets import TASKS

VECTOR_HEADS = ("linear", "mlp")  # on the features of any settings, as one vector
MAP_HEADS = ("cnn", "attention", "attnpool")  # on one map
FUSION_HEADS = ("difformer",)  # on the maps of several blocks and timesteps
NUMPY_HEADS = ("logreg", "ridge", "knn")  # without randomness
HEADS = (*VECTOR_HEADS, *MAP_HEADS, *FUSION_HEADS, *NUMPY_HEADS)

# One value a decade, 1e-6 to 1e5.
C_GRID = tuple(load_preset(DEFAULT).options("logreg")["C"])

TASKS_OF = {"logreg": ("classify",), "knn": ("classify",)}  # others do all
OVERRIDES = ("learning_rates", "weight_decays", "steps", "batch_size", "hidden", "width", "depth", "tokenizer", "C")
_OWN = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_AT_LEAST_ONE = ("seeds", "steps", "batch_size", "limit", "width", "depth", "repeats", "threads")


@dataclass(frozen=True)
class ProbeSpec:
    """Which heads on which settings of which store, and how.

    Attributes:
        store: path or URL of the store.
        heads: names out of ``HEADS``, or ``FILE.py:FUNCTION``.
        blocks: block number -> pools of its own, empty for ``pools``; None for all blocks of the store.
        timesteps: None for all.
        pools: None for all.
        concat: all selected settings together are the input of one fit, instead of one fit a setting.
        mix_copies: train on all noise draws and crops of a setting in turns, and score test by one draw and by the mean over
            draws; else each draw is a setting of its own.
        protocol: name of the preset that the heads' options come from.
        seeds: fits with seeds 0 .. seeds-1; heads without randomness are fitted once.
        limit: only the first so many rows of every split; None for those the extraction was asked for.
        shots: train on so many rows a class, a fit for each number.
        fraction: train on such parts of each class's rows, a fit for each.
        repeats: how many subsets are drawn of each of these.
        train_ids: file of ids, one a line: train on these alone.
        labels: CSV of answers other than the store's classes.
        task: of ``labels``.
        test_store: another store, of the same features, whose test rows are scored.
        refit: fit again on train and held-out rows with what was chosen.
        out: folder of results; None for the store's name with ``.results``, in the current folder if the store is a URL.
        save_heads: folder for the fitted heads; None to keep none.
        save_probabilities: keep the scores of all test rows in the folder of results.
        learning_rates, weight_decays, steps, batch_size, hidden, width, depth, tokenizer, C: in place of the protocol's, for
            the heads that have them.
        device: torch device, or ``"auto"``.
        threads: of the CPU in a fit; None for all cores.
        part: (I, N): only every N-th fit input from the I-th on.
    """

    store: Path | str
    heads: Sequence[str]
    blocks: Mapping[int, set[int | str]] | None = None
    timesteps: Sequence[int] | None = None
    pools: Sequence[int | str] | None = None
    concat: bool = False
    mix_copies: bool = False
    protocol: str = DEFAULT
    seeds: int = 1
    limit: int | None = None
    shots: Sequence[int] = ()
    fraction: Sequence[float] = ()
    repeats: int = 5
    train_ids: Path | None = None
    labels: Path | None = None
    task: str = "classify"
    test_store: Path | str | None = None
    refit: bool = True
    out: Path | None = None
    save_heads: Path | None = None
    save_probabilities: bool = False
    learning_rates: Sequence[float] | None = None
    weight_decays: Sequence[float] | None = None
    steps: int | None = None
    batch_size: int | None = None
    hidden: Sequence[int] | None = None
    width: int | None = None
    depth: int | None = None
    tokenizer: str | None = None
    C: Sequence[float] | None = None
    device: str = "auto"
    threads: int | None = None
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        unknown = [head for head in self.heads if head not in HEADS and not _OWN.fullmatch(head)]
        if unknown or not self.heads:
            raise ValueError(f"unknown heads {unknown}; known are {', '.join(HEADS)}, and FILE.py:FUNCTION")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("learning_rates", "C"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) <= 0):
                raise ValueError(f"{name.replace('_', ' ')} must be positive, got {values}")
        if self.weight_decays is not None and (not self.weight_decays or min(self.weight_decays) < 0):
            raise ValueError(f"weight decays must not be negative, got {self.weight_decays}")
        if self.hidden is not None and (not self.hidden or min(self.hidden) < 1):
            raise ValueError(f"hidden widths must be positive, got {self.hidden}")
        if self.shots and min(self.shots) < 1:
            raise ValueError(f"--shots are numbers of rows a class, at least 1, got {self.shots}")
        if self.fraction and not 0 < min(self.fraction) <= max(self.fraction) <= 1:
            raise ValueError(f"--fraction must be above 0 and at most 1, got {self.fraction}")
        self._check_task()
        first, step = self.part
        if not 0 <= first < step:
            raise ValueError(f"a part is I/N with 0 <= I < N, got {first}/{step}")
        self._check_options({name for head in self.heads for name in self.head_options(head)})

    def _check_task(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known are {', '.join(TASKS)}")
        if self.labels is None and self.task != "classify":
            raise ValueError(f"--task {self.task} needs --labels FILE.csv; the store knows classes alone")
        for head in self.heads:
            tasks = TASKS_OF.get(head, TASKS)
            if self.task not in tasks:
                raise ValueError(f"--head {head} can {', '.join(tasks)}, not {self.task}; linear, mlp and ridge can")
        if self.task != "classify" and (self.shots or self.fraction):
            raise ValueError(f"--shots and --fraction are per class; with --task {self.task} use --train-ids")

    def _check_options(self, known: set[str]) -> None:
        """Raise for an option that none of the heads has."""
        for name in OVERRIDES:
            has = name in known or (name == "steps" and "epochs" in known)
            if getattr(self, name) is not None and not has:
                option = name if len(name) == 1 else name.replace("_", "-")
                raise ValueError(f"--{option} means nothing to {', '.join(self.heads)} by the protocol {self.protocol}")

    @cached_property
    def preset(self) -> Preset:
        """The protocol."""
        return load_preset(self.protocol)

    @property
    def results(self) -> Path:
        """Folder of results."""
        return self.out or local_path(self.store, ".results")

    def head_options(self, head: str) -> dict[str, Any]:
        """What decides a fit of this head besides its data, as JSON; part of a result's key."""
        own = own_head(head)
        options = self.preset.options("own" if own else head)
        for name in OVERRIDES:
            value = getattr(self, name)
            if value is not None and (name in options or (name == "steps" and "epochs" in options)):
                options[name] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        if self.task == "regress" and head not in NUMPY_HEADS:
            options["answers"] = "standardised"  # said where it is so, so that other fits keep their keys
        if own:
            options["code_sha256"] = sha256(own[0].read_bytes()).hexdigest()
        return options


def own_head(head: str) -> tuple[Path, str] | None:
    """(file, function) of a user's own head; None for one of ``HEADS``. Raises ``ValueError`` if there is no such file."""
    match = _OWN.fullmatch(head)
    if match is None:
        return None
    file = Path(match["file"])
    if not file.is_file():
        raise ValueError(f"--head {head}: there is no file {file}")
    return file, match["function"]


def has_randomness(head: str) -> bool:
    """Whether seeds make a difference."""
    return head not in NUMPY_HEADS
