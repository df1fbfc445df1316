"""The page of a run: complete without a part, complete with hostile text, and one line where it cannot be made."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jasper_jax.evaluation.benchmark_scores import BenchmarkScores, ModelScores, write
from jasper_jax.evaluation.by_text import FILE
from jasper_jax.evaluation.evaluation import to_json
from jasper_jax.evaluation.instructions import InstructionRow
from jasper_jax.runtime.files import sealed
from tests.reporting.run_folders import HOSTILE, events, scores, write_run

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")
from jasper_jax.reporting import page
from jasper_jax.reporting.text_figures import layout
from jasper_jax.reporting.write import write_comparison, write_report


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read the page, which is quick without its five megabytes; ``test_browser`` has them."""
    monkeypatch.setattr(page, "plotly_script", lambda: "window.Plotly = null;")


class Reader(HTMLParser):
    """The elements of a page, the text outside scripts, and the content of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def made(folder: Path) -> Reader:
    write_report(folder, folder / "report.html")
    return Reader((folder / "report.html").read_text("utf-8"))


def data_of(reader: Reader) -> dict[str, Any]:
    return json.loads(reader.scripts[0])


def headings(folder: Path) -> dict[str, str]:
    """The sections of the report, with the sentence in place of each that is left out."""
    text = (folder / "report.html").read_text("utf-8")
    sections = re.findall(r'<section id="([a-z-]+)">(.*?)</section>', text, re.DOTALL)
    return {key: (re.findall(r'class="missing">(.*?)</p>', body) or [""])[0] for key, body in sections}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_finished_run_has_every_section(run: Path) -> None:
    reader = made(run)
    assert headings(run) == dict.fromkeys(
        ["quality", "queries", "agreement", "map", "losses", "time", "scores", "made-from"], ""
    )
    charts = data_of(reader)["charts"]
    assert {key.rstrip("0123456789") for key in charts} == {"dimension", "bytes", "density", "map", "loss-", "time"}
    assert "all-MiniLM-L6-v2, distilled from all-mpnet-base-v2 and <img src=x> in 2 stages." in reader.text
    student = next(trace for trace in charts["dimension"][0]["data"] if trace["name"] == "student")
    expected = [row.retrieval["forum <i>"].ndcg10 for row in sorted(scores().rows[-2:], key=lambda row: row.dim)]
    assert student["x"] == [8, 24]
    assert student["y"] == pytest.approx([score.value for score in expected], rel=1e-4)
    assert student["error_y"]["array"] == pytest.approx([s.high - s.value for s in expected], rel=1e-4)
    student = next(trace for trace in charts["bytes"][0]["data"] if trace["name"] == "student")
    assert student["x"] == [32, 96]


def test_other_wordings_of_a_prompt_have_a_section(run: Path) -> None:
    row = InstructionRow(
        provider="after stage 2",
        role="student",
        dim=24,
        test="forum <i>",
        kind="query",
        plain=0.5,
        mean=0.25,
        spread=0.125,
        worst=0.0625,
        worst_wording=HOSTILE,
        wordings={HOSTILE: 0.0625, "find: ": 0.4375},
    )
    to_json(scores().model_copy(update={"instructions": [row]}), run / "evaluation.json")
    reader = made(run)
    assert list(headings(run))[2] == "instructions"
    assert all(cell in reader.text for cell in ("0.500", "0.250", "0.125", "0.062", "{{ 7 * 7 }}"))
    assert reader.elements.count("script") == 3


def test_scores_by_a_benchmark_have_a_section(run: Path) -> None:
    models = [
        ModelScores(
            model=f"local/student{HOSTILE}", dim=24, settings=[], scores={"STS12": 0.7, "STS13": 0.5, "A": 0.25}
        ),
        ModelScores(model="local/student", dim=8, settings=["cut"], scores={"STS12": 0.6, "A": 0.5}),
    ]
    (run / "mteb").mkdir()
    write(
        run / "mteb" / "summary.json", BenchmarkScores(tasks={"STS12": "STS", "A": "B", "STS13": "STS"}, models=models)
    )
    reader = made(run)
    assert list(headings(run))[2] == "mteb"
    after = reader.text[reader.text.index("local/student 8 cut") :]
    assert re.findall(r"\d\d\.\d\d|–", after)[:10] == [
        *("25.00", "50.00", "70.00", "60.00", "50.00", "–"),  # A, STS12, STS13
        *("60.00", "–", "48.33", "–"),  # means of STS and of all
    ]
    assert "local/student 8 cut" in reader.text
    assert reader.elements.count("script") == 3
    (run / "mteb" / "summary.json").write_text("{}")
    assert "mteb/summary.json: not scores by a benchmark: tasks: Field required; `jasper mteb` writes" in made(run).text


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    write_report(run, run / "a.html")
    write_report(run, run / "b.html")
    assert (run / "a.html").read_bytes() == (run / "b.html").read_bytes()


def test_text_of_others_is_shown_and_never_obeyed(run: Path) -> None:
    reader = made(run)
    assert reader.elements.count("script") == 3
    assert not {"img", "i", "iframe", "object"} & set(reader.elements)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in reader.text
    assert "</script><script>window.broken" in reader.text
    tests = data_of(reader)["tests"]["forum <i>"]
    assert any(HOSTILE.replace("\u202e", "\\u202e") in example["query"] for example in tests["examples"])
    charts = data_of(reader)["charts"]
    names = {trace["name"] for key in ("dimension", "time", "loss-1") for trace in charts[key][0]["data"]}
    names |= {note["text"] for note in charts["loss-0"][0]["layout"]["annotations"]}
    assert any("script" in name for name in names)
    assert not any("<" in name for name in names)


def test_the_page_names_its_scripts_and_allows_no_other(run: Path) -> None:
    reader = made(run)
    (policy,) = [v for k, v in reader.attributes if k == "content" and v and v.startswith("default-src")]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert [page._hash(script) for script in reader.scripts[1:]] == re.findall(r"'(sha256-[^']+)'", policy)
    assert not [v for k, v in reader.attributes if k in ("src", "href") and v and not v.startswith(("#", "data:"))]


def test_no_path_of_this_machine_is_on_the_page(run: Path) -> None:
    made(run)
    text = (run / "report.html").read_text("utf-8")
    assert "texts.jsonl" in text
    for path in ("/home/somebody", "runs/elsewhere", str(run)):
        assert path not in text


@pytest.mark.parametrize(
    ("file", "left_out"),
    [
        ("evaluation.json", {"quality": "jasper evaluate", "queries": "jasper evaluate", "scores": "jasper evaluate"}),
        (FILE, {"queries": "jasper evaluate"}),
        ("metrics.jsonl", {"losses": "jasper train"}),
        ("timings.json", {"time": "No time was recorded"}),
    ],
)
@pytest.mark.parametrize("damage", ["absent", "damaged"])
def test_a_missing_part_is_a_sentence(run: Path, file: str, left_out: dict[str, str], damage: str) -> None:
    if damage == "absent":
        (run / file).unlink()
    else:
        (run / file).write_text("[1,\n" * 3)
    made(run)
    found = {key: sentence for key, sentence in headings(run).items() if sentence}
    assert found.keys() == left_out.keys()
    for key, sentence in found.items():
        assert str(run) not in sentence
        assert left_out[key] in sentence or damage == "damaged"


@pytest.mark.parametrize(
    "event",
    [{"event": "step"}, {"event": "step", "global_step": "1"}, {"event": "step", "global_step": 1, "terms": []}],
)
def test_events_that_no_run_wrote_are_a_sentence(run: Path, event: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    made(run)
    assert "Left out: the run/metrics.jsonl" in headings(run)["losses"]


@pytest.mark.parametrize(
    ("before", "after"),
    [('"most_lost":[', '"most_lost":[4000,'), ('"nearest":[[', '"nearest":[[-1,'), ('"first":[[', '"first":[[900,')],
)
def test_positions_of_nothing_are_a_sentence(run: Path, before: str, after: str) -> None:
    tree = json.loads((run / FILE).read_text("utf-8").replace(before, after, 1))
    (run / FILE).write_text(json.dumps(sealed(tree)), "utf-8")
    made(run)
    assert "is not of these" in headings(run)["queries"]


def test_texts_of_another_evaluation_are_left_out(run: Path) -> None:
    other = scores(seed=1)
    to_json(other.model_copy(update={"metadata": {**other.metadata, "stages": 1}}), run / "evaluation.json")
    made(run)
    assert "jasper evaluate makes it again" in headings(run)["queries"]


def test_a_run_that_only_began_has_a_page(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "recipe.yaml":
            path.unlink()
    reader = made(run)
    assert {key for key, sentence in headings(run).items() if not sentence} == {"made-from"}
    assert data_of(reader) == {"charts": {}}


def test_a_loss_that_is_not_finite_is_valid_json(run: Path) -> None:
    assert any(event["loss"] != event["loss"] for event in events())
    losses = data_of(made(run))["charts"]["loss-0"][0]["data"]
    assert any(None in trace["y"] for trace in losses)


def test_several_runs_are_on_one_page(tmp_path: Path) -> None:
    stages = [{"stage": 3, "steps": 7, "batch_size": 16, "learning_rate": 1e-3}]
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1),
        write_run(tmp_path / "c", name="c", stages=stages),
    ]
    (runs[2] / "evaluation.json").unlink()
    write_comparison(runs, tmp_path / "compare.html")
    reader = Reader((tmp_path / "compare.html").read_text("utf-8"))
    assert reader.elements.count("script") == 3
    charts = data_of(reader)["charts"]
    assert set(charts) == {"dimension", "bytes", "loss", "time"}
    drawn = [trace["name"] for trace in charts["dimension"][0]["data"]]
    assert drawn == ["a", "teachers of a", "b", "teachers of b"]  # equal names of recipes: those of the folders
    assert len(charts["time"][0]["data"][0]["y"]) == 3
    rows = re.findall(r"<tr>\s*<td>forum &lt;i&gt;</td>(.*?)</tr>", (tmp_path / "compare.html").read_text(), re.DOTALL)
    assert len(rows) == 2  # b against a, at two dimensions; c has no evaluation
    assert "stages.0.steps" in reader.text
    assert "7" in reader.text


def test_commands(call, tmp_path: Path, run: Path) -> None:
    assert call("report", run)[:2] == (0, f"{run / 'report.html'}\n")
    assert call("report", run, "-o", tmp_path / "new" / "page.html")[0] == 0
    assert (tmp_path / "new" / "page.html").read_bytes() == (run / "report.html").read_bytes()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((run / "recipe.yaml").read_text())
    assert call("report", recipe, f"run_dir={run}")[:2] == (0, f"{run / 'report.html'}\n")
    assert call("compare", run, run, "-o", tmp_path / "compare.html")[:2] == (0, f"{tmp_path / 'compare.html'}\n")


def test_what_is_no_run_is_refused(refused, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    refused("no run folder", "report", tmp_path / "empty")
    refused("no such file", "report", tmp_path / "nothing.yaml")
    refused("changes a recipe", "report", run, "seed=1")
    refused("at least two runs", "compare", run, "-o", tmp_path / "x.html")
    refused("no run folder", "compare", run, tmp_path / "empty", "-o", tmp_path / "x.html")
    refused("is a file", "report", run, "-o", run / "recipe.yaml" / "page.html")
    monkeypatch.setattr(page, "PACKAGES", ("jinja2", "nowhere"))
    for command in (("report", run), ("compare", run, run, "-o", tmp_path / "x.html")):
        refused("a report needs nowhere: pip install 'jasper-jax[report]'", *command)


@pytest.mark.parametrize("name", ["recipe.yaml", "evaluation.json", "metrics.jsonl", "timings.json"])
def test_no_page_replaces_what_it_is_made_of(refused, run: Path, name: str) -> None:
    refused("this command reads it", "report", run, "-o", run / name)
    refused("this command reads it", "compare", run, run, "-o", run / name)


def test_no_page_replaces_a_pipe(refused, run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused("is a pipe or a device", "report", run, "-o", tmp_path / "pipe")


def test_links_in_a_run_folder_of_others_are_not_read(refused, run: Path, tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text('{"password": "x"}')
    (run / "timings.json").unlink()
    (run / "timings.json").symlink_to(tmp_path / "private.json")
    refused("timings.json", "report", run)


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e38, 1e308])
def test_no_places_of_texts_end_the_process(scale: float) -> None:
    """scikit-learn's t-SNE ended with a segmentation fault where they are all the same, or not of float32."""
    places = 0.3 + scale * np.random.default_rng(0).uniform(-1, 1, size=(70, 3))
    planes = layout(places)
    assert planes.shape == (70, 2)
    assert np.isfinite(planes).all()


@pytest.mark.parametrize("kept", [0, 37, 10_001])
def test_a_comparison_needs_as_many_scores_of_both_runs(tmp_path: Path, kept: int) -> None:
    runs = [write_run(tmp_path / name, name) for name in "ab"]
    tree = json.loads((runs[1] / FILE).read_text("utf-8"))
    test = tree["retrieval"]["forum <i>"]
    test["ndcg10"] = [(scores * 1000)[:kept] for scores in test["ndcg10"]]
    (runs[1] / FILE).write_text(json.dumps(sealed(tree)), "utf-8")
    write_comparison(runs, tmp_path / "compare.html")
    assert "The same queries" not in (tmp_path / "compare.html").read_text("utf-8")
    made(runs[1])
    assert ("1 to 10000 scores of every provider" in headings(runs[1])["queries"]) == (kept != 37)
