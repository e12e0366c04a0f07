"""The process that measures one peer on one workload; `benchmark.py` starts it and reads what it prints.

    python -m peers.process pytorch mlp_T50 float32 5 2.0 bptt sltt

Each line is a JSON object; the last one of a rule holds its figures. All programs are compiled, then each
runs twice untimed, then all take turns, so that whatever else the machine does falls on all alike. With 0
repeats the figure is the peak of the memory, of one rule.
"""

import importlib
import json
import sys

from peers.protocol import CannotError, measure


def main() -> int:
    peer, name, precision, repeats, seconds, *rules = sys.argv[1:]
    say = lambda event: print(json.dumps(event), flush=True)
    try:
        workload = importlib.import_module("peers.workloads").WORKLOADS[name]
        module = importlib.import_module(f"peers.with_{peer}")
    except ModuleNotFoundError as error:
        say({"missing": error.name})
        return 0
    programs = {}
    for rule in rules:
        say({"rule": rule, "compiling": True})
        try:
            programs[rule] = module.program(workload, rule, precision)
        except CannotError as error:
            say({"rule": rule, "cannot": str(error)})
    say({"about": module.about()})
    if int(repeats):
        measure(programs, int(repeats), float(seconds), say)
    else:
        ((rule, program),) = programs.items()
        twice = lambda: (program.update(), program.update())
        say({"rule": rule, "peak_bytes": program.peak_memory and program.peak_memory(twice)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
