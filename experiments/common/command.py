"""Everything that the scripts have in common: settings, errors, exit status, and files of results."""

import dataclasses
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro
from tqdm import tqdm

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
      for a command line that cannot be. A list of settings must not be empty unless it is so by default.
    """

    def decorate(body):
        @functools.wraps(body)
        def main() -> int:
            given, requests, status = None, None, 0
            try:
                if isinstance(settings, Mapping):
                    given = tyro.extras.overridable_config_cli(dict(settings), description=manual)
                else:
                    given = tyro.cli(settings, description=manual)
                _check_lists(given)
                with training.StopRequests(at_once=True) as requests:
                    if xla is not None:
                        xla()
                    body(given)
            except (FloatingPointError, MemoryError, OSError, ValueError) as error:
                tqdm.write(f"error: {error}", file=sys.stderr)  # not on the line of a progress bar
                status = 1
            except KeyboardInterrupt:
                number = (requests and requests.noted) or signal.SIGINT
                print(f"\nstopped by {number.name}", file=sys.stderr)
                status = 128 + number
            except training.Stopped as error:
                again = " without --overwrite" if getattr(given, "overwrite", False) else ""
                print(f"\n{error}; the same command{again} resumes it", file=sys.stderr)
                return 128 + error.signal
            if status and jax.distributed.is_initialized():
                training.leave(status)
            return status

        return main

    return decorate


def _check_lists(settings):
    for field in dataclasses.fields(settings):
        if getattr(settings, field.name) == () != field.default:
            raise ValueError(f"{field.name} needs at least one value")


def check_numbers(settings: Any, *names: str, least: float = 1, most: float = math.inf):
    """Raises a ValueError if one of these settings, or an entry of it, is not in least..most; None may be."""
    for name in names:
        value = getattr(settings, name)
        entries = value if isinstance(value, tuple) else (value,)
        if not all(least <= entry <= most for entry in entries if entry is not None):
            bounds = f">= {least:g}" if most == math.inf else f"in {least:g}..{most:.10g}"
            what = "numbers " if isinstance(value, tuple) else ""
            raise ValueError(f"{name} must be {what}{bounds}, got {value}")


def read_json(path: Path) -> Any:
    """Reads a file.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_json(path: Path, content: Any):
    """Writes a file that is either the old or the new one, whatever happens in between."""
    training.write_text(path, json.dumps(content, indent=2) + "\n")


def write_results(folder: Path, name: str, content: Any, table: str):
    """Writes `<name>.json` and `<name>.md`, the numbers and their table."""
    write_json(folder / f"{name}.json", content)
    training.write_text(folder / f"{name}.md", table + "\n")


def resumed(path: Path, entry: str, conditions: dict) -> dict:
    """Reads the results that are in a file already, or makes empty ones: `{entry: conditions, "rows": []}`.

    Raises:
      ValueError: they were found under other conditions, or the file is damaged or of something else.
    """
    conditions = json.loads(json.dumps(conditions, default=str))
    found = read_json(path) if path.exists() else {entry: conditions, "rows": []}
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise ValueError(f"{path} holds no such results; choose another --workdir")
    if found.get(entry) != conditions:
        raise ValueError(f"{path} holds results of {found.get(entry)}; choose another --workdir")
    return found


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Writes a table in Markdown, its cells as they are."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])


def plus_minus(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    """Writes a mean and a standard deviation, each in the format `form`."""
    mean, std = values
    return f"{scale * mean:{form}} +- {scale * std:{form}}"
