"""The notebook of the documentation runs from its first cell to its last, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
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


def test_it_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.manager import AsyncKernelManager

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONWARNINGS", "default")  # the kernel's own libraries are not ours to mend
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=str(tmp_path / "kernel.json"))
    client = nbclient.NotebookClient(notebook, timeout=300, km=manager, resources={"metadata": {"path": str(tmp_path)}})
    executed = client.execute()

    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert len(cells) == 8
    text = "\n".join(map(printed, cells))
    assert "(200, 64, 2, 2) float16" in text
    assert "test 0." in text
    assert [data for cell in cells for output in cell.outputs for data in output.get("data", ()) if data == "image/png"]
