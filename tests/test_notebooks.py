"""The notebooks run from top to bottom, and what they print and draw is what they were committed with."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

sys.path.insert(0, str(FOLDER))
from execute import execute  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]


def of_kind(cell, kind):
    return [output for output in cell.get("outputs", ()) if output["output_type"] == kind]


def printed(cell):
    """Its text, with `#` for every number: times differ, and last digits do from machine to machine."""
    text = "".join(output["text"] for output in of_kind(cell, "stream"))
    return re.sub(r"\s+", " ", re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "#", text))


def pictures(cell):
    return sum("image/png" in output["data"] for output in of_kind(cell, "display_data"))


def test_there_are_six():
    assert len(NOTEBOOKS) == 6


def test_the_script_of_the_electrocardiograms_is_short():
    cells = nbformat.read(FOLDER / "05_cells_of_your_own.ipynb", as_version=4).cells
    (script,) = (cell.source for cell in cells if "def train(rule" in cell.source)
    assert sum(bool(line) for line in script.splitlines()) <= 40


@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    committed = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    again = [cell for cell in execute(path).cells if cell.cell_type == "code"]  # raises if a cell fails
    assert [cell.execution_count for cell in committed] == list(range(1, len(committed) + 1))
    assert sum(map(pictures, committed)) > 0 and any(map(printed, committed))
    for before, now in zip(committed, again, strict=True):
        assert not of_kind(before, "error")
        assert all(output["name"] == "stdout" for output in of_kind(before, "stream")), before.source
        assert printed(now) == printed(before), before.source
        assert pictures(now) == pictures(before) == before.source.count("plt.show()"), before.source
