"""Compilers of devices that are not there, and what they are known to do."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from sltt_jax.analysis import accelerators, flops
from sltt_jax.analysis.accelerator_figures import ACCELERATORS, accelerator, all_reduce_seconds
from tests.common.compilers import SITE, needs_compilers


def test_what_is_no_target_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown target 'h1'; there are a100, h100, h200, tpu-v5e"):
        accelerators.compile_devices("h1", tmp_path)
    with pytest.raises(ValueError, match=r"a slice of tpu-v5e has one of 1, 4, 8, 16, .*256 chips, got 3"):
        accelerators.compile_devices("tpu-v5e", tmp_path, 3)
    with pytest.raises(ValueError, match="several hosts have 8 h100 each, got 12 devices"):
        accelerators.compile_devices("h100", tmp_path, 12)
    with pytest.raises(ValueError, match="count must be a whole number >= 1, got 0"):
        accelerators.compile_devices("h100", tmp_path, 0)


@pytest.mark.parametrize(("target", "package"), [("h100", "jax-cuda13-pjrt"), ("tpu-v6e", "libtpu")])
def test_a_folder_without_a_compiler_says_how_to_install_it(target, package, tmp_path):
    """Also after the compiler of another folder was loaded."""
    with pytest.raises(FileNotFoundError, match=f"holds no {package}; install it by: ") as raised:
        accelerators.compile_devices(target, tmp_path / "none")
    command = str(raised.value).split("install it by: ")[1]
    assert f"-m pip install --no-deps --target {tmp_path / 'none'} " in command
    assert f"'jax-cuda13-plugin=={jax.__version__}'" in command and "'libtpu==" in command


def test_a_compiler_of_another_version_is_refused(tmp_path):
    (tmp_path / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
    info = tmp_path / "jax_cuda13_pjrt-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-cuda13-pjrt\nVersion: 0.1.0\n")
    with pytest.raises(FileNotFoundError, match=f"jax-cuda13-pjrt 0.1.0, and jax is {jax.__version__}"):
        accelerators.compile_devices("h100", tmp_path)


def test_time_of_an_all_reduce():
    """In a host each sends 2 (n-1)/n by NVLink; between hosts 2 (h-1)/h of its eighth by its adapter."""
    h100 = accelerator("h100")
    assert all_reduce_seconds(h100, 1, 450e9) == 0
    assert all_reduce_seconds(h100, 4, 450e9) == pytest.approx(1.5)
    assert all_reduce_seconds(h100, 16, 450e9) == pytest.approx(2 * 7 / 8 + 2 * 1 / 2 * (450 / 8) / 50)
    assert all_reduce_seconds(accelerator("tpu-v5e"), 256, 200e9) == pytest.approx(2 * 255 / 256)


def test_figures_of_devices_hang_together():
    for name, device in ACCELERATORS.items():
        assert name == device.name and set(device.flops_per_second) == {"float32", "bfloat16", "float16"}
        assert 15e9 < device.memory_bytes < 2e11 and 8e11 < device.bytes_per_second < 5e12
        assert device.flops_per_second["float32"] <= device.flops_per_second["bfloat16"]
        if device.platform == "tpu":
            chips = [1, 4, 8, 16, 32, 64, 128, 256]
            assert list(device.topologies) == chips and device.host_devices is None
        else:
            assert f"device_memory_size: {device.memory_bytes}" in device.description


def product(w, xs):
    return jax.lax.scan(lambda c, x: (jnp.tanh(c @ w + x), None), xs[0], xs)[0]


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize("target", ACCELERATORS)
def test_a_function_compiled_for_every_target(target):
    T, batch, n = 7, 64, 512
    w, xs = jax.ShapeDtypeStruct((n, n), jnp.bfloat16), jax.ShapeDtypeStruct((T, batch, n), jnp.bfloat16)
    accelerators.compile_for(target, SITE, product, w, xs)
    # Again: a program that the cache on disk had kept could not be read.
    compiled = accelerators.compile_for(target, SITE, product, w, xs)
    operations = flops(jax.jit(product).trace(w, xs))
    cost = accelerators.accelerator_cost(target, compiled, flops=operations, precision="bfloat16")
    given, device = 2 * n * n + 2 * T * batch * n, accelerator(target)
    assert cost.peak_bytes >= given + 2 * batch * n
    assert cost.launches >= T and cost.moved_bytes >= given
    assert cost.compute_seconds == 2 * T * batch * n * n / device.flops_per_second["bfloat16"]
    assert cost.seconds == max(cost.memory_seconds, cost.compute_seconds) and cost.efficiency == 1
    assert (cost.all_reduces, cost.devices) == (0, 1)
    assert jax.devices()[0].platform == "cpu"  # JAX computes where it did
    with pytest.raises(ValueError, match=r"precision must be one of bfloat16, .*got 'int8'"):
        accelerators.accelerator_cost(target, compiled, flops=operations, precision="int8")


@needs_compilers
@pytest.mark.slow
def test_what_does_not_fit_into_a_tpu_is_said():
    x = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)  # 16 GiB, twice
    with pytest.raises(MemoryError, match=r"tpu-v5e: RESOURCE_EXHAUSTED: .* exceeds available HBM"):
        accelerators.compile_for("tpu-v5e", SITE, lambda x: x @ x, x)


@needs_compilers
@pytest.mark.slow
def test_two_processes_compile_for_a_tpu_at_once():
    """The compiler would lock the TPU of the machine, which there is none of, for the first of them."""
    script = (
        "import sys, jax, jax.numpy as jnp\n"
        "from pathlib import Path\n"
        "from sltt_jax.analysis import accelerators\n"
        "accelerators.compile_devices('tpu-v5e', Path(sys.argv[1]))\n"
        "print('loaded', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script, str(SITE)]
    start = functools.partial(
        subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with start() as first, start() as second:
        said = [process.stdout.readline() for process in (first, second)]
        ended = [process.communicate("\n")[0] for process in (first, second)]
    assert said == ["loaded\n"] * 2 and ended == ["", ""]
