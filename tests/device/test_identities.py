"""Gradients of the rules on an accelerator: against each other, a written-out loop, and the CPU."""

import functools

import jax
import numpy as np
import pytest

from sltt_jax.rules import bptt, sltt, sltt_k, tbptt
from tests.common import nets
from tests.common.device import BOUNDS, DEVICE, needs, on_device
from tests.common.nets import T, assert_close, difference

pytestmark = on_device
CPU = jax.devices("cpu")[0]
SAME = {sltt(): (sltt(4), sltt(T), tbptt(1), sltt_k(T)), bptt(): (bptt(4), bptt(T), tbptt(T))}


@pytest.fixture(params=BOUNDS, autouse=True)
def precision(request):
    """In what everything is computed, without TF32 or the passes in bfloat16 of a TPU."""
    needs(request.param)
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield request.param


@functools.cache
def net(name):
    """A network and its arrays on the host, drawn in double precision on the CPU."""
    with jax.enable_x64(True), jax.default_device(CPU):
        made = nets.two_matrices() if name == "two_matrices" else nets.net(name)
        arrays = jax.device_get((made.params, made.state, made.inputs, made.target))
    return made, arrays


def arrays_of(name, precision):
    cast = lambda a: a.astype(precision if np.issubdtype(a.dtype, np.floating) else np.int32)
    return jax.tree.map(cast, net(name)[1])


@functools.cache
def gradient(name, rule, precision, device=DEVICE):
    """Loss and gradient under a rule, computed on a device."""
    made, _ = net(name)
    arguments = jax.device_put((*arrays_of(name, precision), jax.random.key(nets.KEY)), device)
    (loss, _), grads = jax.jit(rule.value_and_grad(made.apply, made.step_loss))(*arguments)
    for array in jax.tree.leaves((loss, grads)):
        assert array.dtype == precision and array.devices() == {device}
    return loss, grads


@pytest.mark.parametrize("name", nets.NAMES)
@pytest.mark.parametrize("rule", SAME, ids=str)
def test_rules_that_must_agree_do(name, rule, precision):
    exact = gradient(name, rule, precision)
    for other in SAME[rule] if name == "two_matrices" else SAME[rule][:2]:
        assert_close(gradient(name, other, precision), exact, BOUNDS[precision])


@pytest.mark.parametrize("name", nets.NAMES)
def test_rules_that_must_differ_do(name, precision):
    exact, cut = (gradient(name, rule, precision)[1] for rule in (bptt(), sltt()))
    assert max(difference(cut, exact).values()) > 1e-2
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(exact))


@pytest.mark.parametrize(
    ("rule", "detach"), [(sltt(), jax.lax.stop_gradient), (bptt(), lambda v: v)], ids=["sltt", "bptt"]
)
def test_the_written_out_loop(rule, detach, precision):
    made, _ = net("two_matrices")
    params, state, inputs, target = jax.device_put(arrays_of("two_matrices", precision), DEVICE)
    made = made._replace(state=state, inputs=inputs, target=target)
    by_hand = jax.jit(jax.value_and_grad(lambda params: nets.written_out(made, params, detach)))(params)
    assert_close(gradient("two_matrices", rule, precision), by_hand, BOUNDS[precision])


@pytest.mark.parametrize("name", nets.NAMES)
@pytest.mark.parametrize("rule", [sltt(), sltt(4), bptt()], ids=str)
def test_the_cpu(name, rule, precision):
    ours, theirs = (gradient(name, rule, precision, device) for device in (DEVICE, CPU))
    assert_close(ours, theirs, BOUNDS[precision])
