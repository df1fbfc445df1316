"""The ``jasper`` command. Each command parses its arguments and calls one function of ``commands``."""

from __future__ import annotations

from jasper_jax.cli.app import app, main

__all__ = ["app", "main"]
