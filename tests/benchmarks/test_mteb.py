"""Models scored by MTEB: its seven types of tasks, defined here, since no hub is within reach of a test."""

from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("mteb")
pytest.importorskip("sentence_transformers")

import mteb
from mteb.get_tasks import _TASKS_REGISTRY
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from jasper_jax.benchmarks.candidates import results_folder
from jasper_jax.benchmarks.encoder import Model, torch_model
from jasper_jax.benchmarks.model_meta import as_module, model_meta, model_name, revision
from jasper_jax.benchmarks.prompts import prompt_kind, with_prompts
from jasper_jax.benchmarks.run import run_benchmark
from jasper_jax.benchmarks.summary import read_scores, summary_table
from jasper_jax.benchmarks.tasks import select_tasks, subtasks
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.benchmark_scores import read
from jasper_jax.evaluation.folders import asked_of, evaluate_folders
from jasper_jax.runtime.errors import UserError
from tests.benchmarks import local_tasks as local
from tests.tiny import recipe_tree, write_model

pytestmark = [
    pytest.mark.usefixtures("quick_programs"),
    pytest.mark.filterwarnings("ignore"),  # of mteb and what it imports
]
PROMPTS = {"query": "what is ", "passage": "this machine ", "document": "this machine "}
NAME = "local/student"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("model") / "student")
    file = folder / "config_sentence_transformers.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**settings, "prompts": PROMPTS, "default_prompt_name": None}))
    return folder


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven tasks, at the model's own dimension and at 8."""
    output = tmp_path_factory.mktemp("results")
    done = run_benchmark(model, NAME, [task() for task in local.SEVEN], output, dims=[16, 8])
    assert done.failed == {}
    assert len(list(done.scores.rows())) == 8  # seven tasks and the mean
    return output


def score(output: Path, task: str, key: str = "main_score", **experiment: Any) -> float:
    """A score as MTEB's own reader finds it."""
    (result,) = [
        found
        for found in mteb.ResultCache(output).load_results(tasks=[task], load_experiments="match_name").model_results
        if found.model_meta and (found.model_meta.experiment_kwargs or {}) == experiment
    ]
    (task_result,) = result.task_results
    return task_result.scores["test"][0][key]


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for file, texts in (("queries", local.QUERIES), ("corpus", local.PASSAGES)):
        lines = [json.dumps({"_id": i, "title": "", "text": text}) for i, text in texts.items()]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f"{q}\t{p}\t{gain}" for q, found in local.RELEVANT.items() for p, gain in found.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


def test_results_lie_as_mteb_lays_them_out(results: Path, model: Path) -> None:
    own = results / "results" / "local__student" / revision(model)
    names = {f"{task.metadata.name}.json" for task in local.SEVEN}
    for folder in (own, own / "experiments" / "embed_dim_8__vectors_cut"):
        assert names <= {file.name for file in folder.iterdir()}
        meta = ModelMeta.model_validate_json_resolved((folder / "model_meta.json").read_text())
        assert (meta.name, meta.revision) == (NAME, revision(model))
    for task in local.SEVEN:
        assert np.isfinite(score(results, task.metadata.name))


@pytest.mark.parametrize(("dim", "experiment"), [(16, {}), (8, {"embed_dim": 8, "vectors": "cut"})])
def test_retrieval_is_that_of_jasper_evaluate(
    dim: int, experiment: dict[str, Any], results: Path, model: Path, tmp_path: Path
) -> None:
    (row,) = evaluate_folders([str(model)], asked_of([], [str(beir(tmp_path / "beir"))], []), (dim,)).rows
    expected = row.retrieval["beir"].ndcg10.value
    assert 0.1 < expected < 0.9
    assert score(results, "LocalRetrieval", "exact", **experiment) == pytest.approx(expected, abs=1e-6)
    assert score(results, "LocalRetrieval", **experiment) == round(expected, 5)  # MTEB rounds it


def test_similarity_is_that_of_jasper_evaluate_under_the_same_prompt(model: Path, tmp_path: Path) -> None:
    rows = [f"{one},{other},{judged}" for one, other, judged in local.JUDGED]
    (tmp_path / "sts.csv").write_text("\n".join(["query,passage,score", *rows]) + "\n")
    (row,) = evaluate_folders([str(model)], asked_of([], [], [str(tmp_path / "sts.csv")]), ()).rows
    run_benchmark(model, NAME, [local.LocalSTS()], tmp_path, prompts={"STS": PROMPTS["passage"]})
    (found,) = read_scores(mteb.ResultCache(tmp_path), [local.LocalSTS()]).models
    assert found.scores["LocalSTS"] == pytest.approx(row.similarity["sts"].spearman, abs=1e-6)


def test_similarity_without_a_prompt_of_its_own_takes_none(results: Path, model: Path) -> None:
    from scipy.stats import spearmanr

    one, other = (Embedder.load(model).encode([pair[side] for pair in local.JUDGED]) for side in (0, 1))
    expected = spearmanr((one * other).sum(axis=1), [pair[2] for pair in local.JUDGED]).statistic
    assert score(results, "LocalSTS") == pytest.approx(expected, abs=1e-6)


def test_sentence_transformers_scores_the_same(results: Path, model: Path, tmp_path: Path) -> None:
    tasks = [local.LocalRetrieval(), local.LocalSTS()]
    run_benchmark(model, NAME, tasks, tmp_path, backend="sentence-transformers")
    torch = {"backend": "sentence-transformers"}
    for task, key in (("LocalRetrieval", "exact"), ("LocalSTS", "main_score")):
        assert score(tmp_path, task, key, **torch) == pytest.approx(score(results, task, key), abs=1e-6)


def test_a_finished_task_is_not_run_again_and_a_cut_file_is(results: Path, model: Path) -> None:
    path = next((results / "results").glob("*/*/LocalSTS.json"))
    before, loads = path.read_bytes(), local.LocalRetrieval.loads
    path.write_bytes(before[: len(before) // 2])
    done = run_benchmark(model, NAME, [local.LocalRetrieval(), local.LocalSTS()], results)
    assert done.failed == {}
    assert local.LocalRetrieval.loads == loads
    assert json.loads(path.read_text())["scores"] == json.loads(before)["scores"]


def test_a_task_that_cannot_be_fetched_does_not_stop_the_others(call, model: Path, tmp_path: Path, monkeypatch) -> None:
    for task in (local.Unreachable, local.LocalSTS):
        monkeypatch.setitem(_TASKS_REGISTRY, task.metadata.name, task)
    code, out, err = call("mteb", model, "--tasks", "Unreachable,LocalSTS", "--output", tmp_path / "out")
    assert code == 2
    assert "1 of 2 tasks have no score: Unreachable: its data cannot be fetched (ConnectionError: Couldn't" in err
    assert "LocalSTS" in out
    assert f"{score(tmp_path / 'out', 'LocalSTS') * 100:.2f}" in out
    assert "mean of all" in out


def test_models_whose_results_are_in_the_folder_stand_side_by_side(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)
    tasks = [local.LocalSTS()]
    run_benchmark(other, "local/teacher", tasks, tmp_path)
    done = run_benchmark(model, NAME, tasks, tmp_path, dims=[16, 8])
    titles = [str(column.header) for column in summary_table(done.scores).columns]
    assert titles == ["type", "task", "local/student\n16", "local/student\n8\ncut", "local/teacher\n16"]


def test_the_model_meta_is_one_that_mteb_reads(results: Path, model: Path) -> None:
    names: dict[str, Any] = {}
    exec((results / "local__student.py").read_text(), names)
    meta = names["model"]
    assert isinstance(meta, ModelMeta)
    embedder = Embedder.load(model)
    assert (meta.name, meta.embed_dim, meta.max_tokens) == (NAME, 16, embedder.max_length)
    assert as_module(meta) == (results / "local__student.py").read_text()
    vocabulary = embedder.encoder.vocab_size * embedder.encoder.hidden_size
    assert (meta.n_embedding_parameters, meta.use_instructions) == (vocabulary, True)
    assert meta.n_parameters == sum(w.size for w in _weights(model))


def _weights(model: Path) -> list[np.ndarray]:
    from safetensors.numpy import load_file

    return list(load_file(model / "model.safetensors").values())


@pytest.mark.parametrize(
    ("prompts", "task", "kind", "expected"),
    [
        ({}, "Retrieval", PromptType.query, "query"),
        ({}, "Retrieval", PromptType.document, "passage"),
        ({"s2p_query": "a"}, "Retrieval", PromptType.query, "query"),  # Stella's name, which `Embedder.prompt` knows
        ({"document": "a"}, "Retrieval", PromptType.document, "passage"),
        ({"Retrieval-query": "a", "query": "b"}, "Retrieval", PromptType.query, "Retrieval-query"),
        ({"LocalRetrieval": "a", "Retrieval-query": "b"}, "Retrieval", PromptType.query, "LocalRetrieval"),
        ({"query": "a", "passage": "b"}, "STS", None, None),
        ({"STS": "a", "query": "b"}, "STS", None, "STS"),
    ],
)
def test_prompts_are_chosen_by_task_then_type_then_kind(prompts, task: str, kind, expected: str | None) -> None:
    tasks = {cls.metadata.type: cls for cls in local.SEVEN}
    assert prompt_kind(prompts, tasks[task].metadata, kind) == expected


def test_a_given_prompt_replaces_the_models_by_all_its_names() -> None:
    own = {"query": "", "s2p_query": "a", "passage": "b", "document": "b", "STS": "c"}
    assert with_prompts(own, {"query": ""}) == {"passage": "b", "document": "b", "STS": "c", "query": ""}
    assert with_prompts(own, {"document": "d", "STS": "e"}) == {
        "query": "",
        "s2p_query": "a",
        "document": "d",
        "STS": "e",
    }


def test_given_prompts_are_those_of_the_vectors(model: Path, tmp_path: Path) -> None:
    swapped = {"query": PROMPTS["passage"], "document": PROMPTS["query"]}
    run_benchmark(model, NAME, [local.LocalRetrieval()], tmp_path / "given", prompts=swapped)
    file = shutil.copytree(model, tmp_path / "other") / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prompts": swapped}))
    run_benchmark(file.parent, NAME, [local.LocalRetrieval()], tmp_path / "own")
    ((given,), (own,)) = (
        read_scores(mteb.ResultCache(tmp_path / name), [local.LocalRetrieval()]).models for name in ("given", "own")
    )
    assert given.scores == own.scores
    assert given.title("") != own.title("")  # an experiment, by the prompts' digest
    assert revision(file.parent) != revision(model)


def test_the_papers_56_tasks_have_one_name() -> None:
    tasks = select_tasks("MTEB(eng, classic)", [])
    assert len(tasks) == 56
    forums = next(task for task in tasks if task.metadata.name == "CQADupstackRetrieval")
    assert len(subtasks(forums)) == 13
    (sts17,) = select_tasks("MTEB(eng, classic)", ["STS17"])
    assert sts17.hf_subsets == ["en-en"]  # as the benchmark has it


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "nothing to score by; give --benchmark 'MTEB(eng, v2)' or --tasks"),
        (["--benchmark", "MTEB(eng, v9)"], "no such benchmark; did you mean 'MTEB(eng"),
        (["--tasks", "sts-12"], "--tasks sts-12: no such task; did you mean 'STS12'"),
        (["--benchmark", "MTEB(eng, v2)", "--tasks", "STS16"], "not in MTEB(eng, v2); did you mean 'STS1"),
        (["--tasks", "Flickr30kI2TRetrieval"], "Flickr30kI2TRetrieval: has image; only tasks of text are scored"),
        (["--tasks", "STS12", "--dim", "99"], "--dim 99: {model} has 16 dimensions"),
        (["--tasks", "STS12", "--backend", "tpu"], "--backend tpu: allowed are jax and sentence-transformers"),
        (["--tasks", "STS12", "--backend", "sentence-transformers", "--batch-tokens", "64"], "--batch-tokens is for"),
        (["--tasks", "STS12", "--name", "student"], "--name 'student': expected ORGANISATION/NAME"),
        (["--tasks", "STS12", "--teachers"], "--teachers: no teacher has a model here"),
        (["other", "--tasks", "STS12", "--name", "me/mine"], "--name me/mine: is the name of one model, and 2 are"),
        (["--tasks", "STS12", "--prompts", "none.yaml"], "none.yaml: no such file"),
        (["--tasks", "STS12", "--prompts", "prompts.yaml"], "prompt 'Retreival-query' is of no task"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: list[str], problem: str, call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.yaml").write_text(yaml.safe_dump({"STS": "a", "Retreival-query": "b"}))
    code, _, err = call("mteb", model, *arguments)
    assert code == 2
    assert problem.format(model=model) in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("mteb-results").exists()


def test_a_recipe_stands_for_the_export_of_its_run_and_its_teachers(
    call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(_TASKS_REGISTRY, "LocalSTS", local.LocalSTS)
    write_model(tmp_path / "teacher", hidden=32, seed=1)
    teachers = [
        {"name": "a", "model": str(tmp_path / "teacher"), "prompts": {"passage": "a text: "}},
        {"name": "b", "dim": 8},
    ]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_tree(tmp_path), "run_dir": "runs/mine", "teachers": teachers}))
    code, _, err = call("mteb", recipe, "--tasks", "LocalSTS")
    assert code == 2
    assert "runs/mine/export: no such folder; run jasper export" in err
    shutil.copytree(model, "runs/mine/export")
    code, out, err = call("mteb", recipe, "--teachers", "--tasks", "LocalSTS", "--dim", "16", "--dim", "8")
    assert code == 0, err
    scores = read(Path("runs/mine/mteb/summary.json"))
    titles = [found.title(" ") for found in scores.models]
    prompts = titles[2].split()[-1]
    assert titles == [
        "local/mine 16",
        "local/mine 8 cut",
        f"local/teacher 32 {prompts}",
        f"local/teacher 16 cut {prompts}",
        f"local/teacher 8 cut {prompts}",
    ]
    for found, shown in zip(scores.models, next(scores.rows()).scores):
        assert f"{100 * found.scores['LocalSTS']:.2f}" == f"{shown:.2f}"
        assert f"{shown:.2f}" in out


def test_a_local_model_is_called_by_its_folder_or_its_run(tmp_path: Path) -> None:
    (tmp_path / "mine" / "export").mkdir(parents=True)
    assert model_name(str(tmp_path / "mine"), None) == "local/mine"
    assert model_name(str(tmp_path / "mine" / "export"), None) == "local/mine"
    assert model_name(str(tmp_path / "mine"), "me/mine") == "me/mine"
    with pytest.raises(UserError, match="expected ORGANISATION/NAME"):
        model_name(str(tmp_path / "mine"), "mine")


DESCRIBED = Model(lambda *given: np.zeros((1, 16), np.float32), {}, [16], 16, 32, 100, 10)
BREAKS_OUT = 'x")\nimport os\n("'


def stranger(folder: Path, base: str) -> Path:
    """A folder of somebody else's with ``base`` as the base model of its card."""
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nlicense: mit\nbase_model: {base}\n---\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("org/model", "org/model"),
        ("[org/model, org/other]", "org/model"),
        (json.dumps(BREAKS_OUT), None),
        ("/home/somebody/model", None),
        ('"\\e[2J/x"', None),
        ("[{a: b}]", None),
        ("[", None),
        ("!!python/object/apply:os.system [true]", None),
        ("[" * 3000, None),
        ("&a [*a]", None),
        ("x\n1: 2", None),
    ],
)
def test_a_card_says_at_most_which_model_of_the_hub_is_the_base(base: str, said: str | None, tmp_path: Path) -> None:
    folder = stranger(tmp_path / BREAKS_OUT, base)
    meta = model_meta(model_name(str(folder), None), folder, DESCRIBED)
    assert meta.adapted_from == said
    module = ast.parse(as_module(meta))
    assert [type(item).__name__ for item in module.body] == ["Expr", "ImportFrom", "ImportFrom", "Assign"]


def test_a_name_is_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "student").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "private"))
    for given in ("~/student", "$HOME/student", f"{tmp_path}/private/student/../student/."):
        assert model_name(given, None) == "local/student"


def test_a_revision_is_of_files_in_the_folder(tmp_path: Path) -> None:
    folder = stranger(tmp_path / "model", "org/model")
    before = revision(folder)
    os.mkfifo(folder / "waits.json")
    (folder / "endless.json").symlink_to("/dev/zero")
    (folder / "dangling.json").symlink_to("nowhere")
    assert revision(folder) == before
    (tmp_path / "private.json").write_text("{}")
    (folder / "private.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(UserError, match="private.json: is a link to a file outside its folder"):
        revision(folder)
    (folder / "README.md").rename(tmp_path / "private.md")
    (folder / "README.md").symlink_to(tmp_path / "private.md")
    (folder / "private.json").unlink()
    with pytest.raises(UserError, match="README.md: is a link to a file outside its folder"):
        model_meta("local/model", folder, DESCRIBED)


def test_sentence_transformers_is_given_neither_links_nor_pickles(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "private.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "private.safetensors")
    with pytest.raises(UserError, match="model.safetensors: is a link to a file outside its folder"):
        torch_model(folder, {})
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no model.safetensors beside it, and pickled weights are never loaded"):
        torch_model(folder, {})


@pytest.mark.parametrize("target", ["victim", "nowhere", "folder"])
def test_results_of_others_lead_nowhere(model: Path, tmp_path: Path, target: str) -> None:
    """MTEB opens model_meta.json and others to write them, whatever is behind the name."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "folder").mkdir()
    place = tmp_path / "out" / "results" / "local__student" / revision(model)
    place.parent.mkdir(parents=True)
    if target == "folder":
        place.symlink_to(tmp_path / target)
    else:
        place.mkdir()
        (place / "model_meta.json").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"link to a file outside|link to nothing|is not a folder inside"):
        run_benchmark(model, NAME, [local.SEVEN[0]()], tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert not list((tmp_path / "folder").iterdir())


def test_scores_go_through_no_link_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert results_folder(["model"], None) == Path("mteb-results")
    Path("mteb-results").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="'mteb-results' is not a folder inside"):
        results_folder(["model"], None)
    assert results_folder(["model"], Path("mteb-results")) == Path("mteb-results"), "the user named it"
