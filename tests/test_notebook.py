"""The notebook of the documentation runs from its first cell to its last, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    found: Any = nbformat.read(NOTEBOOK, as_version=4)
    return found


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_it_is_kept_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")


# In a process of its own: the client leaves sockets to the collector, which would be an error here.
EXECUTE = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

notebook, folder = nbformat.read(sys.argv[1], as_version=4), sys.argv[2]
manager = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json")
NotebookClient(notebook, timeout=300, km=manager, resources={"metadata": {"path": folder}}).execute()
nbformat.write(notebook, f"{folder}/executed.ipynb")
"""


def test_it_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path)]
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = [cell for cell in nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) == 10
    text = "\n".join(map(printed, cells))
    assert "(200, 64, 2, 2) float16" in text
    assert "test 0." in text
    assert " MB" in text
    assert any("image/png" in output.get("data", ()) for cell in cells for output in cell.outputs)
