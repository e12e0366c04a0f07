"""Figures of GPUs and TPUs: what their makers state, and how XLA's compiler is told of a GPU.

Memory, its bandwidth and operations are of NVIDIA's data sheets of A100 80GB, H100 and H200 (SXM; without
sparsity) and of the pages of TPU v5e, v5p and v6e in Google Cloud's documentation. Links are stated there for
both directions together, of which half is taken here: NVLink 600 GB/s of an A100, 900 GB/s of an H100 or
H200; ICI 400 GB/s of a TPU v5e, 1200 GB/s of a v5p, 800 GB/s of a v6e. Networks are those of NVIDIA's own
hosts: an adapter for each GPU, of 200 Gb/s in the DGX A100 and 400 Gb/s in the DGX H100 and H200. None of
this has been measured here, and no transfer reaches it.
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A kind of device, and what joins several of them. Bandwidths are of one direction.

    Attributes:
      name: as `accelerators` takes it.
      platform: "cuda" or "tpu".
      memory_bytes: of the device.
      bytes_per_second: to and from its memory.
      flops_per_second: of matrix products and convolutions by the precision of a run. float32 goes through
        what XLA takes for it by default: TF32 on a GPU, one pass of bfloat16 on a TPU.
      link_bytes_per_second: that one device sends over all its links to others: NVLink, or a TPU's ICI.
      host_devices: GPUs that NVLink joins; None where the links join the whole slice.
      network_bytes_per_second: that one device sends to other hosts: an adapter for each GPU.
      topologies: of a TPU, XLA's name of the slice for every number of chips.
      description: of a GPU, what XLA's compiler needs to know of it.
    """

    name: str
    platform: str
    memory_bytes: float
    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    link_bytes_per_second: float
    host_devices: int | None = None
    network_bytes_per_second: float = 0.0
    topologies: Mapping[int, str] = dataclasses.field(default_factory=dict)
    description: str = ""


def _precisions(half: float, single: float) -> dict[str, float]:
    return {"bfloat16": half, "float16": half, "float32": single}


def _gpu(
    name: str,
    *,
    title: str,
    capability: str,
    cores: int,
    units: int,
    clock: float,
    memory: int,
    bandwidth: int,
    l2: int,
    shared: int,
    half: float,
    single: float,
    link: float,
    network: float,
) -> Accelerator:
    description = f"""
gpu_device_info {{
  name: "{title}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ {capability} }}
  core_count: {cores}
  fpus_per_core: {units}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  ecc_enabled: true
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{title}"
"""
    return Accelerator(
        name, "cuda", memory, bandwidth, _precisions(half, single), link, 8, network, description=description
    )


def _tpu(
    name: str, *, memory: float, bandwidth: float, half: float, link: float, topologies: Mapping[int, str]
) -> Accelerator:
    return Accelerator(
        name, "tpu", memory, bandwidth, _precisions(half, half), link, topologies=topologies
    )  # fmt: skip


def _slices(generation: str, *shapes: str) -> dict[int, str]:
    """XLA's names of slices by their chips. One chip is the first of the smallest slice that XLA knows."""
    sizes = {}
    for shape in shapes:
        chips = 1
        for n in shape.split("x"):
            chips *= int(n)
        sizes[chips] = f"{generation}:{shape}"
    return {1: f"{generation}:{shapes[0]}", **sizes}


_HOPPER = {
    "capability": "major: 9 feature_extension: ACCELERATED_FEATURES",
    "cores": 132,
    "units": 128,
    "clock": 1.98,
    "l2": 52428800,
    "shared": 233472,
    "half": 989.4e12,
    "single": 494.7e12,
    "link": 450e9,
    "network": 50e9,
}
_SQUARES = "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"
_CUBES = "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"

_ALL = (
    _gpu(
        "a100", title="NVIDIA A100-SXM4-80GB", capability="major: 8", cores=108, units=64, clock=1.41,
        memory=85100068864, bandwidth=2039040000000, l2=41943040, shared=167936, half=312e12, single=156e12,
        link=300e9, network=25e9,
    ),
    _gpu("h100", title="NVIDIA H100 80GB HBM3", memory=84942979072, bandwidth=3352320000000, **_HOPPER),
    _gpu("h200", title="NVIDIA H200 141GB HBM3e", memory=151397597184, bandwidth=4800000000000, **_HOPPER),
    _tpu(
        "tpu-v5e", memory=16 * GIB, bandwidth=819e9, half=197e12, link=200e9,
        topologies=_slices("v5e", *_SQUARES),
    ),
    _tpu(
        "tpu-v5p", memory=95 * GIB, bandwidth=2765e9, half=459e12, link=600e9,
        topologies=_slices("v5p", *_CUBES),
    ),
    _tpu(
        "tpu-v6e", memory=32 * GIB, bandwidth=1640e9, half=918e12, link=400e9,
        topologies=_slices("v6e", *_SQUARES),
    ),
)  # fmt: skip

ACCELERATORS = {accelerator.name: accelerator for accelerator in _ALL}


def accelerator(name: str) -> Accelerator:
    """Returns the figures of a device.

    Raises:
      ValueError: there is no such device here.
    """
    if name not in ACCELERATORS:
        raise ValueError(f"unknown target {name!r}; there are {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]


def all_reduce_seconds(device: Accelerator, count: int, size: float) -> float:
    """Seconds in which devices sum what each has, at best: at the bandwidth that is stated, without latency.

    In a host, or on the slice of a TPU, a ring: each device sends 2 (n - 1) / n of it. Between h hosts the
    like of the share of each GPU, 1/n of it, through its own adapter.

    Args:
      device: their kind.
      count: of devices.
      size: bytes of each.
    """
    near = count if device.host_devices is None else min(count, device.host_devices)
    hosts = count // near
    seconds = 2 * (near - 1) / near * size / device.link_bytes_per_second
    if hosts > 1:
        seconds += 2 * (hosts - 1) / hosts * (size / near) / device.network_bytes_per_second
    return seconds
