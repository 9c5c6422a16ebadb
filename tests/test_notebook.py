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


def test_all_cells_parse_and_their_outputs_are_small(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 15
    for cell in cells:
        ast.parse(cell.source)
        assert cell.execution_count is None  # so that a run changes no line but results
    assert len(_pictures(notebook)) == 3
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.thorough
def test_the_notebook_runs_and_draws_its_pictures(notebook: nbformat.NotebookNode) -> None:
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(CLONE)}}).execute()
    assert len(_pictures(notebook)) == 3
    printed = [output.get("text", "") for output in _outputs(notebook)]
    assert any("parameters, largest difference" in text for text in printed)


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _pictures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]
