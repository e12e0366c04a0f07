"""Everything that the scripts have in common: settings, errors, exit status, and files of results."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from sltt_jax import training
from sltt_jax.cpu import tune_xla

Settings = TypeVar("Settings")


def prepare_xla():
    """Tunes XLA for CPUs, and has JAX keep what it compiles, so that a second start compiles nothing.

    To be called before JAX computes anything. The programs are kept in the user's cache directory;
    `JAX_COMPILATION_CACHE_DIR` names another.
    """
    tune_xla()
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "sltt_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def command(
    settings: type[Settings] | Mapping[str, tuple[str, Settings]],
    manual: str | None,
    *,
    xla: Callable[[], Any] | None = prepare_xla,
) -> Callable[[Callable[[Settings], None]], Callable[[], int]]:
    """Makes the `main` of a script out of its body.

    Args:
      settings: a dataclass, or presets as `runs.presets` returns them, which the command line fills.
      manual: the text above the settings in `--help`.
      xla: called before the body; None where the script itself computes nothing with JAX.

    Returns:
      A decorator of `body(settings)`. The `main` that it makes returns the exit status: 0, or 1 after an
      error that is the user's to mend, which it prints, or 128 + n after signal n. It raises SystemExit(2)
      for a command line that cannot be.
    """

    def decorate(body):
        @functools.wraps(body)
        def main() -> int:
            try:
                if isinstance(settings, Mapping):
                    given = tyro.extras.overridable_config_cli(dict(settings), description=manual)
                else:
                    given = tyro.cli(settings, description=manual)
                if xla is not None:
                    xla()
                body(given)
            except (FloatingPointError, OSError, ValueError) as error:
                print(f"error: {error}", file=sys.stderr)
                if jax.distributed.is_initialized():
                    training.leave(1)
                return 1
            except training.Stopped as error:
                print(f"\n{error}; the same command resumes it", file=sys.stderr)
                return 128 + error.signal
            return 0

        return main

    return decorate


def check_at_least_one(settings: Any, *names: str):
    """Raises a ValueError if one of these settings is below 1; None is not."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")


def write_json(path: Path, content: Any):
    """Writes a file that is either the old or the new one, whatever happens in between."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(path)


def write_results(folder: Path, name: str, content: Any, table: str):
    """Writes `<name>.json` and `<name>.md`, the numbers and their table."""
    write_json(folder / f"{name}.json", content)
    (folder / f"{name}.md").write_text(table + "\n")


def resumed(path: Path, entry: str, conditions: dict) -> dict:
    """Reads the results that are in a file already, or makes empty ones: `{entry: conditions, "rows": []}`.

    Raises:
      ValueError: they were found under other conditions.
    """
    conditions = json.loads(json.dumps(conditions, default=str))
    found = json.loads(path.read_text()) if path.exists() else {entry: conditions, "rows": []}
    if found[entry] != conditions:
        raise ValueError(f"{path} holds results of {found[entry]}; choose another --workdir")
    return found


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Writes a table in Markdown, its cells as they are."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])


def plus_minus(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    """Writes a mean and a standard deviation, each in the format `form`."""
    mean, std = values
    return f"{scale * mean:{form}} +- {scale * std:{form}}"
