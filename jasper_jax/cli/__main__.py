"""``python -m jasper_jax.cli``."""

from __future__ import annotations

from jasper_jax.cli.app import main

main()
