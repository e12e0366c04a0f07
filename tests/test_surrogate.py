from math import acosh, cosh, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import surrogate
from sltt_jax.surrogate import SURROGATES, Surrogate

pytestmark = pytest.mark.usefixtures("x64")
every = pytest.mark.parametrize("name", SURROGATES)

# name: peak, half width at half maximum, value at x = 0.25 and at x = -0.4; the defaults, worked out by hand.
TABLE = {
    "triangle": (1.0, 0.5, 0.75, 0.6),
    "rectangle": (1.0, 0.5, 1.0, 1.0),
    "sigmoid": (
        1.0,
        acosh(sqrt(2)) / 2,
        cosh(0.5) ** -2,
        cosh(0.8) ** -2,
    ),  # 4 s(4x) (1 - s(4x)) = sech^2(2x)
    "atan": (1.0, 1 / pi, 1 / (1 + (pi / 4) ** 2), 1 / (1 + (0.4 * pi) ** 2)),
    "fast_sigmoid": (1.0, 0.20710678118654757, 4 / 9, 0.30864197530864196),
}


def derivative(spike, x):
    return jax.vmap(jax.grad(spike))(jnp.asarray(x, jnp.float64))


@every
def test_spike_is_the_step_function(name):
    spike = SURROGATES[name]()
    x = jnp.asarray([-1.0, -1e-12, 0.0, 1e-12, 1.0])
    np.testing.assert_array_equal(spike(x), [0, 0, 1, 1, 1])
    for dtype in (jnp.float32, jnp.bfloat16):
        assert spike(x.astype(dtype)).dtype == dtype


@every
def test_derivative_at_hand_computed_points(name):
    peak, half_width, quarter, left = TABLE[name]
    got = derivative(SURROGATES[name](), [0.0, 0.25, -0.4])
    np.testing.assert_allclose(got, [peak, quarter, left], rtol=1e-12)
    inside, outside = derivative(SURROGATES[name](), [half_width * (1 - 1e-9), half_width * (1 + 1e-9)])
    assert inside >= peak / 2 * (1 - 1e-8) and outside <= peak / 2 * (1 + 1e-8)


@every
def test_derivative_is_even_and_alpha_narrows_it(name):
    x = np.linspace(0.01, 2, 50)
    for alpha in (0.5, 3.0):
        spike = SURROGATES[name](alpha)
        np.testing.assert_allclose(derivative(spike, x), derivative(spike, -x), rtol=1e-12)
    wide, narrow = (SURROGATES[name](alpha) for alpha in (0.5, 3.0))
    share = lambda s: derivative(s, [1.0])[0] / derivative(s, [0.0])[0]
    assert share(narrow) < share(wide)


@pytest.mark.parametrize("name", ["triangle", "rectangle", "sigmoid", "atan"])
def test_unit_area(name):
    x = np.linspace(-2000, 2000, 4_000_001)
    for alpha in (1.0, 2.0):
        area = np.trapezoid(derivative(SURROGATES[name](alpha), x), x)
        np.testing.assert_allclose(area, 1, atol=2e-3)


def test_forward_mode_and_a_derivative_of_your_own():
    spike = Surrogate(lambda x, alpha: jnp.exp(-alpha * x**2), alpha=2.0)
    value, tangent = jax.jvp(spike, (jnp.asarray(0.5),), (jnp.asarray(3.0),))
    assert value == 1 and np.isclose(tangent, 3 * np.exp(-0.5))


def test_equal_surrogates_are_equal_and_alpha_is_positive():
    assert surrogate.atan(2.0) == surrogate.atan() and hash(surrogate.atan(2.0)) == hash(surrogate.atan())
    assert surrogate.atan() != surrogate.sigmoid(2.0)
    with pytest.raises(ValueError, match="alpha must be > 0, got -1"):
        surrogate.triangle(-1)
