"""Trained networks that come with the package.

    net = load_pretrained("digits")
    logits, _ = run(functional.applier(net.model, train=False), net.params, net.at_rest(x), Repeat(x, net.T))

What is trained here goes to a file of the same kind with `write_weights`.
"""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sltt_jax import functional
from sltt_jax.blocks import PyTree
from sltt_jax.models.convnet import ConvNet
from sltt_jax.neurons import Neuron

__all__ = ["PRETRAINED", "Pretrained", "Source", "load_pretrained", "read_weights", "write_weights"]

_FOLDER = Path(__file__).parent / "weights"


class Source(NamedTuple):
    """What is known of a trained network before its file is read.

    Attributes:
      model: the network; what it takes is said by `load_pretrained`.
      T: steps that it was trained and tested with.
      correct, tested: test samples that it classifies correctly over T steps, and all of them, as its run
        measured it on a CPU; rounding elsewhere may tip single ones.
      sha256: of its file.
    """

    model: nn.Module
    T: int
    correct: int
    tested: int
    sha256: str


class Pretrained(NamedTuple):
    """A trained network.

    Attributes:
      model: the network; what it takes is said by `load_pretrained`.
      params: its parameters, float32.
      statistics: its running statistics, as a part of a state.
      T: steps that it was trained and tested with.
      accuracy: share of the test samples that it classifies correctly.
    """

    model: nn.Module
    params: PyTree
    statistics: PyTree
    T: int
    accuracy: float

    def at_rest(self, x: jax.Array) -> PyTree:
        """Makes the state before the first step, for the input `x` of one step, `[B, H, W, C]`."""
        return functional.at_rest(self.model, self.statistics, x)


PRETRAINED = {
    # python experiments/train.py digits --rule sltt --T 6 --epochs 20
    "digits": Source(
        ConvNet((32, 64), 10, Neuron(tau=1.1)),
        6,
        356,
        360,
        "3020f6c3155edd67fc23c91fd6eb70870c5ad446b93be8592a03f632325f8da5",
    ),
    # python experiments/train.py mnist --rule sltt --epochs 2 --train-samples 24000
    "mnist": Source(
        ConvNet((32, 64), 10, Neuron(tau=1.1)),
        4,
        9852,
        10_000,
        "466a0cc05d2753ce28ae71adc9b93574b7e402a6aa98e5a4b626736400c42c4e",
    ),
    # python experiments/train.py nmnist --rule sltt --epochs 10 --features 16 32 64
    # on 1,000 of the 60,000 recordings for training, and 100 of the 10,000 for testing
    "nmnist": Source(
        ConvNet((16, 32, 64), 10, Neuron(tau=1.1)),
        10,
        97,
        100,
        "4d089415c479a86247aa153921295aaa9cd4fcd866168ee6f0d472517b5e1720",
    ),
}


def load_pretrained(name: str) -> Pretrained:
    """Loads a trained network that comes with the package.

    Args:
      name: a small convolutional network, trained by SLTT. "digits", of the 8x8 digits of scikit-learn
        (`data.load_digits`), and "mnist" take images in 0..1, `[T, B, 8, 8, 1]` and `[T, B, 28, 28, 1]`, the
        same at each step; "nmnist" takes the frames of `data.events.cameras.load_nmnist`, time first,
        `[T, B, 34, 34, 2]`, whose numbers of events it takes as they are.

    Raises:
      ValueError: there is no such network, or its file is damaged.
      OSError: its file is missing or cannot be read.
    """
    if name not in PRETRAINED:
        raise ValueError(f"no trained network {name!r}; there are {', '.join(PRETRAINED)}")
    source = PRETRAINED[name]
    params, statistics = read_weights(_FOLDER / f"{name}.npz", sha256=source.sha256)
    return Pretrained(source.model, params, statistics, source.T, source.correct / source.tested)


def write_weights(path: str | os.PathLike, params: PyTree, statistics: PyTree) -> str:
    """Writes parameters and running statistics to an `.npz`, which needs NumPy alone to be read.

    Args:
      path: the file, overwritten if there is one.
      params, statistics: nested dicts of arrays, as `functional.init` and `models.torch_weights` return them;
        of a state, what goes on from batch to batch.

    Returns:
      The SHA-256 of the file, in hexadecimal; the same arrays always have the same.
    """
    flat: Any = flatten_dict({"params": params, "statistics": statistics}, sep="/")
    file = io.BytesIO()
    arrays: Any = {name: np.asarray(x) for name, x in flat.items()}
    np.savez(file, **arrays)
    Path(path).write_bytes(file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


def read_weights(path: str | os.PathLike, *, sha256: str | None = None) -> tuple[PyTree, PyTree]:
    """Reads `(params, statistics)` of a file by `write_weights`, NumPy arrays; nothing in it is executed.

    Args:
      path: the file.
      sha256: what its checksum must be; None: it is not compared.

    Raises:
      ValueError: the file is another one than `sha256` says, or none by `write_weights`.
      OSError: it is missing or cannot be read.
    """
    content = Path(path).read_bytes()
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is {found}, not {sha256}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            nested = unflatten_dict({tuple(name.split("/")): arrays[name] for name in arrays.files})
    except (zipfile.BadZipFile, AttributeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a file of weights by write_weights, or damaged: {error}") from error
    if "params" not in nested:
        raise ValueError(f"{path} holds no params; it has {', '.join(nested) or 'nothing'}")
    return nested["params"], nested.get("statistics", {})
