"""Who may import whom, by reading the source; and what importing costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = (
    *("sltt_jax.blocks", "sltt_jax.varying", "sltt_jax.damage", "sltt_jax.traces", "sltt_jax.bits"),
    "sltt_jax.quantisation",
)
STANDALONE = {
    *BASE,
    *(
        f"sltt_jax.{name}"
        for name in (
            "rules",
            "block_rule",
            "gradient_sums",
            "spelling",
            "streaming",
            "online_learning",
            "losses",
        )
    ),
}
LAYERS = (
    *("surrogate", "cell_blocks", "neurons", "cells", "fixed_point", "time_constants"),
    *("cell_layers", "batch_norm", "layers", "functional", "models"),
)  # each may import those before it
CPU_WORDS = ("platform_dependent", "optimization_barrier")
CPU_MAY = {"jax", "numpy", "sltt_jax.cpu", *sys.stdlib_module_names}


def name_of(path: Path, root: Path) -> str:
    """The module in `path`: "sltt_jax.cpu" of sltt_jax/cpu/__init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    **{name_of(path, ROOT): path.read_text() for path in (ROOT / "sltt_jax").rglob("*.py")},
    # On their path without the folder.
    **{
        name_of(path, ROOT / "experiments"): path.read_text() for path in (ROOT / "experiments").rglob("*.py")
    },
}
TESTS = {name_of(path, ROOT): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
MODULES = {*SOURCES, *TESTS}


def imports(source: str) -> Iterator[str]:
    """What a module imports: modules, and `module.name` for what it takes from one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_names(source: str) -> Iterator[str]:
    """Names with an underscore that a module takes from another one."""
    tree = ast.parse(source)
    aliases = set()  # what names modules of this repository here
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name in MODULES]
            aliases |= {alias.asname or alias.name.split(".")[0] for alias in ours}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name.startswith("_"):
                    yield f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in MODULES:
                    aliases.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in aliases:
                yield f"{ast.unparse(node.value)}.{node.attr}"


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def forbidden(module: str, source: str) -> list[str]:
    """The imports of a module of the library that its place does not allow."""
    found = list(imports(source))
    ours = [name for name in found if inside(name, "sltt_jax")]
    outside = [name for name in MODULES if not inside(name, "sltt_jax")]
    wrong = [name for name in found if inside(name, *outside) or inside(name, "experiments", "tests")]
    if inside(module, "sltt_jax.cpu"):
        wrong += [name for name in found if not inside(name, *CPU_MAY)]
    elif module in STANDALONE:
        wrong += [name for name in found if inside(name, "flax")]
        wrong += [name for name in ours if not inside(name, *STANDALONE)]
    elif inside(module, *(f"sltt_jax.{layer}" for layer in LAYERS)):
        own = next(i for i, layer in enumerate(LAYERS) if inside(module, f"sltt_jax.{layer}"))
        allowed = [f"sltt_jax.{layer}" for layer in LAYERS[: own + 1]]
        wrong += [name for name in ours if not inside(name, "sltt_jax.cpu", *BASE, *allowed)]
    elif inside(module, "sltt_jax.data"):
        wrong += [name for name in ours if not inside(name, "sltt_jax.data", *BASE)]
    elif inside(module, "sltt_jax.training"):
        wrong += [name for name in ours if inside(name, "sltt_jax.analysis")]
    elif inside(module, "sltt_jax.analysis"):
        wrong += [name for name in ours if inside(name, "sltt_jax.training")]
    return wrong


@pytest.mark.parametrize("module", sorted(name for name in SOURCES if inside(name, "sltt_jax")))
def test_imports_of_the_library_run_one_way(module):
    assert not forbidden(module, SOURCES[module])


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("sltt_jax.cpu.dense", "from sltt_jax.blocks import PyTree"),
        ("sltt_jax.cpu.dense", "import flax.linen as nn"),
        ("sltt_jax.rules", "from flax import linen"),
        ("sltt_jax.blocks", "from sltt_jax.neurons import lif"),
        ("sltt_jax.surrogate", "from sltt_jax.neurons import Neuron"),
        ("sltt_jax.neurons", "from sltt_jax import layers"),
        ("sltt_jax.layers", "import sltt_jax.models.mlp"),
        ("sltt_jax.models.mlp", "from sltt_jax.training import make_update"),
        ("sltt_jax.training.steps", "from sltt_jax.analysis import cost"),
        ("sltt_jax.analysis.costs", "from common.runs import Run"),
        ("sltt_jax.data.cache", "def f():\n    from sltt_jax.training import loop"),
    ],
)
def test_an_import_the_other_way_is_found(module, line):
    assert module in SOURCES and len(forbidden(module, line)) >= 1
    assert not forbidden(module, "import jax\nimport jax.numpy as jnp\nfrom jax import lax")


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_private_names_stay_in_their_module(module):
    assert not list(private_names(SOURCES[module]))


def test_a_private_name_of_another_module_is_found():
    source = """
import os
import sltt_jax.neurons
from sltt_jax import blocks as b, neurons
from sltt_jax.rules import _private, sltt

_own = b._first(neurons.lif) + sltt_jax.neurons._charge + sltt._private + self._own
os._exit(neurons.__name__)
"""
    assert sorted(private_names(source)) == [
        "b._first",
        "sltt_jax.neurons._charge",
        "sltt_jax.rules._private",
    ]


def test_what_differs_between_platforms_is_in_cpu_alone():
    """Its words do not even stand in a docstring elsewhere."""
    holders = {name for name, text in SOURCES.items() if any(word in text for word in CPU_WORDS)}
    assert "sltt_jax.cpu.convolution" in holders
    assert not {name for name in holders if not inside(name, "sltt_jax.cpu")}


@pytest.mark.parametrize("module", sorted(TESTS))
def test_no_test_imports_another(module):
    names = {name for name in TESTS if name.rsplit(".")[-1].startswith("test_")}
    bare = {name.rsplit(".")[-1] for name in names}
    assert not [name for name in imports(TESTS[module]) if inside(name, *names, *bare)]


SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_stands_in_experiments_is_a_script(script):
    body = ast.parse(SOURCES[script]).body
    assert "main" in [node.name for node in body if isinstance(node, ast.FunctionDef)]
    last = body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert ast.get_docstring(ast.parse(SOURCES[script]))


def test_rules_and_cells_and_their_comparison_do_not_import_flax():
    for modules in ("sltt_jax.neurons, sltt_jax.rules, sltt_jax.streaming", "sltt_jax.analysis"):
        code = f"import sys, {modules}; assert 'flax' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)
