"""How tests run a script, and read what it said and drew."""

import re
import sys

import matplotlib.pyplot as plt

# A sixth of the digits, so that an epoch is a few updates. Runs of these settings share their programs.
QUICK = (
    "digits_mlp", "--features", 16, "--T", 3, "--rule", "sltt_k(2)", "--epochs", 2,
    "--train-samples", 240, "--test-samples", 60,
)  # fmt: skip


def call(module, monkeypatch, *args):
    """The exit status of a script; tyro raises for what it finds wrong by itself."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    try:
        return module.main()
    except SystemExit as stopped:
        return stopped.code


def unboxed(text):
    """Takes away the box and the line breaks that tyro puts around a message."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())


def assert_refused(module, args, message, workdir, monkeypatch, capsys):
    """A command line that cannot be is answered with `message`, and nothing is written."""
    assert call(module, monkeypatch, *args, "--workdir", workdir) in (1, 2)
    assert message in unboxed(capsys.readouterr().err)
    assert not workdir.exists()


def assert_picture(path):
    """A picture with something drawn: axes alone are black, white and grey."""
    image = plt.imread(path)[..., :3]
    coloured = (image.max(-1) - image.min(-1) > 0.2).mean()
    assert image.shape[0] > 200 and coloured > 2e-4, (image.shape, coloured)
