"""The API pages leave out no public name, and none of them is undocumented."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import sltt_jax
from sltt_jax.data import Batches

DOCS = Path(__file__).parents[1] / "docs"
API = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
SHOWN = re.findall(r"^::: (\S+)$", API, re.MULTILINE)  # rendered from the docstrings
IN_ROWS = set(re.findall(r"`([A-Za-z_0-9]+)`", "\n".join(re.findall(r"^\| ([^|]*) \|", API, re.MULTILINE))))


def public_names():
    """Every `(module, name)` of an `__all__`."""
    modules = [sltt_jax.__name__]
    modules += [m.name for m in pkgutil.walk_packages(sltt_jax.__path__, f"{sltt_jax.__name__}.")]
    for name in modules:
        for public in getattr(importlib.import_module(name), "__all__", ()):
            yield name, public


def look_up(path):
    """The module or object of a dotted name."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def shown():
    """What the API pages render: each object, and the public ones of each module, by id."""
    found = {}
    for path in SHOWN:
        thing = look_up(path)
        found[id(thing)] = thing
        if inspect.ismodule(thing):
            own = {k: v for k, v in vars(thing).items() if getattr(v, "__module__", None) == thing.__name__}
            found |= {id(v): v for k, v in own.items() if not k.startswith("_")}
    return found


def test_no_public_name_is_missing_from_the_api_pages():
    names, there = list(public_names()), shown()
    missing = [
        f"{module}.{name}"
        for module, name in names
        if id(look_up(f"{module}.{name}")) not in there and name not in IN_ROWS
    ]
    assert len(names) > 100 and not missing


def undocumented(thing):
    """Whether it has no docstring but one that Python makes."""
    text = inspect.getdoc(thing)
    return not text or text.startswith(f"{thing.__name__}(")


def methods(cls):
    fields = getattr(cls, "__dataclass_fields__", ())
    own = vars(cls).items()
    return {k: v for k, v in own if inspect.isfunction(v) and not k.startswith("_") and k not in fields}


def test_no_public_name_is_undocumented():
    """What a protocol promises is documented there, and not again where it is kept."""
    bare, promised = [], methods(Batches)
    for thing in shown().values():
        if inspect.isclass(thing):
            of_class = {k: v for k, v in methods(thing).items() if k not in promised}
            bare += [v for k, v in of_class.items() if undocumented(getattr(thing, k))]
        if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isfunction(thing):
            bare += [thing] * undocumented(thing)
    assert not bare and not any(map(undocumented, promised.values()))


def test_a_name_without_a_docstring_is_found():
    class Bare(tuple):
        """Bare(x)"""

    assert undocumented(Bare) and undocumented(lambda: None) and not undocumented(look_up(SHOWN[0]))
