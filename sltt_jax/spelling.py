"""How a rule is written: `str(rule)` without its defaults, and what reads that again."""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any


def spell(rule: Any) -> str:
    """Writes a frozen dataclass as the call that makes it, without its defaults: "sltt_k(2, draw=first)".

    The first field needs no name, and strings no quotation marks, so that a shell takes it in one pair.
    """
    parts = []
    for i, field in enumerate(dataclasses.fields(rule)):
        value = getattr(rule, field.name)
        if value != field.default:
            parts.append(f"{value}" if i == 0 else f"{field.name}={value}")
    name = type(rule).__name__
    return f"{name}({', '.join(parts)})" if parts else name


def parse(text: str, kinds: Sequence[type]) -> Any:
    """Makes the object that `spell` writes as `text`, of one of the classes `kinds`.

    Raises:
      ValueError: it is none of them, or cannot have these settings.
    """
    known = {kind.__name__: kind for kind in kinds}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call):
            args = [_value(node) for node in call.args]
            kwargs = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
            call = call.func
        else:
            args, kwargs = [], {}
        return known[call.id if isinstance(call, ast.Name) else ""](*args, **kwargs)
    except (SyntaxError, KeyError, TypeError, ValueError) as error:
        fields = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in known.items()}
        forms = ", ".join(f"{name}({', '.join(of_kind)})" for name, of_kind in fields.items())
        why = f": {error}" if isinstance(error, TypeError | ValueError) else ""
        raise ValueError(f"a rule is one of {forms}; got {text!r}{why}") from error


def _value(node):
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
