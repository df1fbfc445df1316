"""XLA flags are added for several GPUs, and never over the user's."""

from __future__ import annotations

import os
import subprocess
import sys

from jasper_jax.runtime import xla_flags
from jasper_jax.runtime.xla_flags import FLAGS, add_flags, gpus_communicate


def test_the_users_flags_win() -> None:
    environment = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x"}
    line = add_flags(environment)
    assert line is not None
    assert "XLA_FLAGS: added --xla_gpu_enable_pipelined_all_gather=true" in line
    assert environment["XLA_FLAGS"].count("latency_hiding") == 1
    assert environment["XLA_FLAGS"].endswith("--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x")
    assert add_flags(environment) is None


def test_they_can_be_turned_off() -> None:
    environment = {"JASPER_XLA_FLAGS": "off"}
    assert add_flags(environment) is None
    assert list(environment) == ["JASPER_XLA_FLAGS"]


def test_only_where_devices_communicate(tmp_path, monkeypatch) -> None:
    for name in ("JAX_PLATFORMS", "JASPER_COORDINATOR", "JASPER_DISTRIBUTED", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla_flags, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    assert not gpus_communicate(2)
    (tmp_path / "nvidia0").touch()
    assert not gpus_communicate()
    assert gpus_communicate(2)  # --processes 2
    monkeypatch.setenv("JASPER_DISTRIBUTED", "auto")
    assert gpus_communicate()
    monkeypatch.delenv("JASPER_DISTRIBUTED")
    (tmp_path / "nvidia1").touch()
    assert gpus_communicate()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not gpus_communicate()


def test_jaxlib_knows_the_flags_of_gpus() -> None:
    """XLA ends a process at a flag that it does not know."""
    flags = " ".join(FLAGS)
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = "import jax; print(jax.numpy.zeros(2) + 1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
