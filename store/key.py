"""What an array of a split is known by: FeatureKey, the name of one setting; ThumbnailKey, the pictures of the images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from .selection import CLASS_TOKEN, format_numbers

_PATH = re.compile(r"b(\d+)/(?:p(\d+)|(cls))/t(\d+|none)(?:_d(\d+))?(?:_c(\d+))?")
_THUMBNAIL = re.compile(r"thumbnail-(\d+)")


@dataclass(frozen=True)
class FeatureKey:
    """One setting: which activation of the backbone, at which noise level, pooled how.

    Attributes:
        block: 1-based block number in the order the data flows.
        timestep: 0-based diffusion timestep, or None for an encoder without timesteps.
        pool: side of the pooled map (the true, stored size), or ``"cls"`` for a class token.
        draw: number of the noise draw.
        crop: number of the crop; 0 is the canonical centre crop.
    """

    block: int
    timestep: int | None
    pool: int | str
    draw: int = 0
    crop: int = 0

    def __post_init__(self) -> None:
        if self.block < 1 or self.draw < 0 or self.crop < 0 or (self.timestep is not None and self.timestep < 0):
            raise ValueError(f"block must be at least 1, timestep, draw and crop at least 0, got {self}")
        if self.pool != CLASS_TOKEN and not (isinstance(self.pool, int) and self.pool >= 1):
            raise ValueError(f"pool must be a positive number or {CLASS_TOKEN!r}, got {self.pool!r}")

    @property
    def path(self) -> str:
        """Path of the array below ``<split>/features``, such as ``b24/p2/t90_d1``."""
        pool = self.pool if self.pool == CLASS_TOKEN else f"p{self.pool}"
        name = f"t{'none' if self.timestep is None else self.timestep}"
        name += f"_d{self.draw}" if self.draw or self.crop else ""
        name += f"_c{self.crop}" if self.crop else ""
        return f"b{self.block}/{pool}/{name}"

    @property
    def array(self) -> str:
        """Path of the array below the split."""
        return f"features/{self.path}"

    @classmethod
    def from_path(cls, path: str) -> FeatureKey:
        """Invert :attr:`path`. Raises ``ValueError`` for anything that is not such a path."""
        match = _PATH.fullmatch(path)
        if match is None:
            raise ValueError(f"not the path of a feature array: {path!r} (expected for example 'b24/p2/t90')")
        block, pool, token, timestep, draw, crop = match.groups()
        key = cls(
            block=int(block),
            timestep=None if timestep == "none" else int(timestep),
            pool=token or int(pool),
            draw=int(draw or 0),
            crop=int(crop or 0),
        )
        if key.path != path:
            raise ValueError(f"not the path of a feature array: {path!r} (that setting is at {key.path!r})")
        return key

    @property
    def order(self) -> tuple[int, int, int, int, int]:
        """Sort key: block, pool, timestep, draw, crop; class tokens and missing timesteps come first."""
        pool = self.pool if isinstance(self.pool, int) else 0
        return (self.block, pool, -1 if self.timestep is None else self.timestep, self.draw, self.crop)

    def __str__(self) -> str:
        """The setting in the words of the command line."""
        text = f"block {self.block}" + ("" if self.timestep is None else f", timestep {self.timestep}")
        text += f", pool {self.pool}"
        text += f", draw {self.draw}" if self.draw else ""
        return text + (f", crop {self.crop}" if self.crop else "")


@dataclass(frozen=True)
class ThumbnailKey:
    """The thumbnails of a split: small pictures of what the backbone saw at crop 0.

    Attributes:
        side: of each picture, in pixels.
    """

    side: int
    timestep: ClassVar[None] = None  # they have no noise
    array: ClassVar[str] = "images/thumbnail"

    def __post_init__(self) -> None:
        if not isinstance(self.side, int) or self.side < 1:
            raise ValueError(f"the side of a thumbnail must be a positive number of pixels, got {self.side!r}")

    @property
    def path(self) -> str:
        """What commits call them: their place is the same whatever their size, so the size is in the name."""
        return f"thumbnail-{self.side}"

    def __str__(self) -> str:
        """In words."""
        return f"thumbnails of {self.side}x{self.side} pixels"


ArrayKey = FeatureKey | ThumbnailKey


def array_key(path: str) -> ArrayKey:
    """What a commit names by a path. Raises ``ValueError`` for anything else."""
    match = _THUMBNAIL.fullmatch(path)
    return FeatureKey.from_path(path) if match is None else ThumbnailKey(int(match[1]))


def grids(keys: Iterable[FeatureKey]) -> list[str]:
    """Settings in words, one text per group of blocks that share timesteps, pools and draws."""
    # Settings of a block that are a full grid become one text; what they share is found from the inside out.
    by_cell: dict[tuple[int, int, int | str], list[int]] = {}
    for key in keys:
        by_cell.setdefault((key.block, key.draw, key.pool), []).append(-1 if key.timestep is None else key.timestep)
    by_grid: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int | str]] = {}
    draws_of: dict[tuple[int, int | str, tuple[int, ...]], list[int]] = {}
    for (block, draw, pool), own in by_cell.items():
        draws_of.setdefault((block, pool, tuple(sorted(set(own)))), []).append(draw)
    for (block, pool, own_steps), draws in draws_of.items():
        by_grid.setdefault((block, own_steps, tuple(sorted(draws))), []).append(pool)
    found: dict[str, list[int]] = {}
    for (block, own_steps, own_draws), pools in sorted(by_grid.items()):
        names = ",".join(str(pool) for pool in sorted(pools, key=lambda pool: (isinstance(pool, str), pool)))
        grid = f"timesteps {format_numbers([t for t in own_steps if t >= 0]) or 'none'} x pools {names}"
        grid += f" x draws {format_numbers(list(own_draws))}" if own_draws != (0,) else ""
        found.setdefault(grid, []).append(block)
    return [f"blocks {format_numbers(blocks)} x {grid}" for grid, blocks in found.items()]
