"""XLA flags are added for several accelerators, and never over the user's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jasper_jax.runtime import xla_flags
from jasper_jax.runtime.xla_flags import FLAGS, add_flags, communicating_platform


def test_the_users_flags_win() -> None:
    environment = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x"}
    line = add_flags("gpu", environment)
    assert line is not None
    assert "XLA_FLAGS: added --xla_gpu_enable_pipelined_all_gather=true" in line
    assert environment["XLA_FLAGS"].count("latency_hiding") == 1
    assert environment["XLA_FLAGS"].endswith("--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x")
    assert add_flags("gpu", environment) is None


@pytest.mark.parametrize("environment", [{"JASPER_XLA_FLAGS": "off"}])
def test_they_can_be_turned_off(environment: dict[str, str]) -> None:
    assert add_flags("tpu", environment) is None
    assert list(environment) == ["JASPER_XLA_FLAGS"]


def test_only_where_devices_communicate(tmp_path, monkeypatch) -> None:
    for name in ("JAX_PLATFORMS", "JASPER_COORDINATOR", "JASPER_DISTRIBUTED", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla_flags, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(xla_flags, "TPU_FILES", (str(tmp_path / "accel*"),))
    assert communicating_platform() is None
    (tmp_path / "nvidia0").touch()
    assert communicating_platform() is None
    monkeypatch.setenv("JASPER_DISTRIBUTED", "auto")
    assert communicating_platform() == "gpu"
    monkeypatch.delenv("JASPER_DISTRIBUTED")
    (tmp_path / "nvidia1").touch()
    assert communicating_platform() == "gpu"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert communicating_platform() is None


def test_jaxlib_knows_the_flags_of_gpus() -> None:
    """XLA ends a process at a flag that it does not know."""
    flags = " ".join(FLAGS["gpu"][1])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = "import jax; print(jax.numpy.zeros(2) + 1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
