"""Docstrings are written for Sphinx here and there: its roles become code in the pages of the API reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod):`(~?)([\w.]+)`")


def _code(match: re.Match[str]) -> str:
    """``:class:`~a.b.C` `` -> `` `C` ``; without the tilde the whole name."""
    name = match[2].rpartition(".")[2] if match[1] else match[2]
    return f"`{name}`"


class Roles(griffe.Extension):
    """Rewrites every docstring that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every object."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_code, obj.docstring.value)
