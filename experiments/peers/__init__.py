"""Peers that `benchmark.py` measures, a file for each: this library, and what one would use in its place.

Every one of them builds the same networks (`workloads.py`) with the same initial weights, and every one runs
in a process of its own (`process.py`), if need be with an interpreter of its own. So a file here imports
nothing of the others' frameworks.
"""
