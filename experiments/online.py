"""Does it matter when the optimizer is applied: once a batch, after its T steps, or after every block?

    python experiments/online.py digits --rule sltt
    python experiments/online.py digits --rule "ottt(0.09)"

take about three minutes each on two cores; one that was stopped is resumed. After every block the learning
rate is as much smaller as there are more updates. Writes online.json, online.md and every run into the
workdir.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import optax
from common.command import check_numbers, command, markdown_table, plus_minus, write_results
from common.runs import Experiment, Run, presets
from common.sweeps import check_all, entries, trained

from sltt_jax import functional, online, parse_rule, training
from sltt_jax.block_rule import BlockRule, scan_targets
from sltt_jax.blocks import PerStep, first_step
from sltt_jax.training.answers import accuracy, tally_of_sum


@dataclasses.dataclass(frozen=True)
class Online(Run):
    """Settings that the runs have in common.

    Attributes:
      seeds: runs of each kind.
    """

    seeds: int = 3

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "seeds")
        if self.devices not in (None, 1):
            raise ValueError(f"devices must be 1, got {self.devices}: nothing is summed over them here")
        rule = parse_rule(self.rule)
        if not isinstance(rule, BlockRule) or self.T % rule.block_steps:
            raise ValueError(f"rule must go through T={self.T} steps in whole blocks, got {self.rule}")


class AtEveryBlock(Experiment):
    """A run whose optimizer is applied after every block."""

    def update(self, axis_name: str | None = None):
        """Makes the update of a batch, which is one of every block; its norm is that of the whole change."""
        rule = self.rule
        assert axis_name is None and isinstance(rule, BlockRule)

        def update(state: training.TrainState, batch):
            data_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
            inputs, target = self.data.encode(batch["x"], data_key), self.data.encode_target(batch["y"])
            if isinstance(target, PerStep):
                raise ValueError("updates at every block are of data with one label for all steps here")
            apply = functional.applier(self.model, key=dropout_key)
            rest = functional.at_rest(self.model, state.variables, first_step(inputs))
            start, advance = online(rule, apply, self.step_loss, self.optimizer)
            learner = start(state.params, rest, inputs)._replace(opt_state=state.opt_state)

            def block(carry, given):
                learner, outputs = carry
                learner, losses = advance(learner, *given)
                return (learner, jax.tree.map(jnp.add, outputs, learner.carry.outputs)), losses

            (learner, outputs), losses = scan_targets(
                block, (learner, learner.carry.outputs), inputs, target, rule.block_steps
            )
            variables = {name: learner.carry.state[name] for name in state.variables}
            change = optax.tree.norm(optax.tree.sub(learner.params, state.params))
            new = state._replace(
                step=state.step + 1, params=learner.params, variables=variables, opt_state=learner.opt_state
            )
            values = tally_of_sum(accuracy, outputs, target).means()
            return new, training.Metrics(losses.mean(), values, change)

        return update


def at_every_block(experiment: Experiment) -> AtEveryBlock:
    """Makes a run apply its optimizer after every block, with a learning rate as much smaller."""
    run, rule, steps = experiment.run, experiment.rule, experiment.data.train.steps_per_epoch
    assert isinstance(rule, BlockRule)
    blocks = run.T // rule.block_steps
    schedule = training.cosine_per_epoch(run.lr / blocks, epochs=run.epochs, steps_per_epoch=steps * blocks)
    optimizer = training.make_optimizer(
        run.optimizer, schedule, weight_decay=run.weight_decay, momentum=run.momentum
    )
    return AtEveryBlock(*experiment._replace(optimizer=optimizer))


@command(presets("online_", Online), __doc__)
def main(base: Online):
    ways = {
        "after every block": ("block", at_every_block),
        "once a batch": ("batch", lambda experiment: experiment),
    }
    runs = {
        way: [
            dataclasses.replace(base, seed=seed, devices=1, workdir=base.workdir / name / str(seed))
            for seed in range(base.seed, base.seed + base.seeds)
        ]
        for way, (name, _) in ways.items()
    }
    check_all(run for of_way in runs.values() for run in of_way)
    rows = []
    for way, (_, change) in ways.items():
        summaries = [trained(run, change) for run in runs[way]]
        rows.append({"update": way, **entries(summaries, "test_accuracy", "train_loss")})
        rows[-1] |= {"temp_bytes": summaries[0]["temp_bytes"]}
    table = markdown_table(
        ("update", "test accuracy (%)", "training loss", "temporaries"),
        (
            (
                row["update"],
                plus_minus(row["test_accuracy"], ".2f", 100),
                plus_minus(row["train_loss"], ".4f"),
                f"{row['temp_bytes'] / 2**20:.2f} MiB",
            )
            for row in rows
        ),
    )
    write_results(base.workdir, "online", {"rule": base.rule, "T": base.T, "rows": rows}, table)
    print(f"{base.preset}, {base.rule}, T={base.T}, {base.seeds} seeds\n\n{table}")


if __name__ == "__main__":
    sys.exit(main())
