"""What the scripts share. Importing JAX takes seconds: a Ctrl-C meanwhile is answered as later."""

import sys

_traceback = sys.excepthook


def _answer(kind, error, traceback):
    if kind is KeyboardInterrupt:
        print("\nstopped by SIGINT", file=sys.stderr)
    else:
        _traceback(kind, error, traceback)


sys.excepthook = _answer
