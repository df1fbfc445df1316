"""Installed compilers for TPUs and GPUs are seen by ``jasper plan`` alone, unless the machine has such a device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jasper_jax.runtime import compilers
from jasper_jax.runtime.compilers import hidden_compilers
from tests.tiny import recipe_tree

LOUD = """
import sys
print("the TPU runtime was started", file=sys.stderr, flush=True)

def get_library_path():
    return "/no/libtpu.so"
"""


LOUD_PLUGIN = """
import os
import sys

def initialize():
    checks = "skipping its checks" if os.environ.get("JAX_SKIP_CUDA_CONSTRAINTS_CHECK") else "with its checks"
    print(f"the GPU runtime was started, {checks}", file=sys.stderr, flush=True)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with packages of those names, which complain as the real ones do."""
    folder = tmp_path / "packages"
    for part in ("jax_plugins/xla_cuda13", "jax_cuda13_plugin"):
        (folder / part).mkdir(parents=True)
        (folder / part / "__init__.py").write_text(LOUD_PLUGIN)
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


def test_other_commands_do_not_start_the_runtimes(packages: Path, recipe: Path) -> None:
    done = run("check", recipe, packages)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_who_names_a_device_starts_its_runtime(packages: Path, recipe: Path) -> None:
    assert "the TPU runtime was started" in run("check", recipe, packages, TPU_LIBRARY_PATH="/no/file").stderr
    assert "the GPU runtime was started" in run("check", recipe, packages, JAX_PLATFORMS="cuda,cpu").stderr


def test_plan_sees_them(packages: Path, recipe: Path) -> None:
    done = run("plan", recipe, packages, "--topology", "1xl4")
    assert done.returncode == 2
    assert "the GPU runtime was started, skipping its checks" in done.stderr
    assert "the TPU runtime was started" in done.stderr


@pytest.mark.parametrize("device", ["accel0", "vfio/0", None])
def test_a_tpu_of_this_machine_is_not_hidden(packages: Path, tmp_path: Path, monkeypatch, device: str | None) -> None:
    for name in ("JAX_PLATFORMS", "TPU_LIBRARY_PATH", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    monkeypatch.syspath_prepend(str(packages))
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # the driver's own file, on machines without a TPU too
    if device:
        (tmp_path / device).touch()
    monkeypatch.setattr(compilers, "TPU_FILES", (f"{tmp_path}/accel*", f"{tmp_path}/vfio/[0-9]*"))
    with hidden_compilers():
        assert (importlib.util.find_spec("libtpu") is not None) == bool(device)
    assert importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize("device", ["nvidia0", "nvidiactl", None])
def test_a_gpu_of_this_machine_is_not_hidden(tmp_path: Path, monkeypatch, device: str | None) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if device:
        (tmp_path / device).touch()
    monkeypatch.setattr(compilers, "GPU_FILES", (f"{tmp_path}/nvidia[0-9]*", f"{tmp_path}/nvidiactl"))
    with hidden_compilers():
        assert all((name in sys.modules) != bool(device) for name in compilers.CUDA_PLUGINS)
    assert not any(name in sys.modules for name in compilers.CUDA_PLUGINS)
