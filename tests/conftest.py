"""Shared by all tests: a cache of compiled programs, strict settings of JAX, and a count of programs."""

import functools
import os
from pathlib import Path

# The cache is the tests' own and kept from run to run; processes they start inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))

import jax
import jax.monitoring
import pytest
from jax._src import compiler  # there is no public way to give options to all programs of a test

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_num_cpu_devices", 4)
# Arrays of different ranks are an error, but for scalars: a mistake in the axes could go unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")

XLA_FLAGS = os.environ.get("XLA_FLAGS")
jax.devices()  # XLA reads its flags here, before a test or what it calls can set others

# Programs that JAX asked for, the seconds they took, and how many of them came from the cache.
programs = {"asked": 0, "seconds": 0.0, "cached": 0}


def _on_duration(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        programs["asked"] += 1
        programs["seconds"] += seconds


def _on_event(event, **_):
    programs["cached"] += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


# Slow files that take longest, or wait for other processes, begin first: no worker is left alone with one.
FIRST = (
    "test_faults", "test_processes", "test_notebooks", "test_targets", "test_parity", "test_docs",
    "test_recipes", "test_peers", "test_paper_claims", "test_fuzz",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [*FIRST, item.path.stem].index(item.path.stem))


def pytest_sessionfinish(session):
    if hasattr(
        session.config, "workeroutput"
    ):  # a worker of pytest-xdist, whose numbers the first process adds
        session.config.workeroutput["programs"] = programs


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for name, value in getattr(node, "workeroutput", {}).get("programs", {}).items():
        programs[name] += value


def pytest_terminal_summary(terminalreporter):
    compiled = programs["asked"] - programs["cached"]
    terminalreporter.write_line(
        f"programs: {compiled} compiled in {programs['seconds']:.0f} s, {programs['cached']} from the cache"
    )


def _reset_flags():
    if XLA_FLAGS is None:
        os.environ.pop("XLA_FLAGS", None)
    else:
        os.environ["XLA_FLAGS"] = XLA_FLAGS


@pytest.fixture(autouse=True)
def flags_of_the_user():
    """Scripts add to XLA_FLAGS, which processes that later tests start would inherit."""
    _reset_flags()
    yield
    _reset_flags()


@pytest.fixture
def x64():
    """Double precision, for identities that are to hold up to rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_codegen(monkeypatch):
    """Machine code that is not optimised, in half of the compiler's time: for programs that are looked at.

    XLA makes the same program, in the same memory; only what LLVM makes of its loops is other code. Rounding
    may differ, so it is not for half precision, nor for runs of training that are to end in the same bits.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the processes that the test starts
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Writes loops by MLIR, which takes most of the time that is left.
FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


@functools.cache
def _older_emitter():
    """Whether this version of XLA has an older emitter too; jaxlib 0.10 has, and 0.12 has not."""
    try:
        jax.jit(lambda x: x, compiler_options={FUSION_EMITTERS: False})(0.0)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


@pytest.fixture
def quick_compile(quick_codegen, monkeypatch):
    """Programs in a fifth of the compiler's time, for identities.

    As above, and XLA's older emitter writes the loops, where there is one; what it fuses may differ, and with
    it the memory. Not in a tuned process, nor in those that a test starts, which may be tuned: of one loop
    for several results the older emitter makes wrong numbers (jaxlib 0.10.2).
    """
    if XLA_FLAGS or not _older_emitter():
        return
    options_of_user = compiler.get_compile_options

    def options(*args, env_options_overrides=None, **kwargs):
        overrides = {FUSION_EMITTERS: False} | (env_options_overrides or {})
        return options_of_user(*args, env_options_overrides=overrides, **kwargs)

    monkeypatch.setattr(compiler, "get_compile_options", options)


@pytest.fixture(params=["jit", "eager"])
def compiled(request):
    """`jax.jit`, and then nothing in its place: small functions compute the same either way."""
    return jax.jit if request.param == "jit" else lambda f, **_: f
