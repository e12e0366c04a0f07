"""Code of Markdown pages, and how it is run."""

import importlib
import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.common.scripts import call

ROOT = Path(__file__).parents[2]


class Block(NamedTuple):
    """A fenced block: its language ("" of output), the file that it is titled as, and its text."""

    language: str
    title: str
    text: str


def blocks(page):
    """All fenced blocks of a page, in order."""
    found = re.findall(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found]


def run_page(page, folder, monkeypatch, capsys):
    """Runs a page from top to bottom in a folder, as a reader would, and yields each block and its output.

    Python with a title is a file, other Python is run at once. Commands are `python FILE` of such a file,
    whose names the Python after it has, or of scripts in `experiments/`, and must succeed.
    """
    monkeypatch.chdir(folder)
    names = {}
    for block in blocks(page):
        capsys.readouterr()
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            exec(block.text, names)
        elif block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                _python(shlex.split(line, comments=True), names, monkeypatch)
        else:
            continue
        yield block, capsys.readouterr().out


def _python(words, names, monkeypatch):
    assert words[0] == "python", words
    if os.path.exists(words[1]):
        exec(Path(words[1]).read_text(), names)
        return
    script = Path(words[1])
    assert script.parent.name == "experiments" and (ROOT / script).exists(), script
    assert call(importlib.import_module(script.stem), monkeypatch, *words[2:]) == 0, words
