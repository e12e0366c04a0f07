"""How data of one's own is named: `folder:PATH`, `events:PATH` or `PATH.py`."""

from pathlib import Path
from typing import Literal, NamedTuple


class Source(NamedTuple):
    """Where data of one's own comes from.

    Attributes:
      kind: "folder" of images in class folders, "events": recordings in class folders, or "module": a file
        with a function `load_data`.
      path: of the folder or file.
    """

    kind: Literal["folder", "events", "module"]
    path: Path

    def __str__(self) -> str:
        return str(self.path) if self.kind == "module" else f"{self.kind}:{self.path}"


def source_of(name: str) -> Source | None:
    """Reads such a name, and makes its path absolute and without links; None for any other name.

    Raises:
      ValueError: there is no path.
    """
    kind, colon, path = name.partition(":")
    if colon and (kind == "folder" or kind == "events"):
        if not path:
            raise ValueError(f"data {name!r} names no folder; expected {kind}:PATH")
        return Source(kind, Path(path).expanduser().resolve())
    return Source("module", Path(name).expanduser().resolve()) if name.endswith(".py") else None
