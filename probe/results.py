"""Results on disk: a folder of JSONL files, one a writer, one line a fit."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..store import DiffsslError, canonical_json, digest


class Results:
    """A folder of results.

    Every writer appends to a file of its own, since appending to one file from many machines is not atomic; readers
    merge them.

    Args:
        folder: made when the first result is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / f"fits-{uuid.uuid4().hex}.jsonl"

    def read(self) -> list[dict[str, Any]]:
        """All results, one per key, in the order of the file names and lines; lines of fits that failed are no results.

        A last line without its end is a fit that was being written when its writer was killed, and is no result.

        Raises:
            DiffsslError: any other line cannot be read.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            lines = path.read_bytes().split(b"\n")
            for number, line in enumerate(lines[:-1], start=1):
                try:
                    result = json.loads(line)
                    if "error" not in result:
                        found.setdefault(result["key"], result)
                except (ValueError, KeyError, TypeError) as error:
                    raise DiffsslError(f"{path}, line {number}: is not a result ({error}); remove that line") from error
        return list(found.values())

    def append(self, result: Mapping[str, Any]) -> None:
        """Write a result so that it survives a crash."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as file:
            file.write(canonical_json(result) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def result_key(specification: Mapping[str, Any]) -> str:
    """Key of a fit: a hash of its specification."""
    return digest(specification)
