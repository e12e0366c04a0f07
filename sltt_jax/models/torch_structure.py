"""What the names and shapes of a PyTorch state dict say of the structure of its network."""

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def differences(given: Shapes, expected: Shapes) -> list[str]:
    """Says in what the network of one state dict differs from that of another, a line each.

    Args:
      given, expected: shapes by name, in PyTorch's names and layouts, without prefixes.

    Returns:
      Lines such as "first convolution: 7x7, not 3x3"; none where both have the same layers.
    """
    one, other = _structure(given), _structure(expected)
    names = list(dict.fromkeys([*one, *other]))
    return [
        f"{name}: {one.get(name, 'none')}, not {other.get(name, 'none')}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _structure(shapes) -> dict[str, str]:
    """Maps what can be told of a network to what is told."""
    weights = {name: shapes[name] for name in sorted(shapes, key=_in_order) if name.endswith(".weight")}
    convs = {name: s for name, s in weights.items() if len(s) == 4}
    main = {name: s for name, s in convs.items() if not re.search(r"\.(shortcut|downsample)\.", name)}
    dense = [s for s in weights.values() if len(s) == 2]
    found = {"fully connected layers": ", ".join(f"{s[1]} to {s[0]}" for s in dense)}
    if main:
        features, _, height, width = next(iter(main.values()))
        found["first convolution"] = f"{height}x{width} to {features} channels"
    blocks = _blocks(convs)
    found["layers"] = "in residual blocks" if blocks else "one after the other"
    found["normalisation"] = _normalisation(shapes)
    if not blocks:
        found["channels of the convolutions"] = ", ".join(str(s[0]) for s in main.values())
        return found
    stages = {}
    for (stage, _), block in blocks.items():
        stages.setdefault(stage, []).append(block)
    found["blocks of each stage"] = ", ".join(str(len(stage)) for stage in stages.values())
    found["channels of each stage"] = ", ".join(str(stage[0][-1][0]) for stage in stages.values())
    found["convolutions of a block"] = str(max(map(len, blocks.values())))
    shortcuts = [name for name in convs if name not in main]
    found["biases of the convolutions"] = "yes" if any(_bias(name) in shapes for name in main) else "no"
    if shortcuts:
        has_norm = any(re.search(r"\.(shortcut|downsample)\.1\.", name) for name in shapes)
        found["shortcuts that change the shape"] = "a convolution" + " and a normalisation" * has_norm
    if order := _order(shapes, blocks):
        found["order in a block"] = order
    return found


def _in_order(name):
    """Sorts names by their numbers, and what has none, such as a readout, where its name comes."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _blocks(convs):
    """Maps `(stage, i)` to the shapes of the convolutions of a block's branch, in their order."""
    blocks = {}
    for name, shape in convs.items():
        if match := re.match(r"layer(\d+)\.(\d+)\.conv\d\.", name):
            blocks.setdefault((int(match[1]), int(match[2])), []).append(shape)
    return blocks


def _bias(name):
    return f"{name.removesuffix('weight')}bias"


def _normalisation(shapes):
    if any(name.endswith(".running_mean") for name in shapes):
        return "of batches"
    return "of weights" if any(name.endswith(".gain") for name in shapes) else "none"


def _order(shapes, blocks):
    """Tells whether blocks normalise what they are given or what they have convolved."""
    for (stage, i), (first, *_) in blocks.items():
        norm = shapes.get(f"layer{stage}.{i}.bn1.weight")
        if norm is not None and first[0] != first[1]:
            return "normalise first" if norm == first[1:2] else "convolve first"
    return None
