"""Contract of a loss in updates and evaluations: it is a mean over the samples of a batch.

    step_loss(outputs, target) = 1/B sum_b step_loss(outputs[b:b+1], target[b:b+1])

An evaluation takes the loss of one sample at a time, to leave padding out, and devices average theirs. Of any
other loss (a sum over the batch, or a mean over the sum of class weights) both would silently be another
number than that of an update on one device. So each loss is held against it when a program is traced.
"""

import weakref
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from sltt_jax import losses
from sltt_jax.blocks import PyTree
from sltt_jax.rules import StepLoss

# Samples that a loss is compared on; enough that a sum or a wrong mean shows.
_SAMPLES = 4

# What each loss has been held against already: a check costs a small program.
_PASSED: weakref.WeakKeyDictionary[Callable, set] = weakref.WeakKeyDictionary()


def checked(step_loss: StepLoss) -> StepLoss:
    """Makes a loss check its contract, and its targets, when it is traced.

    Raises:
      ValueError: (when it is called) there is no sample, an array of the target is not `[B, ...]`, the loss
        is no scalar, or no mean over the samples, or it knows nothing of the weights that there are.
    """
    check = _once(step_loss)

    def loss(outputs, target):
        check(outputs, target)
        return step_loss(outputs, target)

    return loss


def of_each(step_loss: StepLoss) -> Callable[[PyTree, PyTree], jax.Array]:
    """Makes of a loss that of each sample by itself, `[B]`, which checks as `checked` does."""
    check = _once(step_loss)

    def losses_of(outputs, target):
        check(outputs, target)
        return _of_each(step_loss, outputs, target)

    return losses_of


def _of_each(step_loss, outputs, target):
    return jax.vmap(lambda *one: step_loss(*jax.tree.map(lambda a: a[None], one)))(outputs, target)


def _once(step_loss):
    """Builds a check of outputs and target that compares nothing where it has seen their shapes and types."""
    try:
        passed = _PASSED.setdefault(step_loss, set())
    except TypeError:  # it has no hash, or takes no weak reference
        passed = set()

    def check(outputs, target):
        _check_samples(outputs, target)
        leaves, form = jax.tree.flatten((outputs, target))
        seen = form, *((jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves)
        if seen not in passed:
            _check_mean(step_loss, outputs, target)
            passed.add(seen)

    return check


def _check_samples(outputs, target):
    B = jax.tree.leaves(outputs)[0].shape[0]
    if not B:
        raise ValueError("a batch must hold at least one sample, got none")
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
        if jnp.shape(leaf)[:1] != (B,):
            raise ValueError(
                f"target{jax.tree_util.keystr(path)} must be an array [B, ...] of B={B} samples, got shape "
                f"{jnp.shape(leaf)}; weights of classes go in as those of their samples, "
                '{"y": y, "weight": of_classes[y]}, with losses.weighted'
            )


def _check_mean(step_loss, outputs, target):
    """Compares the loss of made-up samples with the mean of theirs."""
    rng = np.random.default_rng(0)
    classes = max([2, *(o.shape[-1] for o in jax.tree.leaves(outputs) if o.ndim > 1)])

    def made_up(leaf):
        """Whole numbers that are class numbers, and others between 0 and 1, of which there are logarithms."""
        shape = _SAMPLES, *leaf.shape[1:]
        if jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool:
            return np.resize(np.arange(classes), shape).astype(leaf.dtype)
        return rng.uniform(size=shape).astype(leaf.dtype)

    samples = jax.tree.map(made_up, (outputs, target))
    both = jax.jit(lambda o, y: (step_loss(o, y), _of_each(step_loss, o, y)))
    try:
        # Of numbers, also within a program that is traced; rounding must not look like another loss, and
        # what is not a number here is none of the user's.
        with (
            jax.ensure_compile_time_eval(),
            jax.default_matmul_precision("highest"),
            jax.debug_nans(False),
            jax.debug_infs(False),
        ):
            whole, each = both(*jax.device_put(samples))
    except (AttributeError, TypeError, ValueError, AssertionError) as error:
        if losses.split_weight(target)[1] is None:
            raise
        raise ValueError(
            f'step_loss fails on a target with weights, {{"y", "weight"}}: {type(error).__name__}: {error}. '
            "One that takes them is losses.weighted(loss), of loss(outputs, y, weight)"
        ) from error
    if whole.ndim:
        raise ValueError(f"step_loss must return a scalar for one step, got shape {whole.shape}")
    if isinstance(whole, core.Tracer):
        return  # a loss that is itself made of traced numbers, as of a vmap over its settings
    half = any(a.dtype.itemsize < 4 for a in (whole, *jax.tree.leaves(samples[0])))
    whole, each = (np.asarray(a, np.float64) for a in jax.device_get((whole, each)))
    # What is not a number does not differ: there the made-up samples are none of this loss.
    if abs(whole - each.mean()) > (0.1 if half else 1e-3) * abs(each).mean():
        raise ValueError(
            f"the loss of {len(each)} samples is {whole:.4g}, and the mean of theirs is {each.mean():.4g}: "
            "step_loss must be a mean over the samples of a batch, since an evaluation takes it of one at a "
            "time and devices average theirs. Weights of samples or classes go in as "
            '{"y": y, "weight": weight}, with losses.weighted'
        )
