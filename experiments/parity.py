"""Holds our networks against numbers that the SLTT authors' PyTorch code gave in float64.

    python experiments/parity.py tests/parity/*.json

A file has one network, run for T steps under several rules: logits, losses, gradients, membranes, running
statistics and firing rates, long arrays as their norm and their dot product with a random probe. Weights,
inputs and probes are formulas of the seed. Printed is the largest error of each quantity under each rule; the
exit status is 1 if one is above its bound, 2 if a file cannot be understood.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sltt_jax import functional, losses, models, rules
from sltt_jax.blocks import run
from sltt_jax.layers import FIRING_RATE, MEMBRANE
from sltt_jax.models.torch_weights import from_torch, to_torch, torch_name
from sltt_jax.neurons import Neuron
from sltt_jax.surrogate import SURROGATES

NETS = {
    name.lower(): getattr(models, name)
    for name in ("ResNet18", "ResNet34", "VGG11", "VGG13", "VGG16", "VGG19", "NFResNet34", "NFResNet50",
                 "NFResNet101")
}  # fmt: skip
BOUNDS = {
    "logits": 1e-12,
    "loss": 1e-12,
    "gradient": 1e-8,
    "membrane": 1e-10,
    "running_statistics": 1e-10,
    "firing_rates": 1e-10,
}

# The file's rule that each of ours is held against.
THEIRS = {
    "bptt": "bptt", "bptt in bits": "bptt", "sltt": "sltt", "sltt chunk 2": "sltt", "sltt_k": "sltt_k"
}  # fmt: skip

# Seeds of the random arrays beside those of the parameters.
INPUTS, GRADIENTS, MEMBRANES, STATISTICS = 1_000_000, 2_000_000, 5_000_000, 6_000_000

CASE_KEYS = {
    "seed", "net", "T", "batch", "size", "classes", "tau", "surrogate", "mse_weight", "mse_target", "k_steps",
    "input",
}  # fmt: skip
FILE_KEYS = {
    "case", "labels", "parameters", "rules", "logits", "firing_rates", "membrane", "running_statistics"
}  # fmt: skip

INPUT_KINDS = ("normal", "counts")

Errors = dict[str, dict[str, float]]


class BadCase(ValueError):
    """A file that is not in the parity format, or a case that we do not have."""


def load(path: str | Path) -> dict[str, Any]:
    """Reads a parity file.

    Raises:
      BadCase: it cannot be read, is malformed, or is of a network that we do not have.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as e:
        raise BadCase(f"cannot read a parity case: {e}") from e
    try:
        _validate(content)
    except BadCase:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as e:
        raise BadCase(f"it is malformed: {e!r}") from e
    return content


def _validate(content):
    case = content["case"]
    if missing := (FILE_KEYS - content.keys()) | (CASE_KEYS - case.keys()):
        raise BadCase(f"keys are missing: {sorted(missing)}")
    allowed = {"net": NETS, "surrogate": SURROGATES, "mse_target": losses.MSE_TARGETS, "input": INPUT_KINDS}
    for key, values in allowed.items():
        if case[key] not in values:
            raise BadCase(f"{key} {case[key]!r} is unknown; known: {sorted(values)}")
    if len(content["parameters"][0][1]) != 4:
        raise BadCase("the first parameter is not the kernel of a convolution")
    if not content["rules"] or content["rules"].keys() - THEIRS.keys():
        raise BadCase(f"rules are {sorted(content['rules'])}; known: {sorted(set(THEIRS.values()))}")
    for name, rule in content["rules"].items():
        if not len(rule["gradient"]) == len(rule["first_entries"]) == len(content["parameters"]):
            raise BadCase(f"{name} has not one gradient for each of {len(content['parameters'])} parameters")
        steps = sorted(case["k_steps"])
        if name == "sltt_k" and not (sorted(rule["steps"]) == steps and {*steps} <= {*range(case["T"])}):
            raise BadCase(f"of {case['T']} steps sltt_k took {rule['steps']}, the case says {steps}")
        float(rule["loss"])
    if np.shape(content["logits"]) != (case["T"], case["batch"], case["classes"]):
        raise BadCase(f"logits have the shape {np.shape(content['logits'])}")
    if np.shape(content["labels"]) != (case["batch"],):
        raise BadCase(f"labels have the shape {np.shape(content['labels'])}")


def random(seed: int, stream: int, shape) -> np.ndarray:
    """Random array number `stream` of a case, normal."""
    return np.random.default_rng([seed, stream]).standard_normal(shape)


def parameter(seed: int, i: int, name: str, shape: list[int]) -> np.ndarray:
    """Parameter i of a case, in PyTorch's layout."""
    n = random(seed, i, shape)
    if name.endswith("gain"):
        offset = 2.0 if name.endswith("skipinit_gain") else 6.0 if name == "conv1.gain" else 1.0
        return offset + 0.1 * n
    if len(shape) >= 2:
        return n * 1.4 / np.sqrt(np.prod(shape[1:]))
    return 0.1 * n + (1.0 if name.endswith("weight") else 0.0)


class Network:
    """The network of a case with its weights, and what it is run on.

    Raises:
      BadCase: numbers of the case are out of range, or its parameters are not those of the network.
    """

    def __init__(self, content: dict[str, Any]):
        case, parameters, seed = content["case"], content["parameters"], content["case"]["seed"]
        stem, channels, *_ = parameters[0][1]
        try:
            x = random(seed, INPUTS, (case["T"], case["batch"], channels, case["size"], case["size"]))
            x = np.floor(np.abs(x) * 2) if case["input"] == "counts" else x
            self.inputs = jnp.asarray(x.transpose(0, 1, 3, 4, 2))
            self.labels = jnp.asarray(content["labels"])
            self.step_loss = losses.classification(
                mse_weight=case["mse_weight"], mse_target=case["mse_target"]
            )
            spike = SURROGATES[case["surrogate"]]()
            neuron = Neuron(tau=case["tau"], surrogate=spike, **case.get("neuron", {}))
            self.model = NETS[case["net"]](classes=case["classes"], neuron=neuron, width=stem / 64)
            # Compiled, nothing is computed but what is asked for: neither random weights nor the outputs.
            state = jax.jit(lambda x: functional.init(self.model, jax.random.key(0), x)[1])(self.inputs[0])
            drawn = {name: parameter(seed, i, name, shape) for i, (name, shape) in enumerate(parameters)}
            weights = from_torch(self.model, {**to_torch(self.model, {}, state), **drawn})
        except (TypeError, ValueError) as e:
            raise BadCase(str(e)) from e
        self.params, statistics = jax.tree.map(jnp.asarray, weights)
        self.state = {**state, **statistics}

    def forward(self) -> dict[str, Any]:
        """Logits `[T, B, classes]` and firing rates `{neurons: [T]}`, one step after the other."""
        apply = functional.applier(self.model, record=(FIRING_RATE,))
        (logits, recorded), _ = jax.jit(partial(run, apply))(self.params, self.state, self.inputs)
        rates = {
            torch_name(self.model, path): np.asarray(rate).mean(1)
            for path, rate in flatten_dict(recorded[FIRING_RATE]).items()
        }
        return {"logits": np.asarray(logits), "firing_rates": rates}

    def backward(self, rule: rules.Rule) -> dict[str, Any]:
        """What a rule returns, in PyTorch's names and layouts; `losses` is of every step, `[T]`."""
        f = jax.jit(rule.value_and_grad(functional.applier(self.model), self.step_loss))
        (_, aux), grads = f(self.params, self.state, self.inputs, self.labels)
        statistics = to_torch(self.model, {}, aux.state)
        return {
            "losses": np.asarray(aux.losses),
            "logits": np.asarray(aux.outputs),
            "gradient": to_torch(self.model, grads, {}),
            "membrane": {
                torch_name(self.model, path): np.asarray(v).transpose(0, 3, 1, 2)
                for path, v in flatten_dict(aux.state[MEMBRANE]).items()
            },
            "running_statistics": {k: x for k, x in statistics.items() if "running" in k},
        }


def compute(content: dict[str, Any], only: tuple[str, ...] | None = None) -> dict[str, dict[str, Any]]:
    """Results of our network for a case: under "forward", and under each of our rules or those named."""
    network = Network(content)
    results = {"forward": network.forward()}
    for ours, theirs in THEIRS.items():
        if theirs in content["rules"] and (only is None or ours in only):
            results[ours] = network.backward(_rule(content, ours))
    return results


def _rule(content, ours) -> rules.Rule:
    if ours == "bptt":
        return rules.bptt()
    if ours == "bptt in bits":
        return rules.bptt(content["case"]["T"], bits=True)
    if ours == "sltt_k":
        steps = tuple(content["rules"]["sltt_k"]["steps"])
        return rules.sltt_k(k=len(steps), draw=steps)
    return rules.sltt(chunk=min(2, content["case"]["T"]) if ours == "sltt chunk 2" else 1)


def errors(content: dict[str, Any], results: dict[str, dict[str, Any]]) -> Errors:
    """The largest error of each quantity of `compute`'s results, by rule.

    Raises:
      BadCase: the file has other neurons or norms than the network.
    """
    case, logits = content["case"], np.asarray(content["logits"])
    forward = results["forward"]
    rates = _pair(forward["firing_rates"], content["firing_rates"])
    found: Errors = {
        "forward": {
            "logits": _error(forward["logits"], logits),
            "firing_rates": _largest(_error(*pair) for pair in rates),
        }
    }
    for ours, result in results.items():
        if ours == "forward":
            continue
        reference = content["rules"][THEIRS[ours]]
        # The authors add up the losses of the steps that have a backward pass, each divided by T.
        steps = slice(None) if reference["steps"] is None else reference["steps"]
        found[ours] = {
            "logits": _error(result["logits"], logits.sum(0)),
            "loss": _error(result["losses"][steps].sum() / case["T"], reference["loss"]),
            "gradient": _gradient_error(content, reference, result["gradient"]),
        }
        for quantity, stream in (("membrane", MEMBRANES), ("running_statistics", STATISTICS)):
            pairs = enumerate(_pair(result[quantity], content[quantity]), stream)
            sketched = [_sketch_error(*pair, case["seed"], i) for i, pair in pairs]
            # An NFResNet has no running statistics.
            if sketched:
                found[ours][quantity] = _largest(sketched)
    return found


def _pair(ours, theirs):
    """Values of the same name, in the order of the file."""
    if ours.keys() != theirs.keys():
        raise BadCase(f"the file has {list(theirs)}, the network {list(ours)}")
    return [(ours[name], value) for name, value in theirs.items()]


def _largest(values) -> float:
    """The maximum; unlike Python's it does not lose a NaN."""
    return float(np.max(list(values)))


def _error(ours, theirs) -> float:
    """Relative to the largest entry of `theirs`."""
    return float(np.max(np.abs(ours - np.asarray(theirs)))) / (np.max(np.abs(theirs)) or 1.0)


def _sketch_error(array, sketch, seed, stream, scale=None) -> float:
    """Error of norm and dot product, relative to `scale`, the norm if None."""
    ours = np.linalg.norm(array), np.vdot(array, random(seed, stream, array.shape))
    return _largest(np.abs(np.subtract(ours, sketch))) / (scale or sketch[0] or 1.0)


def _gradient_error(content, reference, gradients) -> float:
    """Relative to the norm, or 1e-6 of the largest: a bias before batch norm has none but of rounding."""
    least = 1e-6 * max(norm for norm, _ in reference["gradient"])
    worst = []
    for i, (name, _) in enumerate(content["parameters"]):
        sketch, first = reference["gradient"][i], reference["first_entries"][i]
        scale = max(sketch[0], least)
        worst.append(_sketch_error(gradients[name], sketch, content["case"]["seed"], GRADIENTS + i, scale))
        worst.append(np.max(np.abs(gradients[name].ravel()[: len(first)] - first)) / scale)
    return _largest(worst)


def failures(found: Errors) -> list[str]:
    """Lists what is above its bound, or not a number."""
    return [
        f"{rule}: {quantity} {error:.1e} > {BOUNDS[quantity]:.0e}"
        for rule, quantities in found.items()
        for quantity, error in quantities.items()
        if not error <= BOUNDS[quantity]
    ]


def check(content: dict[str, Any], only: tuple[str, ...] | None = None) -> Errors:
    """Errors by rule and quantity of a case; needs 64 bits enabled.

    Args:
      content: what `load` returns.
      only: some of our rules ("bptt", "bptt in bits", "sltt", "sltt chunk 2", "sltt_k"); all of the file's if
        None.

    Raises:
      BadCase: the case is not of the network that it names.
    """
    return errors(content, compute(content, only))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    status = 0
    columns = "  ".join(f"{quantity:>18}" for quantity in BOUNDS)
    for file in parser.parse_args(argv).files:
        start = time.perf_counter()
        try:
            with jax.enable_x64(True):
                found = check(load(file))
        except BadCase as e:
            print(f"{file}: {e}", file=sys.stderr)
            status = 2
            continue
        print(f"{file}  ({time.perf_counter() - start:.0f} s)\n{'':14}{columns}")
        for rule, quantities in found.items():
            cells = [f"{quantities[q]:18.1e}" if q in quantities else f"{'':18}" for q in BOUNDS]
            print(f"  {rule:12}{'  '.join(cells)}")
        for failure in failures(found):
            print(f"  FAILED {failure}")
            status = max(status, 1)
    print(f"{'bounds':14}{'  '.join(f'{b:18.0e}' for b in BOUNDS.values())}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
