"""One place for compiled programs of a whole test session: what two tests compile alike is compiled once."""

from __future__ import annotations

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (named in the hook below)

# Shapes in annotations are checked in tests, and cost nothing otherwise. Before the modules are first imported.
install_import_hook(["jasper_jax.losses", "jasper_jax.heads", "jasper_jax.pooling"], "tests.typecheck.check")


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
