"""A check of a network of one's own: that its `apply` cuts what a rule tells it to, and nothing else.

What is not cut goes unnoticed at chunk 1, where the rule itself makes the state a constant, and gives wrong
gradients at longer chunks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from sltt_jax.blocks import Apply, PyTree, Repeat, time_steps


class Finding(NamedTuple):
    """One promise of the contract that an `apply` does not keep.

    Attributes:
      what: a sentence.
      error: the largest difference, over the largest entry of what it should be.
    """

    what: str
    error: float


class BrokenApply(AssertionError):
    """Raised by `check_apply`, with all that it found in `findings`."""

    def __init__(self, findings: list[Finding]):
        super().__init__("\n".join(f"{f.what} (relative error {f.error:.1e})" for f in findings))
        self.findings = findings


def check_apply(
    apply: Apply, params: PyTree, state: PyTree, inputs: PyTree, *, tolerance: float | None = None
):
    """Checks a network against what the rules suppose of it, on a few steps, in its own precision.

    1. `temporal_gradient` changes no output and no state.
    2. Blocks of any length give the same outputs and states as single steps.
    3. Without temporal gradient no gradient enters through the state: each leaf of it that lets one in is
       named.
    4. Without temporal gradient the gradient of a block is the sum of those of its steps, each with the state
       before it as a constant; with it, it is that of the steps one after the other.

    For a test of your own, in double precision (`jax.enable_x64`) if rounding errors are in the way:

        def test_my_network():
            check_apply(apply, params, state, inputs)

    Args:
      apply, params, state, inputs: as for a rule; of the inputs the first four steps are taken, and there
        must be two.
      tolerance: relative error that is still rounding; by default the square root of what the coarsest type
        of the parameters resolves: 0.0003 in float32, 0.09 in bfloat16.

    Raises:
      BrokenApply: some of it does not hold.
      ValueError: there is a single step; or nothing can be told, since with temporal gradient none comes
        through the state to the outputs, although nothing cuts it: no neuron is near its threshold.
    """
    T = min(time_steps(inputs), 4)
    if T < 2:
        raise ValueError("check_apply needs at least two time steps, got T=1")
    xs = _first(inputs, T)
    found = jax.device_get(jax.jit(partial(_results, apply, T))(params, state, xs))
    bound = float(np.sqrt(jnp.finfo(_type_of(params)).eps)) if tolerance is None else tolerance
    findings = [finding for finding in _findings(found, T) if not finding.error <= bound]
    by_state = jax.tree.leaves(found[1, True].by_state)
    silent = bool(by_state) and not any(np.any(g) for g in by_state)
    if silent and not _leads_to_outputs(apply, params, state, xs):
        what = "with temporal gradient none enters through the state: all of it is cut always"
        findings.append(Finding(what, 1.0))
    if findings:
        raise BrokenApply(findings)
    if silent:
        raise ValueError(
            "check_apply can tell nothing: with temporal gradient none comes through the state to the "
            "outputs, although nothing cuts it. Neurons must be near their threshold, and some spike: take "
            "larger inputs or parameters, or a lower threshold"
        )


def _first(inputs, T):
    if isinstance(inputs, Repeat):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (T, *x.shape)), inputs.x)
    return jax.tree.map(lambda x: jnp.asarray(x)[:T], inputs)


def _type_of(params):
    """Returns the coarsest of the types of the parameters."""
    types = [jnp.result_type(p) for p in jax.tree.leaves(_floating(params))]
    return max(types, key=lambda t: jnp.finfo(t).eps, default=jnp.float32)


def _floating(tree):
    return jax.tree.map(lambda x: x if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else None, tree)


def _put_back(floating, tree):
    return jax.tree.map(lambda a, b: b if a is None else a, floating, tree, is_leaf=lambda x: x is None)


def _leads_to_outputs(apply, params, state, xs):
    """Says whether the outputs have a derivative by the first state, be it 0, with temporal gradient.

    What is cut has none: its derivative is not 0, but not there, and is seen without a number.
    """
    led = []

    @jax.custom_jvp
    def seen(outputs):
        return outputs

    def derive(primals, tangents):
        led.extend(type(t) is not SymbolicZero for t in jax.tree.leaves(tangents))
        return primals[0], jax.tree.map(jnp.zeros_like, primals[0])

    seen.defjvp(derive, symbolic_zeros=True)

    def outputs(floating):
        return seen(_floating(apply(params, _put_back(floating, state), xs, temporal_gradient=True)[0]))

    floating = _floating(state)
    jax.eval_shape(lambda x: jax.jvp(outputs, (x,), (x,)), floating)
    return any(led)


def _numbers(x):
    """Makes the key of a random generator numbers that can be compared."""
    return jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else x


class _Result(NamedTuple):
    """Of a weighted sum of all outputs: the forward pass, and the gradients by parameters and first state."""

    outputs: PyTree
    state: PyTree
    by_params: PyTree
    by_state: PyTree


def _results(apply, T, params, state, xs):
    """Returns a `_Result` for each `(size, temporal_gradient)`, in blocks of 1, of 2 and of all steps."""

    def result(size, temporal_gradient):
        def total(params, first):
            end, outputs = _put_back(first, state), []
            for at in range(0, T, size):
                if at and not temporal_gradient:
                    end = jax.lax.stop_gradient(end)  # as the rules do it between two blocks
                block = jax.tree.map(lambda x: x[at : at + size], xs)  # noqa: B023
                out, end = apply(params, end, block, temporal_gradient=temporal_gradient)
                outputs.append(out)
            outputs = jax.tree.map(lambda *o: jnp.concatenate(o), *outputs)
            weighted = [
                jnp.vdot(jax.random.normal(jax.random.key(i), o.shape), o)
                for i, o in enumerate(jax.tree.leaves(_floating(outputs)))
            ]
            return sum(weighted), (outputs, jax.tree.map(_numbers, end))

        grads, (outputs, end) = jax.grad(total, (0, 1), has_aux=True)(params, _floating(state))
        return _Result(outputs, end, *grads)

    return {(size, temporal): result(size, temporal) for size in (1, 2, T) for temporal in (True, False)}


def _findings(found, T):
    """Compares the results; yields everything, also what is equal."""
    exact, cut = found[1, True], found[1, False]
    for name in ("outputs", "state"):
        changed = max(_errors(getattr(cut, name), getattr(exact, name)).values(), default=0.0)
        yield Finding(f"temporal_gradient=False changes the {name}", changed)
    for size in sorted({2, T}):
        of_block = f"a block of {size} steps"
        for name in ("outputs", "state"):
            changed = max(
                _errors(getattr(found[size, True], name), getattr(exact, name)).values(), default=0.0
            )
            yield Finding(f"{of_block} gives other {name} than single steps", changed)
        for leaf, error in _errors(found[size, False].by_params, cut.by_params).items():
            yield Finding(
                f"without temporal gradient the gradient of params{leaf} in {of_block} is not the sum of its "
                "steps: something goes from step to step without lax.stop_gradient",
                error,
            )
        for leaf, error in _errors(found[size, True].by_params, exact.by_params).items():
            yield Finding(
                f"with temporal gradient the gradient of params{leaf} in {of_block} is not that of its steps",
                error,
            )
    for leaf, error in _errors(cut.by_state, exact.by_state, zero=True).items():
        yield Finding(
            f"without temporal gradient a gradient enters through state{leaf}: it needs lax.stop_gradient",
            error,
        )


def _errors(tree, reference, *, zero=False):
    """Returns the largest difference of each leaf over the largest entry of its reference.

    Where that is below a hundredth of the largest entry of all, it is over this hundredth: a bias before
    batch normalisation has a gradient of 0, and rounding noise agrees with nothing.
    """
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True)
    pairs = [(jax.tree_util.keystr(path), np.asarray(a), np.asarray(b)) for (path, a), b in pairs if a.size]
    largest = max((np.abs(b).max() for _, _, b in pairs), default=0.0) or 1.0
    # A NaN is no agreement.
    return {
        path: float(
            np.nan_to_num(np.abs(a - (0 if zero else b)).max(), nan=np.inf)
            / max(np.abs(b).max(), largest / 100)
        )
        for path, a, b in pairs
    }
