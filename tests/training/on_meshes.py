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

from jasper_jax.batches.batch_sizes import TokenCounts
from jasper_jax.batches.batches import Batches
from jasper_jax.batches.draws import BatchDraws
from jasper_jax.losses import pair_similarities, teacher_order
from jasper_jax.losses.geometry import cosines, gram
from jasper_jax.losses.relative import pair_order, pairs, relative_from_similarities
from jasper_jax.losses.relative_rows import relative_by_rows
from jasper_jax.parameters.sharding import WIDE, constrain, make_mesh
from jasper_jax.parameters.trees import flatten
from jasper_jax.planning.work import analyse
from jasper_jax.run import Run
from jasper_jax.student.start import load_student
from jasper_jax.training.mesh import begin_state, put_batch, put_params, share_of
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import Inputs, make_kind
from jasper_jax.training.step import CompiledPrograms, make_program
from jasper_jax.training.teaching import Teaching
from tests.tiny import recipe, recipe_tree
from tests.tiny_vision import vision_changes
from tests.training.runs import fill

STEPS = 20


def steps(place: Path, case: dict) -> dict:
    """``case``: ``mesh`` sizes, ``stage``, ``online`` teachers, ``micro`` batch, ``dtype``, ``count`` operations."""
    teachers = [
        {**t, "dtype": "float32", "mode": "online" if case.get("online") else "cached"}
        for t in recipe_tree(place)["teachers"]
    ]
    rate = case.get("rate", 1e-3)
    stage = {"steps": STEPS, "batch_size": 16, "learning_rate": rate, "warmup_steps": 0}
    stages = [{"stage": 1, **stage}, {"stage": 2, "last_layers": 1, **stage}, {"stage": 3, **stage}]
    images = {"stage": 4, **stage, "batch_size": 13, "losses": {"sigmoid": 0.5}}
    # 13 do not divide by 8: rows are filled up. They divide the 104 pairs: where an epoch ends in the middle of a batch
    # it may hold a pair twice, and rounding decides which of two equal similarities is the larger.
    training = {"shapes": 1, "micro_batch": case.get("micro")}
    folder = str(place / f"{'online' if case.get('online') else 'cached'}-{rate}")
    changes = {"teachers": teachers, "stages": stages, "training": training, "run_dir": folder}
    if case["stage"] == 4:
        vision = vision_changes(place, projector="joint", projector_init="random")
        student = {**recipe_tree(place)["student"], "vision": vision["vision"]}
        heads = {"fc1": {"dim": "teachers", "nested": [12]}, "fc2": {"dim": 8}}
        changes |= {"student": student, "images": vision["images"], "stages": [*stages, images], "heads": heads}
        changes["run_dir"] = f"{folder}-images"
    run = Run(recipe(place, **changes), progress=False)
    run.run_folder.claim()
    texts, view = fill(run)
    student, params, tokenizer = load_student(run.recipe, view.dim, run.student)
    stage = run.stages[case["stage"] - 1]
    sizes = case["mesh"]
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(sizes))])
    dtype = jnp.dtype(case.get("dtype", "float64"))
    as_trained, student = student, dataclasses.replace(student, compute_dtype=dtype.name)

    def widen(tree):
        return jax.tree.map(lambda x: np.asarray(x, dtype), tree)

    kind = make_kind(run.recipe, stage, student)
    partition = make_partition(stage.train, kind.active(params), "train")
    teaching = Teaching.of(view)
    online = {n: dataclasses.replace(t, dtype=dtype.name) for n, t in teaching.online.items()}
    program = make_program(kind, partition, dataclasses.replace(teaching, online=online), mesh)
    trained, frozen = (put_params(widen(p), mesh) for p in partition.split(kind.active(params)))
    state = begin_state(program.optimizer, trained, mesh)
    inputs = Inputs(
        mesh, tokenizer, run.folder, pairs=run.data.pairs() if run.trains_on_images else None, progress=False
    )
    batches = (
        make_kind(run.recipe, stage, as_trained).batches(inputs, params)
        if stage.learns_from("images")
        else Batches(
            texts,
            view,
            tokenizer,
            student.prompts,
            TokenCounts(texts, tokenizer, student.prompts, run.folder / "token_counts"),
            draws=BatchDraws("texts", texts.size("train"), texts.size("held_out"), batch_size=stage.batch_size, seed=1),
            steps=STEPS,
            shapes=1,
            folder=run.folder / "token_counts",
            row=32,
            share=share_of(mesh),
            division=kind.row_division(mesh),
        )
    )
    own = {one.name: put_params(widen(one.params), mesh) for one in view.online}
    compiled = CompiledPrograms(program, mesh, kind.replicated)
    losses, norms = [], []
    for number in range(STEPS):
        arrays = batches.load(number).arrays
        for name in {"teachers", "cached", "captions"} & set(arrays):
            arrays[name] = widen(arrays[name])
        trained, state, values = compiled.step(trained, state, frozen, own, arrays, np.int32(number))
        losses.append(float(values["loss"]))
        norms.append(float(values["grad_norm"]))
    begun, _ = partition.split(kind.active(params))
    flops = {}
    if case.get("count"):
        batch = put_batch(arrays, mesh, share_of(mesh), kind.replicated)
        with jax.set_mesh(mesh):
            step = program.step.lower(trained, state, frozen, own, batch, np.int32(0)).compile()
            forward = program.evaluate.lower(trained, frozen, own, batch).compile()
        flops = {"step": analyse(step, mesh).flops, "forward": analyse(forward, mesh).flops}
    laid = {name: tuple(x.sharding.spec) for name, x in trained.items()}
    return {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "parameters": {name: np.asarray(x) for name, x in flatten(partition.canonical(trained, frozen)).items()},
        "moved": {name: float(np.linalg.norm(np.asarray(x) - begun[name])) for name, x in trained.items()},
        "specs": laid,
        "flops": flops,
        "shares": {name: x.addressable_shards[0].data.size / x.size for name, x in trained.items()},
        "moments": {
            jax.tree_util.keystr(path): x.addressable_shards[0].data.size / x.size
            for path, x in jax.tree_util.tree_flatten_with_path(state)[0]
        },
    }


def relative(sizes: tuple[int, int, int], method: str, texts: int = 94) -> dict:
    """The relative loss of texts with ties; 94 have 4,371 pairs, which no number of devices divides."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(sizes))])
    student, teacher = np.random.default_rng(0).integers(-3, 4, (2, texts, 6)).astype(np.float32)
    order, similarities = teacher_order(teacher), pair_similarities(student)[None]

    def loss(similarities: jax.Array) -> jax.Array:
        return relative_from_similarities(similarities, order, method=method).sum()

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(loss)).lower(similarities).compile()
    value, gradient = compiled(similarities)
    return {"value": float(value), "gradient": np.asarray(gradient), "program": compiled.as_text()}


def rows(sizes: tuple[int, int, int], texts: int) -> dict:
    """The relative loss of vectors whose similarities lie over the devices by rows, and its gradients; on one device
    the plain form."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(sizes))])
    vectors = np.random.default_rng(0).integers(-3, 4, (3, texts, 16)).astype(np.float32)
    margin = np.float32([0.015, 0.3])

    def loss(vectors: jax.Array, margin: jax.Array) -> jax.Array:
        *students, teacher = (constrain(of, None, WIDE) for of in vectors)
        matrices, target = cosines(jnp.stack([gram(of) for of in students])), cosines(gram(teacher))
        if mesh.size > 1:
            values = relative_by_rows(matrices, jax.lax.stop_gradient(target), margin, False)
        else:
            values = relative_from_similarities(pairs(matrices), pair_order(pairs(target)), margin)
        return jnp.dot(values, jnp.asarray([1.0, 2.0]))

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(vectors, margin).compile()
    value, gradients = compiled(vectors, margin)
    return {"value": float(value), "gradients": [np.asarray(of) for of in gradients], "program": compiled.as_text()}


if __name__ == "__main__":
    place, cases = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
    out = {
        name: steps(place, case) if "stage" in case else (relative if "method" in case else rows)(**case)
        for name, case in cases.items()
    }
    Path(sys.argv[3]).write_bytes(pickle.dumps(out))
