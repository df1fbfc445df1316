"""The checks of ``accelerator.py``, by subject."""
