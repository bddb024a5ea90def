"""The progress bar of all long work: on a terminal live, in a log file a line a minute."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm


def progress_bar(total: int | None, unit: str, label: str, delay: float = 0) -> tqdm[NoReturn]:
    """A bar on stderr with rate and time left.

    Args:
        total: of the work; None where nobody knows, for a counter instead of a bar.
        unit: of ``total``.
        label: of the work.
        delay: seconds of work before anything is shown; what is done sooner shows nothing.
    """
    seconds = 0.2 if sys.stderr.isatty() else 60
    return tqdm(total=total, unit=unit, desc=label, smoothing=0.05, mininterval=seconds, delay=delay)
