"""The tables of benchmark.py, from its rows."""

import re
import statistics
from collections.abc import Iterable, Mapping

from common.command import markdown_table

from sltt_jax import parse_rule

BASE = "pytorch", "sltt"
NAMES = {
    "sltt_jax": "sltt_jax",
    "sltt_jax_devices": "sltt_jax, all devices",
    "pytorch": "PyTorch by hand",
    "spikingjelly": "spikingjelly",
    "snntorch": "snnTorch",
    "spyx": "Spyx",
    "plain_flax": "Flax + scan by hand",
}
# The lines of the table of ratios: peer, name, and a regular expression for the rules that it is the best of.
OWN = {
    "bptt": "bptt",
    "bptt, best chunk": r"bptt(\(\d+\))?",
    "sltt": "sltt",
    "sltt, best chunk": r"sltt(\(\d+\))?",
    "sltt_k(1)": r"sltt_k\(1\)",
    "sltt_k(2)": r"sltt_k\(2\)",
}
LINES = (
    *((peer, label, rules) for peer in list(NAMES)[:2] for label, rules in OWN.items()),
    *((peer, rule, rule) for peer in list(NAMES)[2:] for rule in ("bptt", "sltt")),
)
Found = dict[tuple[str, str, str, str], dict]


def collect(rows: Iterable[dict]) -> Found:
    """Rows by (workload, precision, peer, rule), the times of all rounds together, with their "median"."""
    found: Found = {}
    for row in rows:
        key = row["workload"], row["precision"], row["peer"], row["rule"]
        if key not in found or "median" not in found[key]:
            found[key] = dict(row)
        elif "seconds" in row:
            for times in ("seconds", "cpu_seconds"):
                found[key][times] = found[key][times] + row[times]
        if "seconds" in found[key]:
            found[key]["median"] = statistics.median(found[key]["seconds"])
    return found


def chunk_of(rule: str) -> int | None:
    """1 of "sltt" and "bptt", 5 of "sltt(5)", None of a rule without chunks."""
    return getattr(parse_rule(rule), "chunk", None)


def best(found: Found, workload: str, precision: str, peer: str, rules: str) -> str | None:
    """The fastest rule of a peer whose name the regular expression `rules` matches, if there is one."""
    times = {
        rule: row["median"]
        for (w, p, q, rule), row in found.items()
        if (w, p, q) == (workload, precision, peer) and "median" in row and re.fullmatch(rules, rule)
    }
    return min(times, key=lambda rule: times[rule]) if times else None


def report(machine: dict, rows: Iterable[dict], workloads: Mapping) -> str:
    """Writes all tables, in Markdown."""
    found = collect(rows)
    names = [name for name in workloads if any(key[0] == name for key in found)]
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores. {_versions(found)}",
        "Seconds of an update over those of PyTorch's SLTT by hand in float32, medians.",
        ratios(found, names),
        *_k_bounds(found, names, workloads),
        "All figures. Temporaries are what the compiled program allocates; growth is that of the process's "
        "resident memory from before the first update to the peak of the second: gradients, PyTorch's "
        "momentum and code that is loaded on first use are in it. CPU is processor time on all cores.",
        *(details(found, name, workloads[name]) for name in names),
    ]
    return "\n\n".join(parts) + "\n"


def ratios(found: Found, names: list[str]) -> str:
    """Writes a row for every peer and rule, of all chunks the fastest, and a column for every workload."""
    lines = [["PyTorch by hand, sltt, ms", *(_number(_base(found, name), 1, 1e-3) for name in names)]]
    for precision, suffix in (("float32", ""), ("bfloat16", ", bfloat16")):
        for peer, label, rules in LINES:
            cells = [_ratio_cell(found, name, precision, peer, label, rules) for name in names]
            if any(cells):
                lines.append([f"{NAMES[peer]}, {label}{suffix}", *cells])
    return markdown_table(["", *names], lines)


def _base(found, workload):
    return found.get((workload, "float32", *BASE), {}).get("median")


def _ratio_cell(found, workload, precision, peer, label, rules):
    rule = best(found, workload, precision, peer, rules)
    if rule is None:
        others = (row for key, row in found.items() if key[:3] == (workload, precision, peer))
        return _why(next((row for row in others if re.fullmatch(rules, row["rule"])), {}))
    median, base = found[workload, precision, peer, rule]["median"], _base(found, workload)
    cell = f"{1e3 * median:.1f} ms" if base is None else f"{median / base:.2f}"
    return f"{cell} ({chunk_of(rule)})" if label.endswith("best chunk") else cell


def _why(row):
    """Why a row has no figures."""
    if "silent" in row:
        return f"> {row['silent']:g} s"
    return "not installed" if "missing" in row else "-" if "cannot" in row else ""


def _versions(found):
    versions = {}
    for row in found.values():
        versions |= {k: v for k, v in row.get("about", {}).items() if k != "device"}
    devices = sorted({row["about"]["device"] for row in found.values() if "device" in row.get("about", {})})
    named = [f"{name} {version}" for name, version in sorted(versions.items())]
    return f"Device: {', '.join(devices)}. " * bool(devices) + ", ".join(named) + "."


def _k_bounds(found, names, workloads):
    """SLTT-K against what its operations allow."""
    lines = []
    for name in names:
        sltt = found.get((name, "float32", "sltt_jax", "sltt"), {})
        for rule in ("sltt_k(1)", "sltt_k(2)"):
            row = found.get((name, "float32", "sltt_jax", rule), {})
            if "median" in row and "median" in sltt:
                time, work = row["median"] / sltt["median"], row["flops"] / sltt["flops"]
                lines.append([name, rule, *(f"{ratio:.2f}" for ratio in (time, work, time / work))])
    if not lines:
        return []
    header = "workload", "rule", "time over sltt", "operations over sltt", "time over bound"
    return [
        "SLTT-K against its bound, the operations of T forward and K backward passes.",
        markdown_table(header, lines),
    ]


def details(found: Found, name: str, workload) -> str:
    """Writes a table of all figures of a workload."""
    own = found.get((name, "float32", "sltt_jax", "sltt"), {}).get("median")
    header = (
        "", "precision", "ms", "fastest", "n", "over PyTorch's SLTT", "over our sltt", "CPU ms", "compile s",
        "temporaries MiB", "growth MiB", "GFLOP/s", "first loss",
    )  # fmt: skip
    lines = []
    for (w, precision, peer, rule), row in found.items():
        if w != name:
            continue
        lines.append([f"{NAMES[peer]}, {rule}", precision])
        if "median" not in row:
            lines[-1] += [f"{_why(row)} {row.get('cannot', '')}", *[""] * 10]
            continue
        median = row["median"]
        lines[-1] += [
            f"{1e3 * median:.1f}",
            f"{1e3 * min(row['seconds']):.1f}",
            str(len(row["seconds"])),
            _number(_base(found, name) and median / _base(found, name)),
            _number(own and median / own),
            f"{1e3 * statistics.median(row['cpu_seconds']):.1f}",
            _number(row.get("compile_seconds"), 1),
            _number(row.get("temp_bytes"), 1, 2**20),
            _number(row.get("peak_bytes"), 1, 2**20),
            _number(row.get("flops") and row["flops"] / median, 0, 1e9),
            f"{row['loss']:.4f}",
        ]
    title = f"**{name}**: {workload.text}, batch {workload.batch}, T={workload.T}"
    return f"{title}\n\n{markdown_table(header, lines)}"


def _number(value, digits=2, unit=1.0):
    return "" if value is None else f"{value / unit:.{digits}f}"
