"""Published rates and sizes of accelerators, which bound a train step from below.

Every figure is the manufacturer's peak per chip; where JAX sees a chip as two devices (TPU v7x), ``per_device`` halves
it. ``usable_memory`` of a TPU is not published: it is the limit that the TPU compiler (libtpu 0.0.42) prints when a
program does not fit. The runtime keeps the rest. Of a GPU it is what the driver shows; JAX takes a share of it
(``machine.memory_fraction``).

Interconnect of a TPU: the published figure is the sum over all links and both directions. ``link_bandwidth`` is one
link in one direction, that is the published figure / ports / 2; ``jasper_jax.planning.links`` computes how many links a
mesh axis can use at the same time. For a GPU it is all links of the GPU together, in one direction.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30
TERA = 1e12
GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    peak_flops:      operations per second of dense bfloat16 products with float32 sums; a multiply-add counts as two.
    float32_cost:    bfloat16 operations that take as long as one float32 operation at ``Precision.HIGHEST``: six on the
                     matrix unit of a TPU; on a GPU, whose float32 units are separate, the ratio of the two peaks.
    memory:          bytes, as published; ``usable_memory``: bytes that a program may use.
    bandwidth:       bytes/s of that memory.
    link_bandwidth:  bytes/s of one link in one direction (TPU); of all links in one direction (GPU).
    network:         bytes/s that leave a chip for another slice or node, in one direction; 0 where none is published.
    ports:           links of a TPU chip, 2 per dimension of its torus; 1 for a GPU, whose links are counted together.
    wraps:           (TPU) a side of the slice is a ring if its length is a multiple of this many chips.
    """

    name: str
    peak_flops: float
    memory: int
    usable_memory: int
    bandwidth: float
    link_bandwidth: float
    ports: int = 1
    wraps: int = 0
    devices_per_chip: int = 1
    float32_cost: float = 6.0
    network: float = 0.0

    @property
    def per_device(self) -> Chip:
        """One JAX device's share: rates and sizes divided by the devices of a chip."""
        n = self.devices_per_chip
        return dataclasses.replace(
            self,
            peak_flops=self.peak_flops / n,
            memory=self.memory // n,
            usable_memory=self.usable_memory // n,
            bandwidth=self.bandwidth / n,
            link_bandwidth=self.link_bandwidth / n,
            network=self.network / n,
            devices_per_chip=1,
        )


TPUS = {
    chip.name: chip
    for chip in (
        # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1200 GB/s, 3-D, 4 chips a host. Links: 6 of 50 GB/s a
        # direction, Jouppi et al., "TPU v4" (arXiv 2304.01433), table 4. A slice closes to a torus when every side is
        # a multiple of 4. Two cores, one device ("megacore").
        Chip("v4", 275 * TERA, 32 * GIB, int(30.75 * GIB), 1200 * GIGA, 50 * GIGA, 6, 4),
        # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s (a later edition: "800 GiBps"), 400 GB/s both
        # ways over 4 ports, up to 8 chips a host. 2-D; only a side of 16 closes (jax-ml.github.io/scaling-book/tpus).
        # Network: 6.4 Tbit/s a pod of 256 chips (docs/v6e).
        Chip("v5e", 197 * TERA, 16 * GIB, int(15.75 * GIB), 819 * GIGA, 50 * GIGA, 4, 16, network=3.125 * GIGA),
        # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB (96 less what the system keeps), 2765 GB/s, 1200 GB/s both
        # ways, 3-D with 6 ports, slices of 4x4x4 and larger are tori, 4 chips a host. Two cores, one device. Network:
        # jax-ml.github.io/scaling-book/tpus, 200 Gbit/s a host.
        Chip("v5p", 459 * TERA, 95 * GIB, int(95.74 * GIB), 2765 * GIGA, 100 * GIGA, 6, 4, network=6.25 * GIGA),
        # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s (docs/tpu7x; docs/v6e rounds to 1600), 800 GB/s
        # both ways over 4 ports, up to 8 chips a host. 2-D; only a side of 16 closes. Network: 25.6 Tbit/s a pod.
        Chip("v6e", 918 * TERA, 32 * GIB, int(31.25 * GIB), 1638 * GIGA, 100 * GIGA, 4, 16, network=12.5 * GIGA),
        # cloud.google.com/tpu/docs/tpu7x: 2307 TFLOP/s, 192 GiB, 7380 GB/s, 1200 GB/s both ways, 3-D with 6 ports,
        # 4 chips a host. Two chiplets, each a JAX device with half of everything.
        Chip("tpu7x", 2307 * TERA, 192 * GIB, int(2 * 94.75 * GIB), 7380 * GIGA, 100 * GIGA, 6, 4, 2),
    )
}


def _gpu(
    name: str, peak: float, float32: float, memory: int, usable: int, bandwidth: float, links: float, network: float = 0
) -> Chip:
    """``float32``: peak of float32 products; both peaks in TFLOP/s, memories in GiB and bytes, rates in GB/s."""
    sizes = memory * GIB, usable, bandwidth * GIGA, links * GIGA
    return Chip(name, peak * TERA, *sizes, float32_cost=peak / float32, network=network * GIGA)


GPUS = {
    chip.name: chip
    for chip in (
        # Peaks and rates from Nvidia's datasheets, bfloat16 without sparsity. Usable memory: ``device_memory_size`` in
        # openxla/xla, xla/backends/gpu/target_config/specs; of RTX 4090 and L4 the total that nvidia-smi shows.
        # H100 (SXM): 1979 TFLOP/s with sparsity; NVLink 900 GB/s both ways. Network of a DGX H100: 400 Gbit/s a GPU.
        _gpu("h100", 989.4, 66.9, 80, 84_942_979_072, 3350, 450, 50),
        # A100 (SXM): 1555 and 2039 GB/s; NVLink 600 GB/s both ways. Network of a DGX A100: 200 Gbit/s a GPU.
        _gpu("a100-40g", 312, 19.5, 40, 42_331_013_120, 1555, 300, 25),
        _gpu("a100-80g", 312, 19.5, 80, 85_100_068_864, 2039, 300, 25),
        # RTX A6000: 309.7 with sparsity; GDDR6. PCIe 4.0 x16: 64 GB/s both ways.
        _gpu("a6000", 154.8, 38.7, 48, 51_041_271_808, 768, 32),
        # Ada GPU architecture whitepaper, table 2: 165.2 dense with float32 sums; PCIe 4.0 x16.
        _gpu("rtx4090", 165.2, 82.6, 24, 24_564 * 2**20, 1008, 32),
        # L4: 242 with sparsity; PCIe 4.0 x16.
        _gpu("l4", 121, 30.3, 24, 23_034 * 2**20, 300, 32),
    )
}
