"""Cost of a gradient or a training update, from the compiled program and without running it.

Nothing needs to exist for it: parameters, state and inputs may be arrays or `jax.ShapeDtypeStruct`s, as
`jax.eval_shape` returns them.

    x = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    y = jax.ShapeDtypeStruct((128,), jnp.int32)
    cost(functional.applier(model), step_loss, sltt(), params, state, Repeat(x, 6), y).total_bytes
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sltt_jax.analysis.flop_count import flops
from sltt_jax.blocks import Apply, PerStep, PyTree, Repeat, check_at_least_one, run, time_steps
from sltt_jax.rules import Rule, StepLoss


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one call of a compiled program.

    The bytes are what the compiler planned; the code itself is not among them.

    Attributes:
      argument_bytes: parameters, inputs and what else is handed in.
      output_bytes: gradients or the new state, and what else is returned; on some platforms also the table
        of where they are, 8 bytes each.
      aliased_bytes: of the outputs that take the place of donated arguments.
      temp_bytes: of everything else, which is where activations, carried states and sums of gradients are.
      forward_flops: floating point operations of the forward pass at all T steps, see `flops`.
      flops: those of the whole call.
      bytes_accessed: XLA's own figure of bytes read and written. It counts the body of a loop **once**, so
        that for a rule that goes step by step it is about that of one step. It compares programs of the same
        loop (two models, two precisions), not rules or numbers of steps.
      compile_seconds: from the traced function to the program; less if JAX's cache of programs has it.
    """

    argument_bytes: int
    output_bytes: int
    aliased_bytes: int
    temp_bytes: int
    forward_flops: float
    flops: float
    bytes_accessed: float
    compile_seconds: float

    @property
    def total_bytes(self) -> int:
        """Arguments, outputs and temporaries: the most that one call has in memory."""
        return self.argument_bytes + self.output_bytes - self.aliased_bytes + self.temp_bytes

    @property
    def backward_flops(self) -> float:
        """Operations beside those of the forward pass; `bptt(remat=True)` does that one again in here."""
        return self.flops - self.forward_flops


def temp_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program allocates beside its arguments and outputs, as its compiler planned them.

    This is where training keeps activations, carried states and sums of gradients. It does not depend on what
    else the machine does, and nothing is run for it.

    Raises:
      RuntimeError: the platform does not tell.
    """
    return memory_stats(compiled).temp_size_in_bytes


def memory_stats(compiled: jax.stages.Compiled) -> Any:
    """Returns all that the compiler tells: `argument_size_in_bytes`, `output_...`, `alias_...`, `temp_...`.

    Raises:
      RuntimeError: the platform does not tell.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this platform's compiler does not tell the memory of a program")
    return memory


def cost(
    apply: Apply,
    step_loss: StepLoss,
    rule: Rule,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    target: PyTree,
) -> Cost:
    """Computes the cost of loss and gradient under a rule, `rule.value_and_grad(apply, step_loss)`.

    Args:
      apply, step_loss: as for the rule.
      rule: the rule.
      params, state, inputs, target: arguments of the rule's function, of which only shapes and types matter:
        inputs `[T, B, ...]` or `Repeat(x, T)`, and a target that may be `PerStep`.

    Raises:
      ValueError: the rule does not go with the inputs.
      RuntimeError: the platform does not tell the memory of a program.
    """
    traced = trace_gradient(apply, step_loss, rule, params, state, inputs, target)
    forward = jax.jit(lambda *args: run(apply, *args)).trace(params, state, inputs)
    share = rule.backward_share(time_steps(inputs))
    _, found = program_cost(traced, forward_flops=flops(forward), backward_share=share)
    return found


def trace_gradient(
    apply: Apply,
    step_loss: StepLoss,
    rule: Rule,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    target: PyTree,
) -> jax.stages.Traced:
    """Traces what `cost` compiles; arguments as there."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(rule.value_and_grad(apply, step_loss)).trace(params, state, inputs, target, key)


def program_cost(
    traced: jax.stages.Traced, *, forward_flops: float, backward_share: float = 1.0
) -> tuple[jax.stages.Compiled, Cost]:
    """Compiles a traced function, such as a whole training update, and returns the program and its cost.

    Args:
      traced: `jax.jit(f).trace(*args)`.
      forward_flops: operations of its forward pass, which cannot be told apart in it.
      backward_share: as for `flops`: k/T under `sltt_k`.

    Raises:
      RuntimeError: the platform does not tell the memory of a program.
    """
    began = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    memory = memory_stats(compiled)
    return compiled, Cost(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        forward_flops=forward_flops,
        flops=flops(traced, backward_share=backward_share),
        bytes_accessed=(compiled.cost_analysis() or {}).get("bytes accessed", float("nan")),
        compile_seconds=seconds,
    )


def cost_over_time(
    apply: Apply,
    step_loss: StepLoss,
    rule: Rule,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    target: PyTree,
    *,
    T: Sequence[int] = (8, 64),
) -> dict[int, Cost]:
    """Computes `cost` at several numbers of time steps; the inputs given are those of any one of them.

    Raises:
      ValueError: a T that is no whole number >= 1, and as `cost`.
    """
    for steps in T:
        check_at_least_one("T", steps)
    of = lambda t: cost(apply, step_loss, rule, params, state, *with_time_steps(inputs, target, t))
    return {t: of(t) for t in T}


def growth(costs: Mapping[int, Cost]) -> dict[str, float]:
    """Bytes that each time step adds between the smallest and the largest T, by the names of `Cost`.

    Under `sltt` that of `temp_bytes` is 0. That of `argument_bytes` is the inputs, but for a `Repeat`.

    Raises:
      ValueError: there are fewer than two numbers of time steps.
    """
    if len(costs) < 2:
        raise ValueError(f"growth needs the costs at two or more numbers of time steps, got T={list(costs)}")
    low, high = min(costs), max(costs)
    kinds = "argument_bytes", "output_bytes", "temp_bytes", "total_bytes"
    return {k: (getattr(costs[high], k) - getattr(costs[low], k)) / (high - low) for k in kinds}


def with_time_steps(inputs: PyTree, target: PyTree, T: int) -> tuple[PyTree, PyTree]:
    """Returns the shapes of the same inputs over T steps, and the target: of `PerStep` its shapes."""
    abstract = lambda shape, x: jax.ShapeDtypeStruct(shape, x.dtype)
    over_time = lambda tree: jax.tree.map(lambda x: abstract((T, *x.shape[1:]), x), tree)
    target = over_time(target) if isinstance(target, PerStep) else target
    if isinstance(inputs, Repeat):
        return Repeat(jax.tree.map(lambda x: abstract(x.shape, x), inputs.x), T), target
    time_steps(inputs)
    return over_time(inputs), target
