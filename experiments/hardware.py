"""A network on its way to neuromorphic hardware: trained, folded, exported, simulated, in integers.

    python experiments/hardware.py digits

takes four minutes on two cores; one that was stopped trains no finished run again. The recipe has what NIR
and integers need, a hard reset and `tau = 2`, a leak by a shift. Writes hardware.json, hardware.md, every run
and its graph, `trained/<seed>/network.nir`.

The exported graph is run in snnTorch and spikingjelly where they are installed, `pip install snntorch
spikingjelly nir`, or by an interpreter that has them: `--simulator-python VENV/bin/python`.
"""

import dataclasses
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from common import deployed
from common.command import check_numbers, command, markdown_table, plus_minus, write_results
from common.configs import SMALL
from common.measures import arguments, measure_activity
from common.runs import Experiment, Learned, Run, build, presets
from common.sweeps import mean_std, sweep
from peers.nir_simulator import SIMULATORS

from sltt_jax.analysis.traffic import Traffic, traffic
from sltt_jax.quantisation import quantise

FLOAT_BITS = 32


@dataclasses.dataclass(frozen=True)
class Hardware(Run):
    """Settings of the runs, and of what becomes of them.

    Attributes:
      bits: of a weight.
      levels: inputs in integers are multiples of 1/levels: 16 suits digits, 255 images of 8 bits, 1 counts of
        events.
      tune_epochs: of training through the rounding.
      tune_lr: its first learning rate.
      simulator_python: interpreter that has the other simulators; by default this one.
      seeds: runs.
    """

    bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    levels: int = 16
    tune_epochs: int = 5
    tune_lr: float = 0.02
    simulator_python: Path = Path(sys.executable)
    seeds: int = 3

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "seeds", "tune_epochs")
        check_numbers(self, "bits", least=2, most=16)
        check_numbers(self, "levels", most=2**16)
        if not 0 < self.tune_lr < np.inf:
            raise ValueError(f"tune_lr must be > 0 and finite, got {self.tune_lr}")
        if not self.simulator_python.is_file():
            raise ValueError(f"simulator_python must be an interpreter, got {self.simulator_python}")


def recipes() -> dict[str, tuple[str, Hardware]]:
    """The presets of small networks, with neurons that hardware has."""
    return {
        name: (text, dataclasses.replace(run, tau=2.0, v_reset=0.0))
        for name, (text, run) in presets("hardware_", Hardware).items()
        if run.model in SMALL
    }


@command(recipes(), __doc__)
def main(base: Hardware):
    if not find_spec("nir"):
        print('warning: nothing is exported, nir is not installed: pip install ".[nir]"', file=sys.stderr)
    ((_, runs, _),) = sweep(base, {"trained": {}}, base.seeds)
    rows: dict[str, list[dict]] = {}
    for run in runs:
        for name, row in forms(run):
            rows.setdefault(name, []).append(row)
    means = [summarise(name, of_seeds) for name, of_seeds in rows.items()]
    table = tabulate(means)
    write_results(base.workdir, "hardware", {"T": base.T, "seeds": base.seeds, "rows": means}, table)
    print(f"{base.preset}, {base.rule}, T={base.T}, {base.seeds} seeds\n\n{table}")


def forms(run: Hardware):
    """Yields the name and the figures of every form of the network of a finished run."""
    experiment = build(run)
    learned = experiment.load(run.workdir)
    y, trained = deployed.labels(experiment), deployed.answers(experiment, learned)
    folded = deployed.folded(experiment, learned)
    counted, kernels = counts(experiment, folded), kernel_words(folded)

    def row(answers, bits=FLOAT_BITS, **more):
        return {
            "test_accuracy": float(np.mean(answers == y)),
            "agreement": float(np.mean(answers == trained)),
            "weight_bytes": kernels * bits / 8,
            "bytes_moved": counted.bytes(bits),
            **more,
        }

    yield "trained", row(trained)
    yield "folded", row(deployed.answers(experiment, folded))
    yield from (
        (f"exported, in {simulator}", row(answers, version=version))
        for simulator, answers, version in simulated(run, experiment, learned)
    )
    for bits in run.bits:
        yield f"{bits} bits", row(deployed.answers(experiment, rounded(folded, bits)), bits)
        tuned = deployed.tuned(experiment, folded, bits, epochs=run.tune_epochs, lr=run.tune_lr)
        yield f"{bits} bits, tuned", row(deployed.answers(experiment, rounded(tuned, bits)), bits)
        answers, network = deployed.answers_in_integers(experiment, tuned, bits, levels=run.levels)
        membrane = max(width for name, width in network.bits.items() if name != "outputs")
        yield f"{bits} bits, tuned, in integers", row(answers, bits, membrane_bits=membrane)


def rounded(learned: Learned, bits: int) -> Learned:
    """The same with kernels of so many bits."""
    return learned._replace(params=quantise(learned.params, bits).params)


def simulated(run: Hardware, experiment: Experiment, learned: Learned):
    """Yields the answers of each simulator that is there, with its name and version; says which are not.

    Nothing is exported where nir is not installed.
    """
    if not find_spec("nir"):
        return
    graph = run.workdir / "network.nir"
    deployed.export(experiment, learned, graph)
    for simulator in SIMULATORS:
        python = str(run.simulator_python)
        answers, version = deployed.answers_of_simulator(experiment, graph, simulator, python=python)
        if answers is None:
            print(f"{simulator}: not run, {python} has no {version}", file=sys.stderr)
        else:
            yield simulator, answers, version


def counts(experiment: Experiment, learned: Learned) -> Traffic:
    """What a device would do for a sample, in the mean over a training batch."""
    batch = experiment.data.batch
    measured = measure_activity(experiment, learned, batch, train=False)
    _, state, _, _ = jax.eval_shape(partial(arguments, experiment), learned, batch)
    return traffic(measured, state)


def kernel_words(learned: Learned) -> int:
    """Number of weights in all kernels."""
    return sum(p.size for p in jax.tree.leaves(learned.params) if p.ndim >= 2)


def summarise(name: str, of_seeds: list[dict]) -> dict:
    """The figures of one form of the network, mean and standard deviation over the seeds."""
    numbers = {k: mean_std([row[k] for row in of_seeds]) for k in of_seeds[0] if k != "version"}
    return {"network": name, **numbers, **{k: of_seeds[0][k] for k in ("version",) if k in of_seeds[0]}}


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every form of the network."""
    header = (
        "network", "test accuracy (%)", "answers as trained (%)", "weights (KiB)", "membrane (bits)",
        "KiB read and written / sample",
    )  # fmt: skip
    lines = (
        [
            row["network"],
            plus_minus(row["test_accuracy"], ".1f", 100),
            plus_minus(row["agreement"], ".1f", 100),
            f"{row['weight_bytes'][0] / 2**10:.1f}",
            f"{row['membrane_bits'][0]:.0f}" if "membrane_bits" in row else "",
            f"{row['bytes_moved'][0] / 2**10:.0f}",
        ]
        for row in rows
    )
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
