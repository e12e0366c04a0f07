"""NIR graphs as NIR's own equations have them, step by step in NumPy, for ours to be held against."""

import jax
import numpy as np

DT = 1e-4


def simulate(graph, xs: np.ndarray, dt: float = DT) -> dict[str, np.ndarray]:
    """Runs a graph by Euler's method and returns the outputs of all its nodes, `[T, B, ...]`, channels first.

    Nodes of a graph within it are named "graph.node". A node is given the sum of the outputs of the nodes
    before it, of the step before where they come later.
    """
    nodes, edges = flat(graph)
    state, outputs = {}, {name: [] for name in nodes}
    order = in_order(nodes, edges)
    for t, x in enumerate(np.asarray(xs)):
        for name in order:
            given = []
            for source in [source for source, target in edges if target == name]:
                ys, node = outputs[source], nodes[source]
                if not ys and order.index(source) > order.index(name):  # lateral weights, before all spikes
                    ys = [step(node, np.zeros((len(x), node.weight.shape[1])), state, source, dt)]
                given.append(ys[t] if len(ys) > t else ys[-1])
            outputs[name].append(step(nodes[name], sum(given) if given else x, state, name, dt))
    return {name: np.stack(values) for name, values in outputs.items()}


def in_order(nodes, edges):
    """Names of nodes, each after those before it; where they go round in a circle neurons come first."""
    order = []
    while len(order) < len(nodes):
        left = [name for name in nodes if name not in order]
        waits = {name: {a for a, b in edges if b == name} - set(order) for name in left}
        started = [name for name in left if {a for a, b in edges if b == name} & set(order)]
        ready = [name for name in left if not waits[name]]
        order.append((ready or [name for name in started if hasattr(nodes[name], "v_threshold")])[0])
    return order


def flat(graph, prefix=""):
    """Nodes and edges with those of graphs within it."""
    nodes, edges, ends = {}, [], {}
    for name, node in graph.nodes.items():
        if type(node).__name__ == "NIRGraph":
            inner, between = flat(node, f"{prefix}{name}.")
            nodes |= inner
            edges += between
            ends[name] = f"{prefix}{name}.input", f"{prefix}{name}.output"
        else:
            nodes[prefix + name] = node
            ends[name] = prefix + name, prefix + name
    return nodes, edges + [(ends[a][1], ends[b][0]) for a, b in graph.edges]


def step(node, x, state, name, dt):
    """One step of a node."""
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return x
    if kind in ("Linear", "Affine"):
        return x @ node.weight.T + getattr(node, "bias", 0)
    if kind == "Conv2d":
        padding = node.padding
        y = jax.lax.conv_general_dilated(
            x,
            np.asarray(node.weight, x.dtype),
            tuple(node.stride),
            padding.upper() if isinstance(padding, str) else [(p, p) for p in padding],
            rhs_dilation=tuple(node.dilation),
        )
        return np.asarray(y) + node.bias[:, None, None]
    if kind in ("AvgPool2d", "SumPool2d"):
        (p, q), (down, right) = node.padding, node.stride
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, ((0, 0), (0, 0), (p, p), (q, q))), tuple(node.kernel_size), (2, 3)
        )[:, :, ::down, ::right]
        return windows.mean((4, 5)) if kind == "AvgPool2d" else windows.sum((4, 5))
    if kind == "Flatten":
        return x.reshape(len(x), -1)
    if kind == "CubaLIF":
        i = state.get((name, "i"), np.zeros(x.shape))
        x = state[name, "i"] = i + dt / node.tau_syn * (-i + node.w_in * x)
    tau = getattr(node, "tau_mem", getattr(node, "tau", None))
    v = state.get(name, np.zeros(x.shape) + getattr(node, "v_reset", 0))
    v = v + (dt * node.r * x if tau is None else dt / tau * (node.v_leak - v + node.r * x))
    if kind == "LI":
        state[name] = v
        return v
    spikes = v >= node.v_threshold
    state[name] = np.where(spikes, node.v_reset, v)
    return spikes.astype(x.dtype)
