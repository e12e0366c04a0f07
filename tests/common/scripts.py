"""How tests run a script."""

import sys


def call(module, monkeypatch, *args):
    """The exit status of a script; tyro raises for what it finds wrong by itself."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    try:
        return module.main()
    except SystemExit as stopped:
        return stopped.code
