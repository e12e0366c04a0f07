"""Launches of a device, and the time that each takes, from a profile of JAX."""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Where a profile has what ran: the name of the plane, and how the names of its lines begin. That of a CPU has
# the parts of a program that the client's threads ran, for want of launches.
PLACES = {"gpu": ("/device:GPU", "Stream"), "cpu": ("/host:CPU", "tf_XLAPjRtCpuClient")}
MOST_KERNELS = 30


def profile(update: Callable[[], object], updates: int = 3) -> dict[str, Any]:
    """Profiles an update that waits for the device.

    Args:
      update: is called `updates` times; it has been compiled and run before.
      updates: over which the figures are averaged.

    Returns:
      "launches" and "device_ms" of an update, copies within the device among them, and "kernels", those that
      take the most: `[name, launches, ms]`.

    Raises:
      ValueError: it is not known where the profiles of this platform have their launches.
      RuntimeError: the profile has none.
    """
    platform = jax.default_backend()
    if platform not in PLACES:
        raise ValueError(f"profiles of {', '.join(PLACES)} are understood, got one of {platform}")
    plane_name, line_name = PLACES[platform]
    counts: dict[str, int] = defaultdict(int)
    nanoseconds: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(updates):
                update()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines if plane.name.startswith(plane_name) else ():
                for event in line.events if line.name.startswith(line_name) else ():
                    counts[event.name] += 1
                    nanoseconds[event.name] += event.duration_ns
    if not counts:
        raise RuntimeError(f"the profile has nothing that ran on the {platform}")
    longest = sorted(counts, key=lambda name: -nanoseconds[name])[:MOST_KERNELS]
    ms = lambda total: round(total / updates / 1e6, 4)
    return {
        "launches": round(sum(counts.values()) / updates, 1),
        "device_ms": ms(sum(nanoseconds.values())),
        "kernels": [
            [name[:100], round(counts[name] / updates, 1), ms(nanoseconds[name])] for name in longest
        ],
    }
