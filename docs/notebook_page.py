"""The notebook as a page of the site: its text as it is, its code in fences. Without outputs, since it is kept without."""

from __future__ import annotations

import json
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_NAME = "notebook.ipynb"
_LINK = "\n\n[The notebook itself](notebook.ipynb)\n\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files of the documentation."""
    notebook = files.get_file_from_path(_NAME)
    if notebook is None:
        raise FileNotFoundError(f"{_NAME} is not among the files of the documentation")
    first, *rest = map(_text, json.loads(notebook.content_string)["cells"])
    files.append(File.generated(config, "notebook.md", content=first + _LINK + "".join(f"{text}\n\n" for text in rest)))
    return files


def _text(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
