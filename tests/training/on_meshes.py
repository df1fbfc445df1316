"""Steps of a tiny run on meshes of simulated devices: losses and parameters.

Run by test_mesh.py in a process of its own, for the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.data.batches import Batches, TokenCounts
from jasper_jax.run import Run
from jasper_jax.sharding import make_mesh, row_shards
from jasper_jax.student_start import load_student
from jasper_jax.training.mesh import begin_state, put_params, share_of
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_log import Compiled
from jasper_jax.training.step import Teaching, active_params, make_program, pieces_of
from jasper_jax.trees import flatten
from tests.tiny import recipe, recipe_tree
from tests.training.runs import fill

STEPS = 20


def steps(place: Path, case: dict) -> dict:
    """``case``: ``mesh`` sizes, ``stage``, ``online`` teachers, ``micro`` batch, ``dtype``, ``optimizer`` or not."""
    teachers = [
        {**t, "dtype": "float32", "mode": "online" if case.get("online") else "cached"}
        for t in recipe_tree(place)["teachers"]
    ]
    rate = case.get("rate", 1e-3)
    stage = {"steps": STEPS, "batch_size": 16, "learning_rate": rate}
    stages = [{"stage": 1, **stage}, {"stage": 2, "last_layers": 1, **stage}, {"stage": 3, **stage}]
    training = {"shapes": 1, "micro_batch": case.get("micro")}
    folder = str(place / f"{'online' if case.get('online') else 'cached'}-{rate}")
    changes = {"teachers": teachers, "stages": stages, "training": training, "run_dir": folder}
    run = Run(recipe(place, **changes), progress=False)
    run.claim()
    texts, view = fill(run)
    student, params, tokenizer = load_student(run.recipe, view.dim, run.student_source())
    stage = run.stages[case["stage"] - 1]
    sizes = case["mesh"]
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(sizes))])
    dtype = jnp.dtype(case.get("dtype", "float64"))
    student = dataclasses.replace(student, compute_dtype=dtype.name)

    def widen(tree):
        return jax.tree.map(lambda x: np.asarray(x, dtype), tree)

    partition = make_partition(stage.train, active_params(stage, params), "train")
    teaching = Teaching.of(view)
    online = {n: dataclasses.replace(t, dtype=dtype.name) for n, t in teaching.online.items()}
    program = make_program(run.recipe, stage, student, partition, dataclasses.replace(teaching, online=online), mesh)
    trained, frozen = (put_params(widen(p), mesh) for p in partition.split(active_params(stage, params)))
    state = begin_state(program.optimizer, trained, mesh)
    batches = Batches(
        texts,
        view,
        tokenizer,
        student.prompts,
        TokenCounts(texts, tokenizer, student.prompts, run.folder / "token_counts"),
        batch_size=stage.batch_size,
        steps=STEPS,
        seed=1,
        shapes=1,
        folder=run.folder / "token_counts",
        row=32,
        share=share_of(mesh),
        multiple=row_shards(mesh) * pieces_of(run.recipe, stage),
    )
    own = {one.name: put_params(widen(one.params), mesh) for one in view.online}
    compiled = Compiled(program, mesh)
    losses, norms = [], []
    for number in range(STEPS):
        arrays = batches.load(number).arrays
        for name in {"teachers", "cached"} & set(arrays):
            arrays[name] = widen(arrays[name])
        trained, state, values = compiled.step(trained, state, frozen, own, arrays, np.int32(number))
        losses.append(float(values["loss"]))
        norms.append(float(values["grad_norm"]))
    begun, _ = partition.split(active_params(stage, params))
    laid = {name: tuple(x.sharding.spec) for name, x in trained.items()}
    return {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "parameters": {name: np.asarray(x) for name, x in flatten(partition.canonical(trained, frozen)).items()},
        "moved": {name: float(np.linalg.norm(np.asarray(x) - begun[name])) for name, x in trained.items()},
        "specs": laid,
        "shares": {name: x.addressable_shards[0].data.size / x.size for name, x in trained.items()},
        "moments": {
            jax.tree_util.keystr(path): x.addressable_shards[0].data.size / x.size
            for path, x in jax.tree_util.tree_flatten_with_path(state)[0]
        },
    }


if __name__ == "__main__":
    place, cases = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
    Path(sys.argv[3]).write_bytes(pickle.dumps({name: steps(place, case) for name, case in cases.items()}))
