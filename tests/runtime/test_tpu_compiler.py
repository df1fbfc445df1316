"""An installed TPU compiler is seen by ``jasper plan`` alone, unless the machine has a TPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jasper_jax.runtime import tpu_compiler
from jasper_jax.runtime.tpu_compiler import hidden_tpu_compiler
from tests.tiny import recipe_tree

LOUD = """
import sys
print("the TPU runtime was started", file=sys.stderr, flush=True)

def get_library_path():
    return "/no/libtpu.so"
"""


@pytest.fixture
def libtpu(tmp_path: Path) -> Path:
    """A folder with a package of that name, which complains as the real one does."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "libtpu.py").write_text(LOUD)
    return folder


def run(command: str, recipe: Path, path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    known = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    return subprocess.run(
        [sys.executable, "-m", "jasper_jax.cli", command, str(recipe), *options],
        env={**known, "PYTHONPATH": ":".join([str(path), *sys.path[1:]]), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    return path


def test_other_commands_do_not_start_the_runtime(libtpu: Path, recipe: Path) -> None:
    done = run("check", recipe, libtpu)
    assert (done.returncode, done.stderr) == (0, "")


def test_plan_and_a_user_who_names_a_tpu_do(libtpu: Path, recipe: Path) -> None:
    assert "the TPU runtime was started" in run("plan", recipe, libtpu, "--topology", "1xl4").stderr
    assert "the TPU runtime was started" in run("check", recipe, libtpu, TPU_LIBRARY_PATH="/no/file").stderr


@pytest.mark.parametrize("device", ["accel0", "vfio/0", None])
def test_a_tpu_of_this_machine_is_not_hidden(libtpu: Path, tmp_path: Path, monkeypatch, device: str | None) -> None:
    for name in ("JAX_PLATFORMS", "TPU_LIBRARY_PATH", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    monkeypatch.syspath_prepend(str(libtpu))
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # the driver's own file, on machines without a TPU too
    if device:
        (tmp_path / device).touch()
    monkeypatch.setattr(tpu_compiler, "DEVICE_FILES", (f"{tmp_path}/accel*", f"{tmp_path}/vfio/[0-9]*"))
    with hidden_tpu_compiler():
        assert (importlib.util.find_spec("libtpu") is not None) == bool(device)
    assert importlib.util.find_spec("libtpu") is not None
