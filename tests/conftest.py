"""One place for compiled programs of a whole test session: what two tests compile alike is compiled once, also where
the tests are in two workers, or start processes."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (named in the hook below)

# Shapes in annotations are checked in tests, and cost nothing otherwise. Before the modules are first imported.
install_import_hook(
    [
        *(f"jasper_jax.losses.{name}" for name in ("distillation", "geometry", "sigmoid")),
        "jasper_jax.student.heads",
        "jasper_jax.encoders.dense",
        "jasper_jax.encoders.pooling",
    ],
    "tests.typecheck.check",
)


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.getbasetemp()
    cache = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "cache"
    cache.mkdir(mode=0o700, exist_ok=True)  # whatever the umask: a cache that others may write is refused
    settings = {"jax_compilation_cache_dir": str(cache / "compiled"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JASPER_CACHE", str(cache))
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))  # processes that tests start
        yield


@pytest.fixture(scope="module")
def quick_programs():
    """Of a module whose tests would say the same of slower programs: XLA compiles them with little optimisation.

    Nearly all the time of such tests is compilation. Not for tests of arithmetic, of programs, or of equal bits: those
    are of the programs that users run.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.clear_caches()
    jax.config.update(name, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")  # processes that tests start
        yield
    jax.config.update(name, before)
    jax.clear_caches()


SLOW = (
    *(
        "test_parity",
        "test_mesh",
        "test_projector_start",
        "test_processes",
        "test_jasper_vl",
        "test_run",
        "test_resume",
    ),
    *("test_images", "test_faults", "test_export", "test_embedder", "test_families", "test_online", "test_plan_stages"),
)
"""Files that take minutes, the longest first: begun last, one would keep one worker busy while the others idle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long campaigns too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def few_programs():
    """Every compiled program maps memory, and a process may have 65,530 mappings (Linux's default); one session of
    these tests would have more, and XLA then ends it with a segmentation fault."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``call("check", path) -> (exit code, stdout, stderr)``."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        from jasper_jax.cli import main

        monkeypatch.setattr(sys, "argv", ["jasper", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = int(leave.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def refused(call, tmp_path: Path):
    """``refused(message, "check", path)``: the command fails with this one line, and changes no file of the test."""

    def run(message: str, *arguments: str | Path, leaves: tuple[str, ...] = ()) -> str:
        from tests.snapshots import snapshot

        before = snapshot(tmp_path)
        code, _, err = call(*arguments)
        line = err.strip().splitlines()[-1] if err.strip() else ""
        assert (code, line[:8]) == (2, "jasper: "), err
        assert message in line
        assert "Traceback" not in err
        assert 'File "' not in err
        after = snapshot(tmp_path)
        assert {k for k in before | after if before.get(k) != after.get(k)} <= {*leaves}
        return line

    return run
