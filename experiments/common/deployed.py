"""A trained network as it is deployed: folded, with rounded weights, in integers, in another simulator."""

import json
import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.runs import Experiment, Learned

from sltt_jax import functional, training
from sltt_jax.blocks import PyTree, Repeat, first_step, run
from sltt_jax.models.folding import fold_batch_norm
from sltt_jax.models.integer_network import IntegerNetwork, integer_network
from sltt_jax.nir import to_nir
from sltt_jax.quantisation import quantised

EXPERIMENTS = Path(__file__).parents[1]


def folded(experiment: Experiment, learned: Learned) -> Learned:
    """Folds the running statistics into the kernels."""
    step = first_step(inputs_of(experiment, experiment.data.batch["x"]))
    return Learned(*fold_batch_norm(experiment.model, learned.params, learned.variables, step))


def inputs_of(experiment: Experiment, x: PyTree) -> PyTree:
    """What the network is given of samples, in evaluation; counts of events are float32 as well."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), experiment.data.encode(jnp.asarray(x), None))


def test_batches(experiment: Experiment):
    """The test samples in batches of one size, and masks of those that count."""
    return experiment.data.held_out["test"]()


def counted(experiment: Experiment) -> np.ndarray:
    """Which rows of all test batches count, bool."""
    return np.concatenate([batch["mask"] != 0 for batch in test_batches(experiment)])


def labels(experiment: Experiment) -> np.ndarray:
    """The classes of all test samples, `[N]`."""
    return np.concatenate([batch["y"] for batch in test_batches(experiment)])[counted(experiment)]


def answers(experiment: Experiment, learned: Learned) -> np.ndarray:
    """The class that a network in floating point tells of each test sample, `[N]`."""
    classes = partial(_classes, experiment.model, experiment.data.encode, learned)
    found = [classes(batch["x"]) for batch in test_batches(experiment)]
    return np.concatenate(jax.device_get(found))[counted(experiment)]


@partial(jax.jit, static_argnums=(0, 1))
def _classes(model, encode, learned, x):
    xs = encode(x, None)
    state = functional.at_rest(model, learned.variables, first_step(xs))
    outputs, _ = run(functional.applier(model, train=False), learned.params, state, xs)
    return outputs.sum(0).argmax(-1)


def tuned(experiment: Experiment, learned: Learned, bits: int, *, epochs: int, lr: float) -> Learned:
    """Trains a folded network through the rounding of its weights, under the rule of its run.

    Batch norms stay folded, since of them only the biases learn. Nothing is dropped out.
    """
    model, data = experiment.model, experiment.data
    apply = quantised(functional.applier(model, train=False), bits)
    start = lambda variables, x: functional.at_rest(model, variables, x)
    gains = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "scale", learned.params)
    schedule = training.cosine_per_epoch(lr, epochs=epochs, steps_per_epoch=data.train.steps_per_epoch)
    optimizer = optax.chain(
        optax.masked(optax.set_to_zero(), gains), training.make_optimizer("sgd", schedule)
    )
    update = training.make_update(
        apply, experiment.rule, experiment.step_loss, optimizer, data.encode,
        encode_target=data.encode_target, start=start,
    )  # fmt: skip
    update = jax.jit(update, donate_argnums=0)
    key = jax.random.key(experiment.run.seed)
    state = training.state_of(learned.params, optimizer, key, learned.variables)
    order = data.train.get_state()
    for _ in range(epochs * data.train.steps_per_epoch):
        state, _ = update(state, next(data.train))
    data.train.set_state(order)  # every number of bits is tuned on the same batches
    return Learned(state.params, state.variables)


def answers_in_integers(
    experiment: Experiment, learned: Learned, bits: int, *, levels: int
) -> tuple[np.ndarray, IntegerNetwork]:
    """Answers of the network in integers, of inputs rounded to multiples of `1/levels`, and the network."""
    in_levels = lambda a: jnp.round(a * levels).astype(jnp.int32)
    batches = [jax.tree.map(in_levels, inputs_of(experiment, b["x"])) for b in test_batches(experiment)]
    network = integer_network(
        experiment.model, learned.params, learned.variables, first_step(batches[0]), bits,
        unit=1 / levels, largest=max(int(jnp.abs(first_leaf(xs)).max()) for xs in batches),
    )  # fmt: skip
    outputs = jax.jit(lambda xs: run(network.apply, network.params, network.state, xs)[0].sum(0))
    found = np.concatenate([jax.device_get(outputs(xs)).argmax(-1) for xs in batches])
    return found[counted(experiment)], network


def first_leaf(tree: PyTree) -> jax.Array:
    """The only array of the inputs of these networks."""
    return jax.tree.leaves(tree)[0]


def export(experiment: Experiment, learned: Learned, path: Path):
    """Writes a network into a `.nir` file."""
    import nir

    step = first_step(inputs_of(experiment, experiment.data.batch["x"]))
    nir.write(str(path), to_nir(experiment.model, learned.params, learned.variables, step))


def answers_of_simulator(
    experiment: Experiment, graph: Path, simulator: str, *, python: str
) -> tuple[np.ndarray | None, str]:
    """Answers of an exported network in another simulator, and its version; or None, and what is missing.

    Raises:
      ChildProcessError: the simulator failed.
    """
    parts = [_time_first(inputs_of(experiment, batch["x"])) for batch in test_batches(experiment)]
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npy", Path(folder) / "outputs.npy"
        np.save(inputs, np.concatenate(parts, 1)[:, counted(experiment)])
        command = [python, "-m", "peers.nir_simulator", simulator, str(graph), str(inputs), str(outputs)]
        path = os.pathsep.join([str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ChildProcessError(f"{simulator} failed on {graph}:\n{done.stderr[-2000:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        if "missing" in said:
            return None, said["missing"]
        return np.load(outputs).sum(0).argmax(-1), said["version"]


def _time_first(inputs):
    """Inputs of all steps, `[T, B, ...]`, maps channels first."""
    x = first_leaf(inputs)
    if isinstance(inputs, Repeat):
        x = np.broadcast_to(x, (inputs.T, *x.shape))
    return np.moveaxis(np.asarray(x), -1, 2) if x.ndim == 5 else np.asarray(x)
