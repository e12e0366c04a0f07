"""Weights of the SLTT authors' PyTorch code, torchvision and SpikingJelly, and back, without PyTorch.

theirs = read_checkpoint("checkpoint_max.pth")
params, statistics = from_torch(model, theirs)
state = {**state, **statistics}
state_dict = to_torch(model, params, state, like=theirs)
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sltt_jax import functional
from sltt_jax.blocks import PyTree
from sltt_jax.layers import BATCH_STATS
from sltt_jax.models.nf_resnet import NFResNet
from sltt_jax.models.resnet import ResNet
from sltt_jax.models.spiking_resnet import SpikingResNet
from sltt_jax.models.torch_file import read_checkpoint
from sltt_jax.models.torch_structure import differences
from sltt_jax.models.vgg import VGG

__all__ = ["from_torch", "read_checkpoint", "to_torch", "torch_name"]

_LOG = logging.getLogger(__name__)

Model = ResNet | VGG | NFResNet | SpikingResNet


class _Names(NamedTuple):
    """Names of parts of a network in the authors' code."""

    stem: str
    readout: str
    neuron: str
    shortcut: str


_NAMES = {
    ResNet: _Names("conv1", "linear", "relu", "shortcut"),
    NFResNet: _Names("conv1", "fc", "sn", "downsample"),
    SpikingResNet: _Names("conv1", "fc", "sn", "downsample"),
    VGG: _Names("layer1.0", "classifier.1", "", ""),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"


def from_torch(model: Model, state_dict: Mapping[str, np.ndarray]) -> tuple[PyTree, PyTree]:
    """Takes parameters and batch statistics from a state dict of the same network.

    The names are those of the authors' code; what DataParallel, torchvision and spikingjelly call the same
    arrays is understood too. PyTorch's counters of batches are not used and may be missing.

    What a state dict does not hold is taken from the model, and cannot be checked: how a VGG pools
    (torchvision's and SpikingJelly's take the maximum, `max_pooling=True`, the authors' the mean), how a
    SpikingResNet joins spikes (`sew`), strides, dropout, and time constants, thresholds and resets of the
    neurons. One line of the log says so, a warning where the names are torchvision's and the VGG averages.

    Args:
      model: a ResNet, VGG, NFResNet or SpikingResNet.
      state_dict: arrays by name, in PyTorch's layouts.

    Returns:
      `(params, state)`, the arrays of `state_dict` in our layouts, their dtypes unchanged. The state holds
      the running statistics (none of an NFResNet) and no membranes.

    Raises:
      TypeError: PyTorch code has no such model.
      ValueError: the state dict is of another structure, and the message says in what it differs; or it is of
        the same, and the message lists missing names, unexpected ones and wrong shapes.
    """
    known = _names(model)
    given = {name: np.asarray(x) for name, x in state_dict.items() if not name.endswith(_COUNTER)}
    expected = _expected(model)
    names = _rename(known, list(given), list(expected))
    arrays = {names[name]: x for name, x in given.items()}
    stem = f"{known.stem}.weight"
    if stem in arrays and arrays[stem].ndim == 4:
        # The input channels are the one number that a model does not say of itself.
        path, (features, _, *window) = expected[stem]
        expected[stem] = path, (features, arrays[stem].shape[1], *window)
    wrong = {
        "missing": [name for name in expected if name not in arrays],
        "unexpected": [name for name in given if names[name] not in expected],
        "misshapen": [
            f"{name} is {arrays[name].shape}, not {shape}"
            for name, (_, shape) in expected.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    if any(wrong.values()):
        shapes = {names[name]: x.shape for name, x in given.items()}
        lines = differences(shapes, {name: shape for name, (_, shape) in expected.items()})
        lines = lines or [f"{what}: {', '.join(found)}" for what, found in wrong.items() if found]
        raise ValueError("\n  ".join([f"the state dict does not fit {_describe(model)}", *lines]))
    _log_what_is_assumed(model, foreign=any("features." in name for name in given))
    flat = {path: _from_layout(model, path, arrays[name]) for name, (path, _) in expected.items()}
    variables = unflatten_dict({path: np.array(x, order="C") for path, x in flat.items()})
    return variables.pop("params"), variables


def to_torch(
    model: Model,
    params: PyTree,
    state: PyTree,
    *,
    like: Mapping[str, np.ndarray] | Iterable[str] | None = None,
) -> dict[str, np.ndarray]:
    """Makes the state dict of a network, in PyTorch's layouts.

    `net.load_state_dict({k: torch.from_numpy(x) for k, x in to_torch(...).items()})` takes it strictly.

    Args:
      model: a ResNet, VGG, NFResNet or SpikingResNet.
      params: its parameters, or anything of the same structure and shapes, such as a gradient.
      state: its state, of which the batch statistics are used; without any ({}) there will be none.
      like: the state dict that the weights were read from, or its names: the result has the same names in the
        same order, and its counters of batches. None: the names of the code that `torch_name` knows.

    Returns:
      Arrays by name, each with memory of its own. The counters of batches, which no code uses, are those of
      `like`, or 0.

    Raises:
      TypeError: PyTorch code has no such model.
      ValueError: `like` has names that the network does not, or the other way round.
    """
    variables = {"params": params, BATCH_STATS: state.get(BATCH_STATS, {})}
    result = {}
    for path, x in _flatten(variables).items():
        name = torch_name(model, path[1:])
        result[name] = np.array(_to_layout(model, path, np.asarray(x)), order="C")
        if path[-1] == "var":
            result[f"{name.rpartition('.')[0]}.{_COUNTER}"] = np.array(0)
    return result if like is None else _named_like(model, result, like)


def torch_name(model: Model, path: Sequence[str]) -> str:
    """Name of the variable at `path` in the authors' code, or that which has such a model.

    `("layer1_0", "conv1", "kernel")` is layer1.0.conv1.weight; a membrane or firing rate has the name of its
    neuron.

    Raises:
      TypeError: PyTorch code has no such model.
    """
    known = _names(model)
    *modules, leaf = path
    if not isinstance(model, VGG):
        modules = [_module_name(known, m) for m in modules]
    elif match := re.fullmatch(r"(conv|bn|lif)(\d)_(\d)", modules[0]):
        # The modules of a stage are convolution, norm, neuron, dropout, convolution, ...
        kind, stage, i = match.groups()
        modules = [f"layer{stage}", str(4 * (int(i) - 1) + ("conv", "bn", "lif").index(kind))]
    elif match := re.fullmatch(r"hidden(_lif)?_(\d)", modules[0]):
        # Dense layer, neuron, dropout, dense layer, ...
        modules = [f"classifier.{3 * (int(match[2]) - 1) + bool(match[1])}"]
    else:
        modules = [known.readout]
    return ".".join(modules if leaf in ("v", "rate") else [*modules, _LEAVES.get(leaf, leaf)])


def _names(model):
    if type(model) not in _NAMES:
        known = ", ".join(cls.__name__ for cls in _NAMES)
        raise TypeError(f"PyTorch code that is known has no {type(model).__name__}; it has {known}")
    names = _NAMES[type(model)]
    if isinstance(model, VGG) and model.hidden:
        names = names._replace(readout=f"classifier.{3 * len(model.hidden)}")
    return names


def _module_name(known, module):
    if module == "downsample_lif":
        return f"downsample_{known.neuron}"
    return re.sub(r"^lif(\d)$", rf"{known.neuron}\1", module.replace("_", "."))


def _log_what_is_assumed(model, *, foreign):
    averages = isinstance(model, VGG) and not model.max_pooling
    pooling = (f"{'average' if averages else 'maximum'} pooling, ") * isinstance(model, VGG)
    joined = f"sew={model.sew}, " if isinstance(model, SpikingResNet) else ""
    _LOG.log(
        logging.WARNING if foreign and averages else logging.INFO,
        "a state dict fits %s; what it does not hold is assumed: %s%s, dropout %s",
        *(_describe(model), pooling + joined, model.neuron, getattr(model, "dropout", 0.0)),
    )


def _named_like(model, arrays, like):
    """Gives arrays the names of the state dict that their network was read from, in its order."""
    names = list(like)
    own = [name for name in names if not name.endswith(_COUNTER)]
    expected = _expected(model)
    renamed = _rename(_names(model), own, list(expected))
    missing, unknown = set(expected) - set(renamed.values()), [n for n in own if renamed[n] not in expected]
    if missing or unknown:
        raise ValueError(
            f"like has not the names of {_describe(model)}: missing {', '.join(sorted(missing)) or 'none'}, "
            f"unknown {', '.join(unknown) or 'none'}"
        )
    result = {}
    for name in names:
        if name.endswith(_COUNTER):
            result[name] = np.array(like[name] if isinstance(like, Mapping) else 0)
        elif renamed[name] in arrays:  # no statistics without a state
            result[name] = arrays[renamed[name]]
    return result


def _describe(model):
    fields = ("blocks", "convs", "bottleneck", "classes", "hidden", "width")
    shown = ", ".join(f"{name}={getattr(model, name)}" for name in fields if hasattr(model, name))
    return f"{type(model).__name__}({shown})"


def _flatten(variables) -> dict[tuple[str, ...], Any]:
    return flatten_dict(variables)  # pyright: ignore[reportReturnType]


def _expected(model):
    """Maps PyTorch's names to `((collection, *path), PyTorch's shape)`, for 3 input channels."""
    # No shape depends on the size of the images, but some take no large ones, and VGGs no small ones.
    side = 32 if isinstance(model, VGG) else 1
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    expected = {}
    for path, leaf in _flatten({"params": params, BATCH_STATS: state.get(BATCH_STATS, {})}).items():
        shape = _to_layout(model, path, np.broadcast_to(np.float32(0), leaf.shape)).shape
        expected[torch_name(model, path[1:])] = (path, shape)
    return expected


def _follows_a_map(model, path):
    """Whether the dense layer of a kernel is given a 7x7 map."""
    return isinstance(model, VGG) and path[-2] == ("hidden_1" if model.hidden else "classifier")


def _to_layout(model, path, x):
    if path[-1] == "gain":
        return x.reshape(-1, 1, 1, 1)
    if path[-1] != "kernel":
        return x
    if x.ndim == 4:
        return x.transpose(3, 2, 0, 1)
    if _follows_a_map(model, path):
        # PyTorch flattens the 7x7 map channels first.
        return x.reshape(7, 7, -1, x.shape[-1]).transpose(3, 2, 0, 1).reshape(x.shape[-1], -1)
    return x.T


def _from_layout(model, path, x):
    if path[-1] == "gain":
        return x.reshape(-1)
    if path[-1] != "kernel":
        return x
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    if _follows_a_map(model, path):
        return x.reshape(len(x), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(x))
    return x.T


def _rename(known, names, expected):
    """Authors' name of each of `names`; a name stays as it is where it has none or another has it.

    Knows the prefix of DataParallel, the containers that spikingjelly wraps layers in, what others call
    shortcuts and readouts, and the numbered "features" that torchvision and spikingjelly make VGGs of.
    """
    renamed = {name: re.sub(r"^(module\.)+", "", name) for name in names}
    numbers = sorted({int(m[1]) for name in renamed.values() if (m := re.match(r"features\.(\d+)\.", name))})
    stages = [re.match(r"layer(\d)\.(\d+)", name) for name in expected]
    places = sorted({(int(m[1]), int(m[2])) for m in stages if m})
    features = dict(zip(numbers, places, strict=True)) if len(numbers) == len(places) else {}

    def alias(name):
        name = re.sub(r"\b(conv\d|bn\d)\.0\.", r"\1.", name)
        name = re.sub(r"\.(shortcut|downsample)(\.0)?\.", rf".{known.shortcut}.", name)
        name = re.sub(r"^(fc|linear|classifier)(\.\d+)?\.", rf"{known.readout}.", name)
        if (match := re.match(r"features\.(\d+)\.", name)) and int(match[1]) in features:
            stage, i = features[int(match[1])]
            name = f"layer{stage}.{i}.{name[match.end() :]}"
        return name

    taken = set(renamed.values())
    for name, plain in renamed.items():
        other = alias(plain)
        if plain not in expected and other in expected and other not in taken:
            renamed[name] = other
            taken.add(other)
    return renamed
