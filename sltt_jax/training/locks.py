"""A lock on a directory, so that two runs do not write into it side by side."""

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Callable[[], None]]:
    """Locks a directory; the kernel gives it free when this process ends, however it does.

    The file `.lock` stays in it: whoever deletes it may lock what another one has just locked.

    Yields:
      A function that raises a FileNotFoundError if the directory was removed or moved since.

    Raises:
      BlockingIOError: it is locked already.
    """
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def check():
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise FileNotFoundError(f"{path} is gone: {folder} was removed or moved while a run was using it")

    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder} is in use by another run; wait for it, or choose another"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            warnings.warn(f"{folder} cannot be locked ({error}): start no second run in it", stacklevel=3)
        yield check
    finally:
        os.close(descriptor)
