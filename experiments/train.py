"""Trains one network under one rule.

    python experiments/train.py digits --rule sltt --T 6 --epochs 20 --workdir runs/digits

takes half a minute on two cores and ends at a test accuracy of about 0.99. Writes into the workdir:
config.json, metrics.jsonl (a line an epoch), summary.json, curves.png and checkpoints/. The same command
resumes a run that was stopped.

A rule is written as in Python, `--rule "sltt_k(2, draw=first)"`, or by its kind and flags, `--rule sltt_k
--k 2 --draw first`. `--rule bptt` alone takes `--chunk auto`, which finds the chunk that moves the fewest
bytes from three compiled programs or so; `--rule "bptt(1)"` goes step by step.

On several hosts, each runs the same command with its own number (or `--coordinator auto` under Slurm):

    python experiments/train.py cifar10 --coordinator HOST:PORT --num-processes 2 --process-id 0
"""

import dataclasses
import sys

import jax
from common.command import check_numbers, command
from common.runs import Run, presets
from common.train_loop import train
from common.workdirs import prepare

from sltt_jax import training


@dataclasses.dataclass(frozen=True)
class Training(Run):
    """A run, and the processes that share it.

    Attributes:
      coordinator: with several processes, host:port of the first; "auto" if Slurm, MPI or the TPU pod tells
        all three.
      num_processes: how many processes there are.
      process_id: which this is, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self, k, draw, scale, window, chunk, remat):
        alone = self.rule.strip() == "bptt" and chunk is None and not remat
        super().__post_init__(k, draw, scale, window, "auto" if alone else chunk, remat)
        if self.rule == "bptt":  # what a copy of these settings would take for "bptt(auto)"
            object.__setattr__(self, "rule", "bptt(1)")
        check_numbers(self, "num_processes")
        told = [
            self.coordinator not in (None, "auto"),
            self.num_processes is not None,
            self.process_id is not None,
        ]
        if any(told) != all(told):
            raise ValueError("several processes need all of --coordinator, --num-processes, --process-id")


@command(presets(kind=Training), __doc__)
def main(run: Training):
    if run.coordinator is not None:
        training.join(run.coordinator, run.num_processes, run.process_id)
    with training.together(), prepare(run) as (experiment, checkpoints):
        summary = train(experiment, checkpoints)
    if jax.process_index() == 0:
        print(report(summary, experiment.run))


def report(summary: dict, run: Run) -> str:
    """Writes what a person wants to read at the end of a run."""
    rates = ", ".join(f"{name} {rate:.3f}" for name, rate in summary["firing_rates"].items())
    per_step = summary["test_accuracy_per_step"]
    few = per_step if len(per_step) <= 30 else [*per_step[:5], "...", *per_step[-5:]]
    per_step = " ".join(f"{a:.4f}" if isinstance(a, float) else a or "-" for a in few)
    chosen = {
        "last": "last epoch",
        "validation": f"epoch {summary['selected_epoch']}, best on the validation samples",
        "test": f"epoch {summary['selected_epoch']}, selected on the test samples themselves",
    }[run.select]
    return f"""
test accuracy        {summary["test_accuracy"]:.4f}   ({chosen}; best epoch {summary["best_test_accuracy"]:.4f})
  after t = 1..{summary["T"]}      {per_step}
memory of an update  {summary["temp_bytes"] / 2**20:.2f} MiB of temporaries
time of an update    {summary["seconds_per_update"] * 1e3:.1f} ms (median), compiled in {summary["compile_seconds"]:.1f} s
throughput           {summary["samples_per_second"]:.0f} samples / s, {summary["sample_steps_per_second"]:.0f} sample-steps / s
time in all          {summary["seconds"]:.1f} s: data {summary["data_seconds"]:.1f}, updates {summary["update_seconds"]:.1f}, evaluation {summary["evaluation_seconds"]:.1f}
work of an update    {summary["flops_per_update"] / 1e9:.2f} GFLOP
firing rates         {rates}
files                {run.workdir}: summary.json, metrics.jsonl, curves.png, checkpoints"""  # noqa: E501


if __name__ == "__main__":
    sys.exit(main())
