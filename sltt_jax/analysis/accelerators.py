"""What a function costs on a GPU or TPU that is not there, from the program its compiler makes.

XLA's compilers for GPUs and TPUs run on any machine. Their packages are installed into a folder of their own
(`install_command`), never into the environment, where they would become JAX's backends:

    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    compiled = compile_for("h100", ".compilers", lambda x: jnp.tanh(x @ x), x)
    found = accelerator_cost("h100", compiled, flops=2 * 4096**3, precision="bfloat16")
    found.launches, found.moved_bytes, found.peak_bytes, found.seconds

JAX may have computed before, and goes on computing on what the machine has. Nothing is tuned on the device,
so that the workspace of cuDNN's algorithms is not counted. The figures are the same at every try with one
version of jax.
"""

import contextlib
import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from sltt_jax.analysis import hlo
from sltt_jax.analysis.accelerator_figures import accelerator, all_reduce_seconds
from sltt_jax.analysis.costs import memory_stats
from sltt_jax.blocks import PyTree, check_at_least_one

# CUDA's own compiler, without its mathematical libraries, which only run.
_CUDA_PACKAGES = (
    "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-cuda-runtime",
    "nvidia-cuda-cupti",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AcceleratorCost:
    """Cost of one call of a program on each of the devices that run it.

    Attributes:
      device: name of the kind of device.
      devices: how many run it.
      peak_bytes: that have to fit into the device, arguments and outputs with them: XLA's peak, or all its
        buffers where these are more, as on a TPU, whose buffers have gaps between them. A TPU's peak counts
        what is on the chip as well, up to 128 MiB.
      temp_bytes: beside arguments and outputs. On a TPU it can read 0, where all of it is on the chip.
      launches: kernels and copies, see `hlo.Counts`.
      moved_bytes: read from and written to memory, every loop by its trips.
      flops: of matrix products and convolutions.
      memory_seconds: to move the bytes, at the bandwidth of the memory.
      compute_seconds: to do the operations, at the peak of the precision.
      all_reduces: sums over the devices.
      looped_all_reduces: those of them that are in a loop.
      all_reduce_bytes: what each device gives into all of them.
      all_reduce_seconds: for these at best, at the bandwidth of the links.
    """

    device: str
    devices: int
    peak_bytes: int
    temp_bytes: int
    launches: float
    moved_bytes: float
    flops: float
    memory_seconds: float
    compute_seconds: float
    all_reduces: float
    looped_all_reduces: float
    all_reduce_bytes: float
    all_reduce_seconds: float

    @property
    def seconds(self) -> float:
        """The least that a call takes: the longer of the two bounds, and the sums over the devices."""
        return max(self.memory_seconds, self.compute_seconds) + self.all_reduce_seconds

    @property
    def efficiency(self) -> float:
        """Share of that time in which a device does what it would do alone."""
        return 1 - self.all_reduce_seconds / self.seconds


def packages() -> list[str]:
    """Requirements of the compilers, of the versions that go with the installed jax."""
    version = metadata.version("jax")
    (libtpu,) = (r.split(";")[0].strip() for r in metadata.requires("jax") or () if r.startswith("libtpu"))
    cuda = [f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}"]
    return [*cuda, *(f"{name}==13.*" for name in _CUDA_PACKAGES), libtpu]


def install_command(site: Path | str) -> str:
    """The command that installs the compilers into a folder, where they change nothing else."""
    listed = " ".join(f"'{package}'" for package in packages())
    return f"{Path(sys.executable).name} -m pip install --no-deps --target {site} {listed}"


def compile_devices(target: str, site: Path | str, count: int = 1) -> Sequence[Any]:
    """Returns devices that programs can be compiled for, and nothing run on.

    Args:
      target: "h100", "tpu-v5e": a name in `accelerator_figures.ACCELERATORS`.
      site: folder with the compilers' packages.
      count: of devices: of GPUs up to 8, which share a host, or whole hosts of 8; of TPU chips whole slices.

    Raises:
      ValueError: there is no such target, or it has no such number of devices.
      FileNotFoundError: the compiler is not in the folder; the message says how to install it.
    """
    device = accelerator(target)
    check_at_least_one("count", count)
    if device.platform == "tpu":
        if count not in device.topologies:
            sizes = ", ".join(map(str, device.topologies))
            raise ValueError(f"a slice of {target} has one of {sizes} chips, got {count}")
        topology = _tpu_topology(Path(site), device.topologies[count])
    else:
        size = device.host_devices or count
        if count > size and count % size:
            raise ValueError(f"several hosts have {size} {target} each, got {count} devices")
        layout = f"1x{max(count // size, 1)}x{min(count, size)}"
        topology = _cuda_topology(Path(site), target_config=device.description, topology=layout)
    return topology.devices[:count]


def compile_for(
    target: str,
    site: Path | str,
    f: Callable[..., Any],
    *args: PyTree,
    donate_argnums: int | Sequence[int] = (),
) -> jax.stages.Compiled:
    """Compiles a function for one device of a kind.

    Args:
      target, site: as for `compile_devices`.
      f: the function.
      *args: its arguments, of which only shapes and types matter.
      donate_argnums: those whose memory goes to the results.

    Raises:
      ValueError, FileNotFoundError: as `compile_devices`.
      MemoryError: as `compile_lowered`.
    """
    (device,) = compile_devices(target, site)
    sharding = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
    return compile_lowered(target, site, jax.jit(f, donate_argnums=donate_argnums).lower(*placed))


def compile_lowered(target: str, site: Path | str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles what was lowered for the devices that `compile_devices` returned.

    Raises:
      MemoryError: the compiler refuses a program that the device has too little memory for, as a TPU's does.
    """
    cuda: dict[str, str | bool] = {"xla_gpu_cuda_data_dir": str(_cuda(Path(site)))}
    options = cuda if accelerator(target).platform == "cuda" else None
    # JAX's cache on disk would keep such a program, but cannot read it without the device.
    least = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, least)
    jax.config.update(least, math.inf)
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{target}: {error}") from error
    finally:
        jax.config.update(least, before)


def accelerator_cost(
    target: str,
    compiled: jax.stages.Compiled,
    *,
    flops: float,
    precision: str,
    devices: int = 1,
    backward_share: float = 1.0,
) -> AcceleratorCost:
    """Reads what a compiled program costs.

    Args:
      target: what it was compiled for.
      compiled: the program.
      flops: operations of each device, see `analysis.flops`.
      precision: of matrix products and convolutions, "float32", "bfloat16" or "float16".
      devices: that run it together.
      backward_share: as for `analysis.flops`: k/T under `sltt_k`.

    Raises:
      ValueError: there is no such target or precision, or the program holds a loop of unknown length.
    """
    device = accelerator(target)
    if precision not in device.flops_per_second:
        raise ValueError(f"precision must be one of {', '.join(device.flops_per_second)}, got {precision!r}")
    memory = memory_stats(compiled)
    buffers = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    buffers += memory.temp_size_in_bytes
    counts = hlo.count(compiled.as_text() or "", backward_share=backward_share)
    return AcceleratorCost(
        device=target,
        devices=devices,
        peak_bytes=max(memory.peak_memory_in_bytes, buffers),
        temp_bytes=memory.temp_size_in_bytes,
        launches=counts.launches,
        moved_bytes=counts.moved_bytes,
        flops=flops,
        memory_seconds=counts.moved_bytes / device.bytes_per_second,
        compute_seconds=flops / device.flops_per_second[precision],
        all_reduces=counts.all_reduces,
        looped_all_reduces=counts.looped_all_reduces,
        all_reduce_bytes=counts.all_reduce_bytes,
        all_reduce_seconds=all_reduce_seconds(device, devices, counts.all_reduce_bytes),
    )


def _cuda(site: Path) -> Path:
    return site.absolute() / "nvidia" / "cu13"


def _check_installed(site: Path, package: str, part: Path):
    """Raises unless a folder has a compiler, of the version that goes with jax."""
    found = {d.name: d.version for d in metadata.distributions(path=[str(site)])}
    if package not in found or not part.exists():
        raise FileNotFoundError(f"{site} holds no {package}; install it by: {install_command(site)}")
    if package.startswith("jax-") and found[package] != metadata.version("jax"):
        raise FileNotFoundError(
            f"{site} holds {package} {found[package]}, and jax is {metadata.version('jax')}; "
            f"install another folder by: {install_command('FOLDER')}"
        )


def _cuda_topology(site: Path, **options: str) -> topologies.TopologyDescription:
    _check_installed(site, "jax-cuda13-pjrt", site / "jax_plugins" / "xla_cuda13")
    _check_installed(site, "nvidia-cuda-nvcc", _cuda(site) / "bin" / "ptxas")
    try:
        return topologies.get_topology_desc(platform="cuda", **options)
    except NotImplementedError:  # there is no such compiler in this process yet
        _load_cuda_compiler(site)
        return topologies.get_topology_desc(platform="cuda", **options)


def _load_cuda_compiler(site: Path):
    # JAX starts on what the machine has, so that the plugin comes too late to become a backend. It would look
    # for cuDNN and a driver too, of which compiling needs neither.
    jax.devices()
    with _environment(JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1"):
        sys.path.append(str(site))
        try:
            importlib.import_module("jax_plugins.xla_cuda13").initialize()
        finally:
            sys.path.remove(str(site))


def _tpu_topology(site: Path, name: str) -> topologies.TopologyDescription:
    library = site / "libtpu" / "libtpu.so"
    _check_installed(site, "libtpu", library)
    jax.devices()
    # It would ask the cloud which machine this is.
    asked = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by several processes: nothing of a TPU is locked, there is none
    }
    with _environment(TPU_LIBRARY_PATH=str(library.absolute()), **asked):
        return topologies.get_topology_desc(name, platform="tpu")


@contextlib.contextmanager
def _environment(**variables: str):
    """Sets variables that are not set already, for as long as a compiler is loaded."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
