import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, bptt, lif, sltt, tbptt
from sltt_jax.analysis import temporal_part
from sltt_jax.analysis.temporal_part import advice, cut_share, horizon, lag_norms

pytestmark = pytest.mark.usefixtures("quick_compile")

temporal_factors = jax.jit(temporal_part.temporal_factors)


class TestTemporalFactors:
    NEURONS = {  # noqa: RUF012
        "soft": (Neuron(tau=4.0), lambda u, s, d: 0.75 * (1 - d)),
        "threshold": (Neuron(tau=4.0, v_threshold=0.5), lambda u, s, d: 0.75 * (1 - 0.5 * d)),
        "detached": (Neuron(tau=4.0, detach_reset=True), lambda u, s, d: 0.75 + 0 * u),
        "hard": (Neuron(tau=4.0, v_reset=0.2), lambda u, s, d: 0.75 * (1 - s + d * (0.2 - u))),
        "hard, detached": (
            Neuron(tau=4.0, v_reset=0.2, detach_reset=True), lambda u, s, d: 0.75 * (1 - s),
        ),
    }  # fmt: skip

    def test_by_hand(self):
        """tau = 2: u = 0.25, then 0.125 + 1, with surrogate'(u) = 0.25 and 0.875."""
        factors = temporal_factors(jnp.zeros(1), jnp.asarray([[0.25], [1.0]]), Neuron(tau=2.0))
        np.testing.assert_allclose(factors, [[0.5 * 0.75], [0.5 * 0.125]], rtol=1e-6)
        np.testing.assert_allclose(lag_norms(factors), [[0.375], [0.375]], rtol=1e-6)

    @pytest.mark.parametrize(("neuron", "factor"), NEURONS.values(), ids=NEURONS)
    def test_formulas(self, neuron, factor, x64):
        """By the equations, with a loop of their own in NumPy."""
        rng = np.random.default_rng(0)
        xs, v = rng.normal(0.4, 0.7, (20, 3, 5)), rng.normal(size=(3, 5))
        got = temporal_factors(jnp.asarray(v), jnp.asarray(xs), neuron)
        spikes = []
        for t, x in enumerate(xs):
            u = 0.75 * v + x + (0 if neuron.v_reset is None else 0.25 * neuron.v_reset)
            s = (u >= neuron.v_threshold).astype(float)
            d = np.maximum(0, 1 - np.abs(u - neuron.v_threshold))
            np.testing.assert_allclose(got[t], factor(u, s, d), rtol=1e-12, atol=1e-15)
            v = u - neuron.v_threshold * s if neuron.v_reset is None else (1 - s) * u + s * neuron.v_reset
            spikes.append(s)
        assert 0.05 < np.mean(spikes) < 0.6

    def test_they_are_bptts_jacobian(self, x64):
        """The product over all lags is the derivative of the membrane through `lif`, by another way."""
        neuron = Neuron(tau=1.5, v_threshold=0.8)
        xs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
        v = jnp.full(6, 0.1)
        factors = temporal_factors(v, xs, neuron)
        jacobian = jax.jit(jax.jacobian(lambda v: lif(v, xs, neuron)[0]))(v)
        np.testing.assert_allclose(jacobian, np.diag(np.prod(factors, 0)), rtol=1e-12, atol=1e-15)
        norms = lag_norms(jnp.concatenate([factors, jnp.full((1, 6), 9.0)])[:, None])
        assert norms.spectral[3] == pytest.approx(np.linalg.norm(np.asarray(jacobian), 2))

    def test_lag_norms(self):
        factors = jnp.asarray([[0.5, -0.4], [0.2, 1.0], [-0.1, 0.5], [7.0, 7.0]])
        norms = lag_norms(factors)
        np.testing.assert_allclose(norms.spectral, [1.0, 0.5, 0.2], rtol=1e-6)
        np.testing.assert_allclose(norms.mean, [2.7 / 6, (0.1 + 0.4 + 0.02 + 0.5) / 4, 0.21 / 2], rtol=1e-6)
        with pytest.raises(ValueError, match="at least two steps, got T=1"):
            lag_norms(factors[:1])

    def test_bound_by_the_leak(self):
        """At most lambda^k; for the soft reset and triangle lambda min(|u - 1|, 1) at one step."""
        xs = jnp.asarray(np.random.default_rng(0).normal(size=(12, 8, 20)), jnp.float32)
        measure = jax.jit(lambda neuron: lag_norms(temporal_factors(jnp.zeros((8, 20)), xs, neuron)))
        for tau in (1.1, 2.0, 20.0):
            norms = jax.device_get(measure(Neuron(tau=tau)))
            bound = (1 - 1 / tau) ** np.arange(1, 12)
            assert (norms.spectral <= bound * 1.0001).all() and (norms.mean < norms.spectral).all()
            assert norms.spectral[0] > 0.99 * bound[0] and norms.mean[0] < 0.9 * bound[0]


class TestHorizon:
    def test_steps(self):
        for tau, steps in ((1.1, 2.88), (2.0, 9.97), (20.0, 134.67)):
            assert horizon(tau) == pytest.approx(steps, abs=0.005)
        assert horizon(2.0, 0.25) == pytest.approx(2)
        assert horizon(1.0) == 0 and horizon(math.inf) == math.inf

    def test_share_that_is_cut(self):
        """tau = 2, T = 3: paths of weight 3 + 2/2 + 1/4; windows of two keep 3 + 1/2."""
        assert cut_share(2.0, 3) == pytest.approx(1.25 / 4.25)
        assert cut_share(2.0, 3, 2) == pytest.approx(0.75 / 4.25)
        assert cut_share(2.0, 3, 3) == 0
        assert cut_share(1.0, 50) == 0 and cut_share(5.0, 1) == 0
        assert cut_share(math.inf, 3) == pytest.approx(1 / 2)

    def test_share_is_exact_where_nothing_weakens_the_gradient(self):
        """Linear neurons with a detached reset, one weight, the same error at every step."""

        def apply(w, v, xs, *, temporal_gradient):
            def step(v, x):
                v = 0.9 * (v if temporal_gradient else jax.lax.stop_gradient(v)) + w * x
                return v, v

            v, outputs = jax.lax.scan(step, v, xs)
            return outputs, v

        args = jnp.asarray(0.3), jnp.zeros(()), jnp.ones(7), None
        grad = lambda rule: jax.jit(rule.value_and_grad(apply, lambda out, target: out))(*args)[1]
        for rule, window in ((sltt(), 1), (tbptt(3), 3)):
            cut = cut_share(10.0, 7, window)
            assert grad(rule) / grad(bptt()) == pytest.approx(1 - cut)

    def test_advice(self):
        assert advice(20.0, 8) == (
            "tau=20: a membrane takes 135 steps to fade to 0.1 %, and there are T=8. SLTT may cut 75 % of "
            "the gradient; consider tbptt(window=4), which may cut 41 %, or bptt()."
        )
        assert "never fades" in str(advice(math.inf, 4))
        for tau, T in ((1.1, 100), (2.0, 100), (20.0, 2), (math.inf, 3)):
            assert advice(tau, T) is None

    def test_bad_values(self):
        for f, message in (
            (lambda: horizon(0.5), "tau must be >= 1 .*, got 0.5"),
            (lambda: horizon(math.nan), "tau must be >= 1 .*, got nan"),
            (lambda: horizon(2.0, 1.0), "epsilon must be between 0 and 1, got 1.0"),
            (lambda: cut_share(2.0, 0), "T must be a whole number >= 1, got 0"),
            (lambda: cut_share(2.0, 4, 5), "window=5 is more than the T=4"),
            (lambda: advice(0.9, 4), "tau must be >= 1"),
        ):
            with pytest.raises(ValueError, match=message):
                f()
