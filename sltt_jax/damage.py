"""Files from elsewhere: all that can be wrong with their bytes is one kind of error, which names the file."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager


class DamagedFile(ValueError):
    """File, or part of one, that is damaged or not what it should be; the message begins with its name."""


def check_is_file(path: str | os.PathLike):
    """Raises a `DamagedFile` for a FIFO, a device or a socket, whose reader could wait forever.

    Raises:
      DamagedFile: see above.
      OSError: there is nothing of this name, or it may not be looked at.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder is an error that says so
        raise DamagedFile(f"{path}: not a regular file")


@contextmanager
def reading(where: object, what: str) -> Iterator[None]:
    """Makes whatever wrong bytes raise a `DamagedFile`: "<where>: not <what>: ...".

    What is wrong with the place rather than the bytes passes: a file that is missing or may not be read, a
    package that is not installed.

    Args:
      where: the file, and the part of it.
      what: what it should be, with its article.
    """
    try:
        yield
    except (DamagedFile, ImportError):
        raise
    except Exception as error:  # there is no end to what decoders raise
        # Decoders raise OSError without a number, and a jump to before the beginning of a file is EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedFile(f"{where}: not {what}: {str(error) or type(error).__name__}") from error
