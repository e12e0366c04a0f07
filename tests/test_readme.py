import re
from pathlib import Path

import pytest

import sltt_jax
from tests.common.documents import blocks

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = blocks(README)


def test_code_of_the_readme_runs(capsys):
    """What it prints stands in the README; memory may differ a little between compilers."""
    (code,) = (block.text for block in BLOCKS if block.language == "python")
    exec(code, {})
    printed = capsys.readouterr().out
    shown = next(block.text for block in BLOCKS if not block.language and block.text.startswith("bptt"))
    numbers = re.compile(r"[\d.]+(?= MiB)")
    assert numbers.sub("", printed) == numbers.sub("", shown)
    for got, said in zip(numbers.findall(printed), numbers.findall(shown), strict=True):
        assert float(got) == pytest.approx(float(said), rel=0.25, abs=0.011)


def test_files_of_the_readme_exist():
    root = Path(__file__).parent.parent
    paths = re.findall(r"(?:sltt_jax|experiments|tests)/[\w./]*", README)
    assert len(paths) > 10
    assert all((root / path.rstrip(".")).exists() for path in paths), paths


def test_make_train_is_what_the_readme_says_and_resumes():
    """With --overwrite it would start anew."""
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    (made,) = re.findall(r"experiments/train.py .*", makefile)
    (said,) = re.findall(r"`make train` is `python (.*?)`", README)
    assert made == said and "--overwrite" not in made


def test_the_newest_version_of_the_changelog_is_the_one_that_is_built():
    """Without a section of what is unreleased: what is built has the number of what it holds."""
    root = Path(__file__).parent.parent
    headings = re.findall(r"^## \[(.*)\]", (root / "CHANGELOG.md").read_text(), re.M)
    cited = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.M)
    assert headings[0] == sltt_jax.__version__ and len(headings) == len(set(headings))
    assert cited and cited[1] == sltt_jax.__version__
