"""The rules as they are named on the command line and in tables."""

from typing import Any


def parse_rule(text: str) -> dict[str, Any]:
    """The settings of a run for "bptt", "bptt:remat", "tbptt:4" (window), "sltt" or "sltt_k:1" (k).

    Raises:
      ValueError: there is no such rule.
    """
    name, _, number = text.partition(":")
    if text in ("bptt", "sltt"):
        return {"rule": text}
    if text == "bptt:remat":
        return {"rule": "bptt", "remat": True}
    if name in ("tbptt", "sltt_k") and number.isdecimal() and int(number) > 0:
        return {"rule": name, "window" if name == "tbptt" else "k": int(number)}
    raise ValueError(f"rules are bptt, bptt:remat, tbptt:4, sltt and sltt_k:1 (any numbers), got {text!r}")


def show_rule(text: str) -> str:
    """The same for tables: "tbptt(4)"."""
    name, colon, argument = text.partition(":")
    return f"{name}({argument})" if colon else name
