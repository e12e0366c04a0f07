"""Half precision: what is computed in it, what is not, and the scaling of the loss that float16 needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import losses, training
from sltt_jax.data import encoders
from sltt_jax.models import MLP, ConvNet
from sltt_jax.rules import bptt, sltt, sltt_k
from sltt_jax.training.loss_scale import FIRST, GROWTH_INTERVAL, LossScale, adjust, initial_loss_scale

LOSS = losses.classification()
OPTIMIZER = training.make_optimizer("sgd", 0.1, weight_decay=0.0)
ENCODE = encoders.direct(3)
MODELS = {
    "mlp": lambda dtype: MLP((16,), 3, dtype=dtype),
    "convnet": lambda dtype: ConvNet((4,), 3, dtype=dtype),
}
SHAPES = {"mlp": (12,), "convnet": (6, 6, 2)}


def batch(name, scale=1.0):
    rng = np.random.default_rng(0)
    return {"x": (scale * rng.normal(size=(8, *SHAPES[name]))).astype(np.float32), "y": rng.integers(0, 3, 8)}


def update_of(name, dtype, rule=sltt()):  # noqa: B008
    return training.make_update(MODELS[name](dtype), rule, LOSS, OPTIMIZER, ENCODE)


@functools.cache
def state_of(name, dtype, scaled):
    x = batch(name)["x"]
    return training.init_state(
        MODELS[name](dtype), OPTIMIZER, ENCODE, jax.random.key(0), x, scale_loss=scaled
    )


def operand_types(jaxpr):
    """The types of all operands of convolutions and matrix products, also in loops and branches.

    The average of running statistics is that of a vector, and always in single precision.
    """
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            if all(v.aval.ndim > 1 for v in equation.invars):
                found |= {str(v.aval.dtype) for v in equation.invars}
        for sub in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                found |= operand_types(sub)
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "rule"),
    [
        *(("mlp", dtype, sltt()) for dtype in (jnp.bfloat16, jnp.float16, jnp.float32)),
        pytest.param("convnet", jnp.bfloat16, sltt(), marks=pytest.mark.slow),
        pytest.param("convnet", jnp.float16, sltt(), marks=pytest.mark.slow),
        pytest.param("convnet", jnp.float32, sltt(), marks=pytest.mark.slow),
        pytest.param("convnet", jnp.bfloat16, bptt(), marks=pytest.mark.slow),
        pytest.param("convnet", jnp.float16, sltt_k(1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_products_are_in_half_precision_and_all_else_is_not(name, dtype, rule):
    scaled = dtype == jnp.float16
    update = jax.jit(update_of(name, dtype, rule))
    state = state_of(name, dtype, scaled)
    assert operand_types(update.trace(state, batch(name)).jaxpr) == {jnp.dtype(dtype).name}
    new, metrics = update(state, batch(name))
    for tree in (new.params, new.variables, new.opt_state, metrics):
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
        assert kinds <= {"float32", "int32"}, kinds
    changed = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, state.params)
    assert min(jax.tree.leaves(changed)) > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gradient_is_near_that_of_single(dtype):
    """The norm of the gradient agrees to some bits, and not to all."""
    norms = []
    for kind in (dtype, jnp.float32):
        state = state_of("mlp", kind, kind == jnp.float16)
        norms.append(float(jax.jit(update_of("mlp", kind))(state, batch("mlp"))[1].grad_norm))
    assert 0 < abs(norms[0] / norms[1] - 1) < 0.05


def test_scale_falls_at_once_and_grows_slowly():
    scale = initial_loss_scale()
    assert scale.scale == FIRST == 2**15
    scale = adjust(scale, jnp.asarray(False))
    assert (scale.scale, scale.good) == (FIRST / 2, 0)
    for _ in range(3):
        scale = adjust(scale, jnp.asarray(True))
    assert (scale.scale, scale.good) == (FIRST / 2, 3)
    almost = LossScale(scale.scale, jnp.asarray(GROWTH_INTERVAL - 1, jnp.int32))
    assert adjust(almost, jnp.asarray(True)) == (FIRST, 0)
    assert adjust(almost, jnp.asarray(False)) == (FIRST / 4, 0)


def test_an_update_that_overflows_is_left_out():
    """2^40 is beyond float16: no parameter changes, the scale is halved, the next one is tried with that."""
    update = jax.jit(update_of("mlp", jnp.float16))
    state = state_of("mlp", jnp.float16, True)
    huge = state._replace(loss_scale=LossScale(jnp.asarray(2.0**40, jnp.float32), jnp.zeros((), jnp.int32)))
    new, metrics = update(huge, batch("mlp"))
    assert new.step == 1 and metrics.grad_norm == 0 and np.isfinite(metrics.loss)
    assert new.loss_scale.scale == 2.0**39
    assert training.sha256([new.params, new.opt_state]) == training.sha256([state.params, state.opt_state])
    # The control: the same batch at the usual scale does change them.
    new, metrics = update(state, batch("mlp"))
    assert metrics.grad_norm > 0 and new.loss_scale == (FIRST, 1)
    assert training.sha256(new.params) != training.sha256(state.params)


@pytest.mark.slow
def test_scaling_keeps_gradients_that_float16_would_lose():
    """Without it the error of a network's outputs falls below 2^-24 and its gradient is zero."""
    small = lambda outputs, target: 1e-7 * LOSS(outputs, target)
    model = MODELS["mlp"](jnp.float16)
    update = jax.jit(training.make_update(model, sltt(), small, OPTIMIZER, ENCODE))
    norm = lambda state: float(update(state, batch("mlp"))[1].grad_norm)
    scaled, plain = (norm(state_of("mlp", jnp.float16, scaled)) for scaled in (True, False))
    exact = jax.jit(training.make_update(MODELS["mlp"](None), sltt(), small, OPTIMIZER, ENCODE))
    expected = float(exact(state_of("mlp", jnp.float32, False), batch("mlp"))[1].grad_norm)
    assert scaled == pytest.approx(expected, rel=0.05)
    assert plain < 0.5 * expected
