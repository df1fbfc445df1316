"""The parts of ``scripts/bench/faults.py``: tiny runs that are killed, starved, damaged and interrupted."""
