"""The command line: exit codes, one-line errors, and the commands on real tiny files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.teachers import teacher_rows, teacher_vectors
from jasper_jax.evaluation.text_tests import TextTests
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from tests.tiny import recipe_tree, write_model

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    return path


def test_every_command_has_help_with_an_example(call) -> None:
    for command in (["check"], ["embed"], ["train"], ["run"], ["evaluate"], ["export"], ["encode"], ["assets"],
                    ["mteb"], ["report"], ["compare"], ["vectors", "verify"], ["vectors", "import"],
                    ["texts", "export"]):  # fmt: skip
        code, out, _ = call(*command, "--help")
        assert code == 0
        assert "Example" in out
        assert "jasper " + " ".join(command) in " ".join(out.split())


def test_an_unknown_recipe_and_a_wrong_override_end_with_2(call, recipe: Path, tmp_path: Path) -> None:
    assert call("check", tmp_path / "none.yaml")[0] == 2
    code, _, err = call("run", recipe, "stages.0.stepz=3")
    assert code == 2
    assert "did you mean 'steps'" in err
    assert not (tmp_path / "run").exists()


def test_steps_in_the_wrong_order_say_what_comes_first(call, recipe: Path) -> None:
    code, _, err = call("train", recipe)
    assert code == 2
    assert "jasper embed" in err or "no complete vector store" in err
    assert "run jasper train first" in call("evaluate", recipe)[2]
    assert "run jasper train first" in call("export", recipe)[2]


def test_embedding_as_three_processes_then_verify(call, recipe: Path) -> None:
    for index in (2, 0, 1):
        assert call("embed", recipe, "--process-index", str(index), "--process-count", "3")[0] == 0
    code, out, _ = call("vectors", "verify", recipe, "--sample", "32")
    assert code == 0
    assert out.count("complete") == 3
    shard = next((recipe.parent / "run" / "vectors" / "a").glob("*train*array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, _, err = call("vectors", "verify", recipe)
    assert code == 2
    assert shard.name in err
    assert call("embed", recipe, "--process-index", "3", "--process-count", "3")[0] == 2


def test_another_recipe_in_a_run_folder_is_refused(call, recipe: Path, tmp_path: Path) -> None:
    assert call("embed", recipe)[0] == 0
    code, _, err = call("embed", recipe, "seed=1")
    assert code == 2
    assert "seed" in err
    assert call("embed", recipe, "training.keep=5", "export.normalize=false")[0] == 0
    code, _, err = call("embed", recipe, f"run_dir={tmp_path}")
    assert code == 2
    assert "not a run folder" in err


def test_imported_vectors_are_a_teacher(call, recipe: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    texts = [line["text"] for line in lines]
    vectors = np.random.default_rng(0).normal(size=(len(texts), 10)).astype(np.float32)
    pq.write_table(pa.table({"text": texts, "embedding": list(vectors)}), tmp_path / "v.parquet")
    changes = ["teachers.1={name: outside, dim: 10}", "texts.augment.split_share=0", "texts.augment.shuffle_share=0"]
    code, _, err = call("embed", recipe, *changes)
    assert code == 2
    assert "outside" in err
    code, _, err = call("vectors", "import", recipe, "outside", tmp_path / "v.parquet", *changes)
    assert code == 0, err
    assert call("embed", recipe, *changes)[0] == 0
    assert call("vectors", "import", recipe, "nobody", tmp_path / "v.parquet")[0] == 2


def test_the_texts_that_need_vectors_are_exported_and_a_refused_import_pins_nothing(
    call, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs.csv").write_text("query,passage\nwhat is naïve,a test's own passage\n", "utf-8")
    test = f"evaluation.retrieval=[{{name: own, pairs: {{csv: {tmp_path / 'pairs.csv'}}}}}]"
    wrong = ["teachers=[{name: outside, dim: 7}]", test]
    changes = ["teachers=[{name: outside, dim: 10}]", test]
    out = tmp_path / "out.jsonl"
    code, said, err = call("texts", "export", recipe, out, *wrong)
    assert code == 0, err
    assert "2 more of the tests" in said
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert {"text": "what is naïve", "kind": "query"} in rows
    assert len({(row["text"], row["kind"]) for row in rows}) == len(rows)
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(len(rows), 10)).astype(np.float32))
    assert call("vectors", "import", recipe, "outside", tmp_path / "v.npy", out, *wrong)[0] == 2
    code, _, err = call("vectors", "import", recipe, "outside", tmp_path / "v.npy", out, *changes)
    assert (code, "not scored" in err) == (0, False), err
    assert len(list((tmp_path / "run" / "evaluation").glob("outside-own-*.npy"))) == 2
    run = Run(load_recipe(recipe, changes), progress=False)
    texts = run.data.texts()
    tests = TextTests(run.recipe.evaluation, texts)
    made = teacher_vectors(run.vectors, tmp_path / "run" / "evaluation", tests)
    [row, *_] = teacher_rows(run.vectors, made, texts, tests, []).rows
    assert (row.provider, row.retrieval["own"].queries, row.retrieval["own"].passages) == ("teacher outside", 1, 1)


def test_a_folder_of_every_dimension(call, recipe: Path, tmp_path: Path, monkeypatch) -> None:
    made: dict[str, int | None] = {}

    def export(run, source, teachers, output):
        made[output.relative_to(tmp_path).as_posix()] = run.recipe.export.dim
        return output, "checked"

    monkeypatch.setattr("jasper_jax.export.sentence_transformers.export", export)
    assert call("export", recipe, "--all-dims", "-o", tmp_path / "out")[0] == 0
    assert made == {f"out/{dim}": dim for dim in (24, 12, 8, 6, 4)}


@pytest.mark.parametrize("command", ["check", "embed", "encode"])
def test_a_platform_that_is_not_here_is_one_line(call, recipe: Path, tmp_path: Path, monkeypatch, command: str) -> None:
    def none() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': no such device\nmore")

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("jax.devices", none)
    arguments = (tmp_path / "m", tmp_path / "t", tmp_path / "v.npy") if command == "encode" else (recipe,)
    names = {"check": "check.check_recipe", "embed": "stores.embed_teachers", "encode": "encode.encode_file"}
    monkeypatch.setattr(f"jasper_jax.commands.{names[command]}", fail)
    code, _, err = call(command, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "JAX_PLATFORMS: 'cuda' cannot be used on this machine (Unable to initialize backend 'cuda'" in err


def test_encode_writes_vectors_and_refuses_nonsense(call, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("the old river\na map\n")
    assert call("encode", model, tmp_path / "texts.txt", tmp_path / "v.npy", "--kind", "query")[0] == 0
    expected = Embedder.load(model).encode(["the old river", "a map"], kind="query")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    objects = [{"text": "the old river", "kind": "query"}, {"id": 1, "text": "a map"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects), "utf-8")
    assert call("encode", model, tmp_path / "texts.jsonl", tmp_path / "v.npy")[0] == 0
    expected = Embedder.load(model).encode(["the old river", "a map"], kind=["query", "passage"])
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    (tmp_path / "bodies.jsonl").write_text('{"body": "x"}\n', "utf-8")
    assert "the keys are body" in call("encode", model, tmp_path / "bodies.jsonl", tmp_path / "o.npy")[2]
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    for arguments, message in [
        ((tmp_path / "none.txt", tmp_path / "o.npy"), "no such file"),
        ((tmp_path / "texts.txt", tmp_path / "o.csv"), ".npy"),
        ((tmp_path / "latin1.txt", tmp_path / "o.npy"), "not UTF-8"),
        ((tmp_path / "texts.txt", tmp_path / "o.npy", "--dim", "7"), "7"),
        ((tmp_path / "texts.txt", tmp_path / "o.npy", "--kind", "title"), "query and passage"),
    ]:
        code, _, err = call("encode", model, *arguments)
        assert (code, message in err) == (2, True), err
        assert not (tmp_path / "o.npy").exists()


def test_a_full_disk_or_a_read_only_folder_is_one_line(call, recipe: Path) -> None:
    code, _, err = call("embed", recipe, "run_dir=/proc/nowhere")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
