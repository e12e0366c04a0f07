"""Floating point operations of a traced program, every loop counted by its trips.

XLA's own figure counts the body of a loop once, whatever its length. This walks the jaxpr instead: the body
of a `scan` counts as often as it runs, and the step at which SLTT-K goes backward counts k times.
"""

import math

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from sltt_jax.rules import K_STEP_SCOPE


def flops(traced: jax.stages.Traced, *, backward_share: float = 1.0) -> float:
    """Floating point operations of the matrix products and convolutions of a traced function.

    A multiplication and an addition count as two. Elementwise work is left out.

    Args:
      traced: `jax.jit(f).trace(*args)`; its program is not compiled or run.
      backward_share: the share of time steps at which `sltt_k` goes backward, k/T. Of any other `lax.cond`
        the most expensive branch counts, and of one that depends on the platform the default.

    Returns:
      The number of operations of one call.

    Raises:
      ValueError: `backward_share` is not in 0..1, or a `while` loop of unknown length holds matrix products
        or convolutions.
    """
    if not 0 <= backward_share <= 1:
        raise ValueError(f"backward_share must be in 0..1, got {backward_share}")
    jaxpr = traced.jaxpr.jaxpr
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(live, backward_share)


def _count(jaxpr, share) -> float:
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_count_equation(equation, share) for equation in jaxpr.eqns)


def _count_equation(equation, share) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "scan":
        return params["length"] * _count(params["jaxpr"], share)
    if name == "cond":
        branches = [_count(branch, share) for branch in params["branches"]]
        if str(equation.source_info.name_stack).endswith(K_STEP_SCOPE):
            forward_only, backward = branches
            return share * backward + (1 - share) * forward_only
        platforms = params.get("branches_platforms") or ()
        if None in platforms:  # what is computed, in whatever way this or that platform does
            return branches[platforms.index(None)]
        return max(branches)
    inner = sum(_count(jaxpr, share) for jaxpr in core.jaxprs_in_params(params))
    if name == "while" and inner:
        raise ValueError("a while loop of unknown length holds matrix products; use scan or fori_loop")
    return inner


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)


def _convolution(equation) -> float:
    params = equation.params
    rhs, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    _, rhs_in, *window = params["dimension_numbers"].rhs_spec
    taps = math.prod(rhs[d] for d in window) * rhs[rhs_in]
    # The zeros between the entries of a dilated input are not operations.
    dilution = math.prod(params["lhs_dilation"]) * params["batch_group_count"]
    return 2 * math.prod(out) * taps / dilution
