"""Planning: account for a step compiled for devices that need not exist, by the chips' published rates.

Call ``topology.prepare_compiler()`` first. ``topology.topology_mesh(Topology.parse("v5e:4x4"), axes)`` gives a mesh to
compile for, ``work.analyse(compiled, mesh)`` counts the operations, traffic and memory of the compiled program, and
``estimate.estimate(analysis, chip, texts)`` gives the least time that a step can take.
"""
