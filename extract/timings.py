"""Where the time of an extraction went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Seconds that the loop spent in, or waiting for, each stage."""

    decode: float = 0.0
    backbone: float = 0.0
    write: float = 0.0

    def __add__(self, other: Timings) -> Timings:
        """Sums, stage by stage, of two processes."""
        return Timings(self.decode + other.decode, self.backbone + other.backbone, self.write + other.write)

    def __str__(self) -> str:
        """Shares, for the last line of a run."""
        total = max(self.decode + self.backbone + self.write, 1e-9)
        shares = ((name, value / total) for name, value in vars(self).items())
        return ", ".join(f"{name} {share:.1%}" for name, share in shares)
