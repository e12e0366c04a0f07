import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import surrogate
from sltt_jax.surrogate import SURROGATES, Surrogate
from tests.common.surrogates import DERIVATIVES

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")
every = pytest.mark.parametrize("name", SURROGATES)


def derivative(spike, x):
    return np.asarray(jax.jit(jax.vmap(jax.grad(spike)))(jnp.asarray(x, jnp.float64)))


@every
def test_spike_is_the_step_function(name, compiled):
    spike = compiled(SURROGATES[name]())
    x = jnp.asarray([-1.0, -1e-12, 0.0, 1e-12, 1.0])
    chex.assert_trees_all_equal(spike(x), np.asarray([0.0, 0.0, 1.0, 1.0, 1.0]))
    for dtype in (jnp.float32, jnp.bfloat16):
        chex.assert_type(spike(x.astype(dtype)), dtype)


@every
def test_derivative_at_hand_computed_points(name, compiled):
    peak, half_width, right, left = DERIVATIVES[name]
    edges = half_width * (1 - 1e-9), half_width * (1 + 1e-9)
    slope = compiled(jax.vmap(jax.grad(SURROGATES[name]())))
    *got, inside, outside = slope(jnp.asarray([0.0, 0.25, -0.4, *edges])).tolist()
    np.testing.assert_allclose(got, [peak, right, left], rtol=1e-12)
    assert inside >= peak / 2 * (1 - 1e-8) and outside <= peak / 2 * (1 + 1e-8)


@every
def test_derivative_is_even_and_alpha_narrows_it(name):
    x = np.linspace(0, 2, 51)
    wide, narrow = (derivative(SURROGATES[name](alpha), np.concatenate([x, -x])) for alpha in (0.5, 3.0))
    for slope in (wide, narrow):
        np.testing.assert_allclose(slope[:51], slope[51:], rtol=1e-12)
    at_one = np.searchsorted(x, 1.0)
    assert narrow[at_one] / narrow[0] < wide[at_one] / wide[0]


@pytest.mark.parametrize("name", ["triangle", "rectangle", "sigmoid", "atan"])
def test_unit_area(name):
    x = np.linspace(-2000, 2000, 4_000_001)
    for alpha in (1.0, 2.0):
        area = np.trapezoid(derivative(SURROGATES[name](alpha), x), x)
        np.testing.assert_allclose(area, 1, atol=2e-3)


def test_forward_mode_and_a_derivative_of_your_own(compiled):
    spike = Surrogate(lambda x, alpha: jnp.exp(-alpha * x**2), alpha=2.0)
    push = compiled(lambda x, dx: jax.jvp(spike, (x,), (dx,)))
    value, tangent = push(jnp.asarray(0.5), jnp.asarray(3.0))
    assert value == 1 and np.isclose(tangent, 3 * np.exp(-0.5))


def test_equal_surrogates_are_equal_and_alpha_is_positive():
    assert surrogate.atan(2.0) == surrogate.atan() and hash(surrogate.atan(2.0)) == hash(surrogate.atan())
    assert surrogate.atan() != surrogate.sigmoid(2.0)
    for alpha in (-1, 0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"alpha must be > 0.* got {alpha}"):
            surrogate.triangle(alpha)
