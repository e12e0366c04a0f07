"""Checkpoints to be saved and damaged."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.training import Checkpoints

# Where Orbax keeps what is saved beside the arrays.
METADATA = "_CHECKPOINT_METADATA"


class Momentum(NamedTuple):
    count: jax.Array
    trace: dict


def parts(n):
    """Parts of a state as they come, with values that depend on `n`."""
    rng = np.random.default_rng(n)
    # Long enough, and random, so that its values are in a file of their own.
    w = jnp.asarray(rng.normal(size=(40, 50)), jnp.float32)
    return {
        "params": {"w": w, "b": jnp.full(3, n, jnp.bfloat16)},
        "opt_state": (Momentum(jnp.int32(n), {"w": -w, "b": jnp.zeros(3)}), ()),
        "step": jnp.int32(n),
        "key": jax.random.key(n),
        "variables": {},
        "loss_scale": None,
    }


def save(workdir, *numbers, keep=2, scores=None):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for n in numbers:
            checkpoints.save(n, parts(n), {"epoch": n}, score=None if scores is None else scores[n])
    return checkpoints.numbers


def load(workdir, like=None):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load(like or parts(0))


# How files get damaged.
KINDS = {
    "flipped": lambda path: change(path, lambda old: old[: len(old) // 2] + flip(old[len(old) // 2 :])),
    "truncated": lambda path: change(path, lambda old: old[: len(old) // 2]),
    "emptied": lambda path: change(path, lambda old: b""),
    "zeros": lambda path: change(path, lambda old: bytes(len(old))),
    "deleted": Path.unlink,
}


def flip(old):
    return bytes([old[0] ^ 1]) + old[1:] if old else b""


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def edit(part, value):
    """Changes an entry of what is saved beside the arrays, in a file that is well formed afterwards."""

    def damage(checkpoint):
        path = checkpoint / METADATA
        content = json.loads(path.read_text())
        content["custom_metadata"][part] = value
        path.write_text(json.dumps(content))

    return damage


def values(checkpoint):
    """The file that holds the values of the largest array."""
    return max((checkpoint / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
