"""A rule on the command line: its spelling, or its kind with flags beside it."""

import dataclasses
from typing import Any

from sltt_jax import rules
from sltt_jax.blocks import check_at_most_T

KINDS = {kind.__name__: kind for kind in (rules.bptt, rules.tbptt, rules.sltt, rules.sltt_k)}
AUTO = {
    "sltt(auto)": rules.sltt(),
    "bptt(auto)": rules.bptt(),
}  # the chunk is found when the network is built
STEPS = "k", "window", "chunk"  # what may be at most T


def steps_needed(rule: rules.Rule) -> int:
    """The least T that a rule can do with."""
    return max(getattr(rule, name, 1) for name in STEPS)


def spelt(text: str, flags: dict[str, Any], *, T: int, k: int) -> str:
    """Spells the rule that is named by `text` and flags, as `str(rule)` does.

    Args:
      text: a rule as it is spelt, or its kind alone, "sltt_k".
      flags: settings of rules by name, None where they are not given; those of other kinds do not count.
      T: time steps of the run.
      k: of sltt_k, where nothing else names it.

    Raises:
      ValueError: there is no such rule, it needs more than T steps, or a flag contradicts the spelling.
    """
    text = text.strip()
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("chunk") == "auto" and text in ("sltt", "bptt"):
        text = f"{text}(auto)"
    if given.get("chunk") == "auto" and text not in AUTO:
        raise ValueError(f"chunk=auto is for sltt and bptt, got rule {text}")
    if text in AUTO:
        spelling, settings = text, {**vars(AUTO[text]), "chunk": "auto"}
    else:
        if text in KINDS:
            defaults = {"k": min(k, T), "window": min(2, T), **given}
            fields = [field.name for field in dataclasses.fields(KINDS[text])]
            rule = KINDS[text](**{name: defaults[name] for name in fields if name in defaults})
        else:
            rule = rules.parse_rule(text)
        for name in STEPS:
            check_at_most_T(name, getattr(rule, name, 1), T)
        spelling, settings = str(rule), vars(rule)
    for name, value in given.items():
        if settings.get(name, value) != value:
            raise ValueError(f"--rule {text} and --{name} {value} contradict each other")
    return spelling
