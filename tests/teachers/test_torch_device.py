"""Which GPU a torch teacher of a process takes."""

from __future__ import annotations

import pytest

from jasper_jax.teachers.torch_teacher import torch_device


@pytest.mark.parametrize(
    ("gpus", "own", "rank", "environment", "expected"),
    [
        (0, [], 3, {}, None),
        (8, [], 0, {}, "cuda:0"),
        (8, [], 3, {}, "cuda:3"),
        (8, [], 11, {}, "cuda:3"),  # processes 8 to 15 are on the second host
        (4, [], 9, {"SLURM_LOCALID": "1"}, "cuda:1"),  # the launcher knows better
        (8, [], 9, {"LOCAL_RANK": "5"}, "cuda:5"),
        (8, [], 9, {"SLURM_LOCALID": ""}, "cuda:1"),
        (8, [6], 9, {"SLURM_LOCALID": "1"}, "cuda:6"),  # beside JAX, on the same GPU
        (8, list(range(8)), 2, {}, "cuda:0"),  # a process with all GPUs of its host
        (1, [0], 5, {}, "cuda:0"),  # CUDA_VISIBLE_DEVICES shows each process its own
    ],
)
def test_every_rank_of_a_host_takes_its_own(gpus, own, rank, environment, expected):
    assert torch_device(gpus, own, rank, environment) == expected
