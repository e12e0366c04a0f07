"""Parameters of neurons that cannot be, pytrees that hold neurons, and calls that cannot be traced."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import Neuron, lif, lif_step, surrogate


@pytest.mark.parametrize(
    "kind", [float, np.float32, np.array, jnp.array], ids=["float", "numpy", "array", "jax"]
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.5}, "tau must be >= 1 .* got 0.5"),
        ({"tau": 0.0}, "tau must be >= 1 .* got 0"),
        ({"tau": -3.0}, "tau must be >= 1 .* got -3"),
        ({"tau": math.nan}, "tau must be >= 1 .* got nan"),
        ({"v_threshold": -1.0}, "v_threshold must be > 0, got -1"),
        ({"v_reset": 1.5}, "v_reset must be below v_threshold=1.0, got 1.5"),
        ({"v_reset": -math.inf}, "v_reset must be finite, got -inf"),
        ({"tau": math.inf, "decay_input": True}, "tau=inf"),
    ],
)
def test_numbers_outside_their_range(settings, message, kind):
    settings = {k: v if isinstance(v, bool) else kind(v) for k, v in settings.items()}
    with pytest.raises(ValueError, match=message):
        Neuron(**settings)


@pytest.mark.parametrize("nothing", [None, (), []], ids=str)
def test_a_membrane_is_an_array(nothing):
    with pytest.raises(
        ValueError, match=r"a membrane must be an array like the input of one step \(2, 3\), got"
    ):
        lif(nothing, jnp.ones((4, 2, 3)), Neuron(), temporal_gradient=False)


def test_one_entry_outside_its_range():
    with pytest.raises(ValueError, match=r"tau must be >= 1 .* got \[2.  0.5\]"):
        Neuron(tau=np.array([2.0, 0.5]))
    with pytest.raises(ValueError, match="v_reset must be below"):
        Neuron(v_reset=jnp.array([0.0, 0.7]), v_threshold=np.array([1.0, 0.5]))


def test_a_pytree_that_holds_a_neuron_is_rebuilt_around_anything():
    params = {"neuron": Neuron(tau=jnp.array([2.0, 4.0])), "w": jnp.ones(3)}
    mask = jax.tree.map(
        lambda leaf: leaf.ndim > 0, {**params, "neuron": Neuron(tau=jnp.ones(2), v_threshold=jnp.ones(()))}
    )
    assert mask["neuron"].tau is True and mask["neuron"].v_threshold is False
    axes = jax.tree.map(lambda _: 0, Neuron(tau=jnp.array([2.0, 4.0]), v_threshold=jnp.ones(2)))
    rates = jax.vmap(lambda n, x: lif_step(jnp.zeros(()), x, n)[1], (axes, None))(
        Neuron(tau=jnp.array([2.0, 4.0]), v_threshold=jnp.array([0.5, 2.0])), jnp.asarray(1.0)
    )
    chex.assert_trees_all_equal(rates, jnp.array([1.0, 0.0]))
    # One transformation for the neurons and another for the rest, as optax has it.
    labels = {"neuron": Neuron(tau="slow", v_threshold="slow"), "w": "fast"}
    optimizer = optax.multi_transform({"slow": optax.sgd(0.0), "fast": optax.sgd(1.0)}, labels)
    params["neuron"] = jax.tree.map(jnp.asarray, params["neuron"])
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params))
    chex.assert_trees_all_equal(updates["w"], -jnp.ones(3))
    chex.assert_trees_all_equal(updates["neuron"].tau, jnp.zeros(2))


@pytest.mark.parametrize(
    "v_threshold", [math.inf, np.inf, jnp.array([math.inf, math.inf])], ids=["number", "numpy", "array"]
)
@pytest.mark.parametrize("name", surrogate.SURROGATES)
def test_a_neuron_of_infinite_threshold_never_fires(v_threshold, name):
    neuron = Neuron(v_threshold=v_threshold, surrogate=surrogate.SURROGATES[name]())
    xs = jnp.full((5, 2), 100.0)
    v, spikes = lif(jnp.zeros(2), xs, neuron)
    chex.assert_trees_all_equal(spikes, jnp.zeros((5, 2)))
    chex.assert_trees_all_close(v, jnp.full(2, 193.75))  # the leak alone: 100 (1 + 1/2 + ... + 1/16)
    grads = jax.grad(lambda xs: lif(jnp.zeros(2), xs, neuron)[0].sum())(xs)
    chex.assert_trees_all_close(grads, jnp.repeat(0.5 ** jnp.arange(4.0, -1, -1)[:, None], 2, 1))


def test_the_type_of_a_membrane():
    half, single = jnp.zeros(3, jnp.bfloat16), jnp.ones((2, 3), jnp.float32)
    for call in (partial(lif, half, single), partial(lif_step, half, single[0])):
        with pytest.raises(
            ValueError, match="membrane of bfloat16 cannot hold currents of float32; start it as float32"
        ):
            call(Neuron())
    v, spikes = lif(half, single.astype(jnp.bfloat16), Neuron(tau=np.float64(2.0)))
    assert v.dtype == spikes.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        v, _ = lif(jnp.zeros(3, jnp.float32), single, Neuron(tau=np.float64(2.0)))
        assert v.dtype == jnp.float32


def test_a_list_of_steps_is_no_block():
    steps = [jnp.ones(3), jnp.ones(3)]
    with pytest.raises(ValueError, match=r"xs must be arrays .* got a list of 2: steps apart .* jnp.stack"):
        lif(jnp.zeros(3), steps, Neuron())  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"current must be one array, got a tuple of 2: steps apart .* jnp.stack"
    ):
        lif(jnp.zeros(()), tuple(steps), Neuron())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint])
def test_temporal_gradient_that_is_traced(transform):
    cell = transform(
        lambda v, xs, *, temporal_gradient: lif(v, xs, Neuron(), temporal_gradient=temporal_gradient)
    )
    with pytest.raises(ValueError, match="temporal_gradient must be True or False when a network is traced"):
        cell(jnp.zeros(3), jnp.ones((2, 3)), temporal_gradient=False)


def test_alpha_is_one_number():
    assert surrogate.triangle(jnp.float32(2.0)) == surrogate.triangle(np.float64(2)) == surrogate.triangle(2)
    for wrong, message in (
        (jnp.ones(2), "one number"),
        (math.inf, "finite, got inf"),
        (0, "> 0 and finite, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            surrogate.triangle(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="known when a network is traced"):
        jax.jit(lambda alpha: surrogate.sigmoid(alpha)(jnp.ones(2)))(1.0)


def test_spike_of_a_python_number():
    assert surrogate.triangle()(0.3) == 1 and surrogate.triangle()(-0.3) == 0  # pyright: ignore[reportArgumentType]
