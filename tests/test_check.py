"""``jasper check``: what it prints, what it finds before a run would, and that it leaves everything as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jasper_jax.commands.validation import refuse_large_batches, validate
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from tests.snapshots import snapshot
from tests.tiny import recipe as tiny
from tests.tiny import recipe_tree


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    return path


def row(out: str, first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    lines = [[cell.strip() for cell in line.strip(" │").split("│")] for line in out.splitlines() if "│" in line]
    return next(cells for cells in lines if cells[0] == first)


def test_the_recipe_is_printed_whole_and_nothing_is_made(call, recipe: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    code, out, err = call("check", recipe, "stages.2.steps=50")
    assert (code, err) == (0, "")
    assert "steps: 50" in out
    assert "hidden by it" in out
    assert yaml.safe_load(out[: out.index("Stages")].rsplit("\n", 1)[0])["stages"][2]["steps"] == 50
    assert snapshot(tmp_path) == before


def test_how_a_server_gives_each_dimension(call, recipe: Path) -> None:
    out = call("check", recipe)[1]
    assert [row(out, dim)[3] for dim in ("24", "12", "8")] == ["default", "dimensions: 12", "2_Dense_8 in modules.json"]
    assert "a server of one folder would give" not in out
    out = call("check", recipe, "export.dim=8")[1]
    assert [row(out, dim)[3] for dim in ("12", "8", "4")] == [
        "2_Dense_12 in modules.json", "default", "2_Dense_4 in modules.json"
    ]  # fmt: skip
    assert "export.dim=24: a server of one folder would give 24, 12" in out
    assert row(call("check", recipe, "export.dim=6")[1], "4")[3] == "dimensions: 4"


def test_labelled_pairs_are_counted_beside_the_texts(call, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("query,passage\nhow deep is it,the lake is nine metres deep\n")
    stage = "{stage: pairs, steps: 3, batch_size: 4, text_share: 0.2, learning_rate: 0.1, losses: {contrastive: 1}}"
    pairs = f"texts.pairs=[{{csv: {tmp_path / 'labels.csv'}, limit: 40}}]"
    code, out, err = call("check", recipe, pairs, f"stages=[{stage}]")
    assert (code, err) == (0, "")
    assert row(out, "labelled pairs (two texts each)")[1] == "at most 40"
    assert row(out, "texts seen in training")[1] == "30", "4 queries, 4 passages, 2 plain texts in 3 steps"


def test_what_would_stop_the_run_later_is_found(call, recipe: Path) -> None:
    for override, message in {
        "stages.0.train=[heads/fc5/**]": "matches no parameter",
        "student.layers=[0,7]": "7",
        "student.model=nowhere/model/at/all": "nowhere/model/at/all",
        "heads.fc2.dim=24": "24 dimensions",
        "export.dims={5: fc1}": "export.dims",
        "teachers.0.dim=5": "teachers.a.dim: 5 is not a dimension",
        "student.max_length=4096": "positions",
        "heads.fc2.cosine=true": "heads.fc2.cosine: the cosine loss needs the teachers' dimension 24, the head has 8",
        "heads.fc1.nested=[24]": "heads.fc1.nested: 24 is not smaller than the head's dimension 24",
        "teachers.1={name: outside}": "teachers.outside.dim: vectors that are imported need their dimension here",
        "teachers.0.model=nowhere/teacher": "nowhere/teacher",
        "heads.fc2.init=model": "heads.fc2.init: model:",
    }.items():
        code, _, err = call("check", recipe, override)
        assert code == 2, override
        assert message in err
        assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in err


def test_the_teachers_are_listed_as_they_will_be_used(call, recipe: Path) -> None:
    tree = yaml.safe_load(recipe.read_text())
    tree["teachers"][0] |= {"mode": "online"}
    tree["teachers"][1] |= {"backend": "torch", "dim": 8}
    tree["teachers"].append({"name": "outside", "dim": 10})
    recipe.write_text(yaml.safe_dump(tree))
    code, out, err = call("check", recipe)
    assert code == 0, err
    assert row(out, "a")[2:] == ["16", "online", "-", "-", "-"]
    assert int(row(out, "a")[1].replace(",", "")) > 1000
    assert row(out, "b")[1:4] == ["in PyTorch", "8", "cached"]
    assert row(out, "outside")[1:4] == ["imported", "10", "cached"]
    assert row(out, "joined")[2] == "34"


def test_a_random_encoder_that_no_stage_trains_whole_is_refused(call, refused, recipe, tmp_path) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    student = json.dumps({"config": {"model_type": "bert", **sizes}, "tokenizer": str(tmp_path / "student")})
    assert call("check", recipe, f"student={student}")[0] == 0
    alone = "stages=[{stage: 2, last_layers: 1, steps: 2, learning_rate: 0.1}]"
    refused("no stage trains encoder/embeddings/", "check", recipe, f"student={student}", alone)


def test_heads_that_no_stage_names_are_said(call, recipe: Path) -> None:
    one = call("check", recipe, "stages=[{stage: 1, steps: 2, learning_rate: 0.1}]")
    assert (one[0], "No stage names fc2, fc3: neither trained nor exported." in one[1]) == (0, True)
    assert "No stage names" not in call("check", recipe)[1]


def test_a_mesh_that_is_not_here_is_shown(call, refused, recipe: Path) -> None:
    code, out, _ = call("check", recipe, "mesh={data: 1, fsdp: 4, tensor: 2}")
    assert code == 0
    assert "Where parameters lie" in out
    refused("stages[0].batch_size: 16 texts do not divide over data × fsdp = 3", "check", recipe, "mesh={fsdp: 3}")


def test_teachers_that_no_stage_learns_from_are_not_looked_at(tmp_path: Path) -> None:
    heads = {"fc1": {"dim": 4, "target": "pooled"}}
    teachers = [{"name": "away", "model": str(tmp_path / "nowhere")}]
    stages = [{"stage": 1, "steps": 2, "learning_rate": 0.1, "batch_size": 16}]
    _, teacher_dim = validate(Run(tiny(tmp_path, heads=heads, teachers=teachers, stages=stages)))
    assert teacher_dim is None


def test_a_batch_larger_than_there_are_texts(tmp_path: Path) -> None:
    stages = resolve_stages(tiny(tmp_path))
    refuse_large_batches(stages, 16, "training texts", "texts")
    refuse_large_batches(stages, 1, "training pairs", "images")  # no stage has images
    with pytest.raises(UserError, match=r"stages\[0\].batch_size: 16 exceeds the 15 training texts; lower it"):
        refuse_large_batches(stages, 15, "training texts", "texts")
