"""The code of the pages of docs/ runs from top to bottom, and the contents name every page."""

import pytest

from tests.common.documents import ROOT, blocks, run_page

PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
WITH_CODE = [name for name, page in PAGES.items() if any(b.language == "python" for b in blocks(page))]
ELSEWHERE = {"own_data.md", "own_loop.md"}  # with what they should come to, in a test of their own


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "limits.md" else pytest.mark.slow)
        for name in WITH_CODE
        if name not in ELSEWHERE
    ],
)
def test_code_of_a_page_runs(name, tmp_path, monkeypatch, capsys):
    """Each page prints something, or asserts it."""
    ran = list(run_page(PAGES[name], tmp_path, monkeypatch, capsys))
    assert ran and any(output or "assert" in block.text for block, output in ran)


def test_the_contents_name_every_page():
    contents = (ROOT / "mkdocs.yml").read_text()
    assert "rules.md" in PAGES and [name for name in PAGES if f": {name}\n" not in contents] == []
