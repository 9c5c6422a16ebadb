"""docs/notebooks/model.ipynb runs from its first cell to its last, whose proof is that its logits
are the toolkit's.
"""

import ast

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import CLONE

NOTEBOOK = CLONE / "docs" / "notebooks" / "model.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_all_cells_parse_and_bring_no_outputs(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 15
    for cell in cells:
        ast.parse(cell.source)
        assert not cell.outputs
        assert cell.execution_count is None


def test_the_notebook_runs_and_draws_its_pictures(notebook: nbformat.NotebookNode) -> None:
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(CLONE)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    assert any("parameters, largest difference" in output.get("text", "") for output in outputs)
