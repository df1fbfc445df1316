"""The parts of ``scripts/bench/train_step.py`` and ``scripts/bench/checkpoint.py``."""
