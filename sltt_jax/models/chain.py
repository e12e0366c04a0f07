"""Layers of a Linen network in the order in which they are called, and what its code does between them.

What a network does outside of its layers, such as pooling, is not written down anywhere. Here every layer is
answered with numbers of its own instead of what it would put out: what becomes of them until the next layer
tells what stands between.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.cell_layers import Cells, Recurrent
from sltt_jax.layers import NormedConv, ScaledWSConv, StepBatchNorm

WEIGHTS = nn.Dense, nn.Conv, NormedConv, ScaledWSConv
_LAYERS = *WEIGHTS, StepBatchNorm, Cells, Recurrent


class Call(NamedTuple):
    """One layer of a network as it was called.

    Attributes:
      path: its name, and those of the modules that it is in.
      module: the layer, of which only the attributes are good for anything.
      given: stands for what it was given in one step, without the batch, `[..., C]`.
      answer: stands for what it put out, `[..., C]`.
    """

    path: tuple[str, ...]
    module: Any
    given: np.ndarray
    answer: np.ndarray

    @property
    def name(self) -> str:
        """Name of the layer for people: "layer1_0/conv1"."""
        return "/".join(self.path)


class Between(NamedTuple):
    """What a network does between two layers.

    Attributes:
      pool: "avg" or "sum" of windows side by side, or None.
      window: pixels a side of these windows.
      flatten: a map `[H, W, C]` becomes `[H * W * C]`, channels last.
    """

    pool: str | None = None
    window: int = 1
    flatten: bool = False


class Calls(NamedTuple):
    """Layers of a network in the order in which they were called.

    Attributes:
      first: stands for the input of one step, `[..., C]`.
      layers: the layers.
      last: stands for the output.
    """

    first: np.ndarray
    layers: list[Call]
    last: np.ndarray


def calls(model: nn.Module, x: jax.Array) -> Calls:
    """Runs a network, as in evaluation, with numbers in place of what its layers put out.

    Args:
      model: the network.
      x: the input of one step, `[B, ...]`; only its shape matters.

    Raises:
      ValueError: it has weights that are in no layer of `sltt_jax.layers`, drops out in evaluation, or
        calls a layer twice.
    """
    shapes = jax.eval_shape(lambda: _run(model, jnp.zeros((1, 1, *x.shape[1:])), None)[0])
    rng = np.random.default_rng(0)
    # Whole numbers are exact in sums and in bfloat16.
    numbers = lambda a: rng.integers(-100, 100, a.shape).astype(a.dtype)
    first, answers = numbers(np.zeros((1, 1, *x.shape[1:]), np.float32)), [numbers(a) for a in shapes.answers]
    layers = []

    def run(first, answers):  # as arguments, or XLA would compute with them while it compiles
        seen, found = _run(model, first, answers)
        layers.extend(found)
        return seen

    seen = jax.device_get(jax.jit(run)(first, answers))
    one = lambda a: np.asarray(a, np.float32)[0, 0]
    found = [
        Call(layer.path, layer, one(given), one(answer))
        for layer, given, answer in zip(layers, seen.given, answers, strict=True)
    ]
    return Calls(one(first), found, one(seen.out))


class _Seen(NamedTuple):
    """What every layer was given, what it put out, and what the network did, `[1, 1, ...]` each."""

    given: list[jax.Array]
    answers: list[jax.Array]
    out: jax.Array


def _run(model, first, answers):
    """Runs a network whose layers put out `answers`, or what they would; returns a `_Seen` and the layers."""
    layers, given, own = [], [], []
    inside = False  # of a layer, which may have others in it

    def intercept(call, args, kwargs, context):
        nonlocal inside
        layer = context.module
        if inside or context.method_name != "__call__":
            return call(*args, **kwargs)
        if not isinstance(layer, _LAYERS):
            return _pass(call, args, kwargs, layer)
        inside = True
        try:
            ys = call(*args, **kwargs)
        finally:
            inside = False
        if layer.path in [other.path for other in layers]:
            raise ValueError(f"{'/'.join(layer.path)} is called twice")
        y, *beside = ys if isinstance(ys, tuple) else (ys,)
        answer = y if answers is None else answers[len(layers)]
        layers.append(layer)
        given.append(args[0])
        own.append(y)
        return (answer, *beside) if beside else answer

    with nn.intercept_methods(intercept):
        out, _ = model.init_with_output(jax.random.key(0), first, train=False, temporal_gradient=True)
    return _Seen(given, own if answers is None else answers, out), layers


def _pass(call, args, kwargs, module):
    """Calls a module that is no layer, having made sure that it is nothing more than what is in it."""
    name, kind = "/".join(module.path) or "the network", type(module).__name__
    if isinstance(module, nn.Dropout):
        still = kwargs.get("deterministic", args[1] if len(args) > 1 else module.deterministic)
        if not still and module.rate > 0:
            raise ValueError(f"{name} drops out also when train=False: {kind} must be deterministic then")
    ys = call(*args, **kwargs)
    own = [key for key, value in module.variables.get("params", {}).items() if isinstance(value, jax.Array)]
    if own:
        known = ", ".join(layer.__name__ for layer in _LAYERS)
        raise ValueError(f"{name} ({kind}) has weights of its own, {own}; layers that are known: {known}")
    return ys


def between(before: np.ndarray, after: np.ndarray) -> Between | None:
    """Finds what makes `after`, which a layer was given, of the answer `before`; None if it is not known."""
    if before.shape == after.shape and np.array_equal(before, after):
        return Between()
    if before.ndim == 1:
        return None
    height, width, channels = before.shape if before.ndim == 3 else (0, 0, 0)
    for window in range(1, min(height, width) + 1):
        rows, columns = height // window, width // window
        if rows * columns * channels != after.size:
            continue
        whole = before[: rows * window, : columns * window]
        sums = whole.reshape(rows, window, columns, window, channels).sum((1, 3))
        for pool, pooled in (("avg", sums / window**2), ("sum", sums)):
            flatten = after.ndim == 1
            if after.shape in (pooled.shape, (pooled.size,)) and np.allclose(
                pooled.reshape(after.shape), after, rtol=1e-5, atol=1e-3
            ):
                return Between(pool if window > 1 else None, window, flatten)
    return None


def chain(called: Calls) -> list[tuple[Between, Call | None]]:
    """Lists the layers of a network in which each is given what the one before it puts out.

    Returns:
      What stands before each layer, and the layer; at the end what stands before the output, and None.

    Raises:
      ValueError: the network is another one than a chain, and the message names the layer where it is not.
    """
    links, answer, previous = [], called.first, "the input"
    for call in called.layers:
        links.append((_one_after_the_other(answer, call.given, previous, call.name), call))
        answer, previous = call.answer, call.name
    links.append((_one_after_the_other(answer, called.last, previous, "the output"), None))
    return links


def _one_after_the_other(answer, given, previous, name) -> Between:
    found = between(answer, given)
    if found is None:
        raise ValueError(
            f"{name} is given {given.shape}, which is not what {previous} puts out, {answer.shape}, as it "
            "is, flattened, or pooled by means or sums of windows side by side: shortcuts, maxima, other "
            "windows and factors between layers are not known"
        )
    return found
