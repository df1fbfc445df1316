"""Planning: account for a step compiled for devices that need not exist, by the chips' published rates.

Call ``prepare_compiler()`` first. ``topology_mesh(Topology.parse("v5e:4x4"), axes)`` gives a mesh to compile for,
``analyse(compiled, mesh)`` counts the operations, traffic and memory of the compiled program, and
``estimate(analysis, chip, texts)`` gives the least time that a step can take.
"""

from jasper_jax.planning.chips import GPUS, TPUS, Chip, find_chip
from jasper_jax.planning.collectives import Collective
from jasper_jax.planning.estimate import Estimate, estimate
from jasper_jax.planning.kernels import Kernel, known_flops
from jasper_jax.planning.memory import DoesNotFit, Memory, does_not_fit
from jasper_jax.planning.topology import Topology, prepare_compiler, topology_devices, topology_mesh
from jasper_jax.planning.work import Analysis, analyse

__all__ = [
    "GPUS",
    "TPUS",
    "Analysis",
    "Chip",
    "Collective",
    "DoesNotFit",
    "Estimate",
    "Kernel",
    "Memory",
    "Topology",
    "analyse",
    "does_not_fit",
    "estimate",
    "find_chip",
    "known_flops",
    "prepare_compiler",
    "topology_devices",
    "topology_mesh",
]
