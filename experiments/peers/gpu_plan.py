"""What gpu_report.py measures: the updates of its stages, the most important first."""

from functools import partial
from itertools import product
from typing import Literal, NamedTuple, get_args

Stage = Literal["sanity", "jax", "pytorch", "compiled", "spikingjelly", "memory", "kernels", "protocols"]
STAGES: tuple[Stage, ...] = get_args(Stage)

# Of the time that is left a stage gets its share among the stages that are left.
SHARES: dict[Stage, float] = {
    "sanity": 12, "jax": 28, "pytorch": 12, "compiled": 12, "spikingjelly": 8, "memory": 8, "kernels": 6,
    "protocols": 14,
}  # fmt: skip

PRECISIONS = "bfloat16", "float32"
RESNET, VGG, CONV, DENSE = "resnet18_batch128_T6", "vgg11_batch128_T10", "conv_batch128_T10", "mlp_T50"


class Entry(NamedTuple):
    """An update to measure; T is another number of time steps than that of the workload."""

    peer: str
    workload: str
    precision: str
    rule: str
    T: int | None = None


def of(peer: str, workload: str, precision: str, *rules: str) -> list[Entry]:
    """Entries of a peer under several rules."""
    return [Entry(peer, workload, precision, rule) for rule in rules]


def of_peer(peer: str) -> list[Entry]:
    """Entries of another library than this one."""
    return [Entry(peer, *case) for case in product((RESNET, VGG, CONV, DENSE), PRECISIONS, ("sltt", "bptt"))]


def of_protocol(workload: str, precision: str, *chunked: str) -> list[Entry]:
    """Entries of all libraries on what others measure; `chunked` are rules of this one."""
    ours = of("sltt_jax", workload, precision, *chunked, "sltt", "bptt")
    peers = ("spikingjelly", "pytorch", "pytorch_compiled")
    return ours + [entry for peer in peers for entry in of(peer, workload, precision, "bptt", "sltt")]


JAX = partial(of, "sltt_jax")
ENTRIES: dict[Stage, list[Entry]] = {
    "jax": [
        *JAX(RESNET, "bfloat16", "sltt", "sltt(6)", "bptt", "bptt(6)"),
        *JAX(RESNET, "float32", "sltt", "sltt(6)", "bptt"),
        *JAX(VGG, "bfloat16", "sltt", "sltt(10)", "bptt", "bptt(10)"),
        *JAX(CONV, "bfloat16", "sltt", "sltt(10)", "bptt(10)"),
        *JAX(DENSE, "bfloat16", "sltt", "sltt(50)", "bptt(50)"),
        *JAX(VGG, "float32", "sltt", "sltt(10)", "bptt"),
        *JAX(RESNET, "bfloat16", "sltt_k(1)", "sltt(2)", "sltt(3)"),
        *JAX("vgg11_T20", "bfloat16", "sltt", "sltt(10)", "sltt(20)", "bptt"),
        *JAX(CONV, "float32", "sltt", "sltt(10)", "bptt(10)"),
        *JAX(DENSE, "float32", "sltt", "sltt(50)", "bptt(50)"),
    ],
    "pytorch": of_peer("pytorch"),
    "compiled": of_peer("pytorch_compiled"),
    "spikingjelly": of_peer("spikingjelly"),
    "memory": [
        Entry(peer, CONV, "bfloat16", rule, T)
        for rule, T, peer in product(("sltt", "bptt"), (1, 4, 16, 64), ("sltt_jax", "pytorch"))
    ],
    "kernels": [*JAX(RESNET, "bfloat16", "sltt", "sltt(6)", "bptt(6)"), *JAX(RESNET, "float32", "sltt")],
    "protocols": [
        *of_protocol("linear4096_T500", "float32", "sltt(50)", "bptt(50)"),
        *of_protocol("dvs_vgg_batch16_T10", "float32", "sltt(10)", "bptt(10)"),
        *of_protocol("shd_batch256_T256", "float32", "sltt(16)", "bptt(16)"),
        *of_protocol("dvs_vgg_batch32_T10", "float32", "sltt(10)", "bptt(10)"),
        *of_protocol("linear8192_T500", "float32", "sltt(50)", "bptt(50)"),
        *of_protocol("linear16384_T500", "float32", "sltt(50)", "bptt(50)"),
    ],
}
