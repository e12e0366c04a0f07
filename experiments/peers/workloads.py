"""The training updates that are measured, as plain data that needs nothing but numpy.

All networks use the same neurons: soft reset, threshold 1, triangle of width 1 as the surrogate derivative,
reset differentiated, input not decayed, tau below. All losses are means over the time steps. The optimizer is
SGD with momentum.

A network is a sequence of layers, applied at every step to a batch:

    ("dense", n)            n units, with bias
    ("conv", n, stride, bias)   3x3, padding 1, n channels
    ("norm",)               batch normalisation with the statistics of the step
    ("lif",)                neurons
    ("pool", k)             average over k x k
    ("flatten",)            [H, W, C] in one axis
    ("block", n, stride)    the paper's residual block: s = lif(norm(x)), then conv(lif(norm(conv(s)))) +
                            shortcut, which is s, or a 1x1 convolution of it where the shape changes
    ("tile", k)             a map of 1x1 repeated k x k times, which is what the paper's VGG comes to
"""

from typing import NamedTuple

import numpy as np

TAU = 1.1
LEARNING_RATE = 0.01
MOMENTUM = 0.9

Layer = tuple


class Workload(NamedTuple):
    """One training update.

    Attributes:
      text: what it is, in a few words.
      layers: the network.
      shape: of one input, channels last.
      batch: samples.
      T: time steps.
      chunks: that are measured.
      static: the input is the same at every step, else spikes.
      classes: units of the readout, for the cross entropy; 0: the loss is the mean of the outputs.
    """

    text: str
    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    batch: int
    T: int
    chunks: tuple[int, ...]
    static: bool = False
    classes: int = 10


def _linear(n: int, chunks: tuple[int, ...]) -> Workload:
    layers = ("dense", n), ("lif",)
    return Workload(f"Linear({n}, {n}) + LIF", layers, (n,), 16, 500, chunks, classes=0)


def _mlp(T: int, chunks: tuple[int, ...]) -> Workload:
    layers = (("dense", 512), ("lif",)) * 3 + (("dense", 10),)
    return Workload("784-512-512-512-10", layers, (784,), 64, T, chunks)


def _spoken(T: int, batch: int, chunks: tuple[int, ...]) -> Workload:
    layers = (("dense", 128), ("lif",)) * 2 + (("dense", 20),)
    return Workload("128-128-128-20", layers, (128,), batch, T, chunks, classes=20)


def _convnet(T: int, chunks: tuple[int, ...], batch: int = 16) -> Workload:
    convs = [(("conv", n, 1, False), ("norm",), ("lif",), ("pool", 2)) for n in (32, 64, 128)]
    layers = (*sum(convs, ()), ("flatten",), ("dense", 10))
    return Workload("conv 32-64-128 on 34x34x2", layers, (34, 34, 2), batch, T, chunks)


def _resnet18(T: int, batch: int, chunks: tuple[int, ...]) -> Workload:
    blocks = [("block", n, 1 + (n > 64 and i == 0)) for n in (64, 128, 256, 512) for i in range(2)]
    layers = ("conv", 64, 1, False), *blocks, ("norm",), ("lif",), ("pool", 4), ("flatten",), ("dense", 10)
    return Workload("ResNet-18 on 32x32x3", layers, (32, 32, 3), batch, T, chunks, static=True)


def _vgg11(T: int, batch: int, chunks: tuple[int, ...]) -> Workload:
    layers: list[Layer] = []
    for stage, n in zip((1, 1, 2, 2, 2), (64, 128, 256, 512, 512), strict=True):
        layers += [("conv", n, 1, True), ("norm",), ("lif",)] * stage + [("pool", 2)]
    return Workload(
        "VGG-11 on 48x48x2",
        (*layers, ("tile", 7), ("flatten",), ("dense", 10)),
        (48, 48, 2), batch, T, chunks,
    )  # fmt: skip


def _dvs_vgg(T: int, batch: int, chunks: tuple[int, ...]) -> Workload:
    layers: list[Layer] = []
    for pair in ((64, 128), (256, 256), (512, 512), (512, 512)):
        for n in pair:
            layers += [("conv", n, 1, True), ("norm",), ("lif",)]
        layers.append(("pool", 2))
    return Workload(
        "CIFAR10-DVS VGG on 48x48x2",
        (*layers, ("flatten",), ("dense", 10)),
        (48, 48, 2), batch, T, chunks,
    )  # fmt: skip


ON_CPU = {
    "linear512_T500": _linear(512, (5, 10, 50)),
    "linear4096_T500": _linear(4096, (5, 10, 50)),
    "mlp_T10": _mlp(10, (2, 5, 10)),
    "mlp_T50": _mlp(50, (2, 5, 10, 25, 50)),
    "mlp_T200": _mlp(200, (5, 10, 20)),
    "conv_T10": _convnet(10, (2, 5, 10)),
    "conv_T40": _convnet(40, (2, 5)),
    "resnet18_batch1_T6": _resnet18(6, 1, (2, 3, 4, 6)),
    "resnet18_T4": _resnet18(4, 16, (2, 4)),
    "resnet18_T6": _resnet18(6, 16, (2, 3, 6)),
    "vgg11_T10": _vgg11(10, 16, (2, 5)),
}
# ResNet-18 and VGG-11 are in the paper's setting. The last are what others measure: the layer of Open
# Neuromorphic's benchmark, the VGG for CIFAR10-DVS of spikingjelly's examples, and a network of a size that
# is usual on the Spiking Heidelberg Digits. The neurons are those above in all of them.
ON_GPU = {
    "resnet18_batch128_T6": _resnet18(6, 128, (2, 3, 6)),
    "resnet18_batch512_T6": _resnet18(6, 512, (2, 3, 6)),
    "vgg11_batch128_T10": _vgg11(10, 128, (2, 5, 10)),
    "vgg11_T20": _vgg11(20, 16, (2, 5, 10, 20)),
    "conv_batch128_T10": _convnet(10, (2, 5, 10), 128),
    "linear8192_T500": _linear(8192, (5, 10, 50)),
    "linear16384_T500": _linear(16384, (5, 10, 50)),
    "dvs_vgg_batch16_T10": _dvs_vgg(10, 16, (2, 5, 10)),
    "dvs_vgg_batch32_T10": _dvs_vgg(10, 32, (2, 5, 10)),
    "shd_batch256_T256": _spoken(256, 256, (4, 16, 64)),
}
WORKLOADS = ON_CPU | ON_GPU
OWN_RULES = "bptt", "bptt(chunk)", "sltt", "sltt(chunk)", "sltt_k(1)", "sltt_k(2)"
PEER_RULES = "bptt", "sltt"


def tiny(workload: Workload) -> Workload:
    """A few neurons and at most 50 steps in place of a workload, to rehearse how it is measured."""
    layers = ("dense", 16), ("lif",), ("dense", 10)
    return Workload("20-16-10", layers, (20,), 4, min(workload.T, 50), workload.chunks)


def own_rules(workload: Workload, kinds: tuple[str, ...] = OWN_RULES) -> tuple[str, ...]:
    """The rules of this library that are measured; "(chunk)" stands for all chunks, under BPTT and for T."""
    names = []
    for kind in kinds:
        if kind == "sltt(chunk)":
            names += [f"sltt({c})" for c in workload.chunks]
        elif kind == "bptt(chunk)":
            names += [f"bptt({c})" for c in sorted({*workload.chunks, workload.T})]
        else:
            names.append(kind)
    return tuple(names)


def inputs(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Inputs float32 `[T, B, *shape]` (`[B, *shape]` if they are static) and labels int32 `[B]`."""
    rng = np.random.default_rng(0)
    shape = (workload.batch, *workload.shape)
    if workload.static:
        xs = rng.standard_normal(shape, np.float32)
    elif not workload.classes:
        xs = rng.standard_normal((workload.T, *shape), np.float32)
    else:
        xs = (rng.random((workload.T, *shape), np.float32) < 0.2).astype(np.float32)
    return xs, np.arange(workload.batch, dtype=np.int32) % max(workload.classes, 1)


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """The initial weights of every layer of that shape, `[out, in, *window]`, float32; biases are 0.

    Their size keeps the neurons firing in layers without batch normalisation too.
    """
    scale = (6 / np.prod(shape[1:])) ** 0.5
    return (scale * np.random.default_rng(shape).standard_normal(shape)).astype(np.float32)


def flattened(workload: Workload) -> tuple[int, int, int] | None:
    """Height, width and channels where the network flattens its maps."""
    if len(workload.shape) < 3:
        return None
    height, width, channels = workload.shape
    for kind, *args in workload.layers:
        if kind in ("conv", "block"):
            channels, stride = args[:2]
            height, width = -(-height // stride), -(-width // stride)
        elif kind == "pool":
            height, width = height // args[0], width // args[0]
        elif kind == "tile":
            height = width = args[0]
        elif kind == "flatten":
            break
    return height, width, channels


def jax_weights(workload: Workload, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The initial value of a Flax parameter; `path` ends with its name, "kernel", "scale" or "bias"."""
    if path.endswith("scale"):
        return np.ones(shape, np.float32)
    if not path.endswith("kernel"):
        return np.zeros(shape, np.float32)
    *window, n, features = shape
    w = weights((features, n, *window))
    maps = flattened(workload)
    if not window and maps and n == np.prod(maps):
        height, width, channels = maps  # PyTorch flattens channels first
        return w.reshape(features, channels, height, width).transpose(2, 3, 1, 0).reshape(shape)
    return w.transpose(*range(2, w.ndim), 1, 0)
