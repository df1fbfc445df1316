"""How well a run uses its devices: MFU, waiting for batches, memory, goodput."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.planning.device_peak import peak_flops
from jasper_jax.training.model_flops import StepFlops


class Utilisation:
    """MFU of steps: the operations that the model needs over what the devices could do at their published peak."""

    def __init__(self, flops: StepFlops | None, mesh: Mesh):
        self._flops = flops
        peak = peak_flops(mesh.devices.flat[0])
        self._peak = None if peak is None else peak * mesh.size

    def mfu(self, batch: LoadedBatch, seconds: float) -> float | None:
        """Of a step on ``batch``; None where the peak or the operations are not known."""
        if self._flops is None or self._peak is None or seconds <= 0:
            return None
        return self._flops(len(batch.indices), batch.tokens, batch.pairs) / (seconds * self._peak)


def device_peak_bytes() -> int | None:
    """The most memory that one of this process's devices has had in use; None where the backend does not count it."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak for peak in peaks if peak is not None), default=None)


def process_peak_bytes() -> int:
    """The most memory that this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Linux counts in KiB


def with_wait(batches: Iterable[LoadedBatch]) -> Iterator[tuple[LoadedBatch, float]]:
    """Each batch with the seconds that it was waited for."""
    source = iter(batches)
    while True:
        began = time.monotonic()
        try:
            batch = next(source)
        except StopIteration:
            return
        yield batch, time.monotonic() - began


@dataclasses.dataclass
class Goodput:
    """The share of a run's time that its steps took: the rest is compiling, evaluating, saving, waiting for a machine,
    and steps that a stop undid.

    ``began``: Unix time of the first command that trained; ``step_seconds``: of the steps that count.
    """

    began: float = dataclasses.field(default_factory=time.time)
    step_seconds: float = 0.0

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Goodput:
        """From the events that a resumed run keeps."""
        events = list(events)
        starts = [event["time"] for event in events if event.get("event") == "start" and "time" in event]
        seconds = sum(event.get("seconds") or 0.0 for event in events if event.get("event") == "step")
        return cls(min([*starts, time.time()]), seconds)

    def add(self, seconds: float) -> None:
        """Count a step."""
        self.step_seconds += seconds

    def share(self) -> float | None:
        """Now; None in the first instant."""
        passed = time.time() - self.began
        return min(1.0, self.step_seconds / passed) if passed > 0 else None
