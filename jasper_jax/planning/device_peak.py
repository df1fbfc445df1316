"""The published peak of a device that JAX found, by the name that its driver gives it."""

from __future__ import annotations

import re
from typing import Any

from jasper_jax.planning.chips import GPUS, TERA, TPUS

KINDS = (
    (r"NVIDIA H100 80GB HBM3|NVIDIA GH200.*|NVIDIA H200", GPUS["h100"].peak_flops),  # one chip, other memories
    (r"NVIDIA H100 PCIe", 756 * TERA),  # Nvidia H100 datasheet: 1513 with sparsity
    (r"NVIDIA A100.*", GPUS["a100-80g"].peak_flops),
    (r"NVIDIA RTX A6000", GPUS["a6000"].peak_flops),
    (r"NVIDIA GeForce RTX 4090", GPUS["rtx4090"].peak_flops),
    (r"NVIDIA L4", GPUS["l4"].peak_flops),
    (r"TPU v4", TPUS["v4"].per_device.peak_flops),
    (r"TPU v5 lite|TPU v5e", TPUS["v5e"].per_device.peak_flops),
    (r"TPU v5|TPU v5p", TPUS["v5p"].per_device.peak_flops),
    (r"TPU v6 lite|TPU v6e", TPUS["v6e"].per_device.peak_flops),
    (r"TPU ?7x", TPUS["tpu7x"].per_device.peak_flops),
)
"""``device_kind`` -> operations per second of one JAX device, dense bfloat16."""


def peak_flops(device: Any) -> float | None:
    """The peak of a ``jax.Device``, in operations per second (a multiply-add counts as two); None for a CPU or a device
    that is not known by name: a ratio to another chip's peak would be wrong."""
    return next((peak for kind, peak in KINDS if re.fullmatch(kind, device.device_kind)), None)
