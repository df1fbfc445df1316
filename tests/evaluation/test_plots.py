"""The pictures are drawn, from what the files say."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.image import imread

from jasper_jax.evaluation import plots
from jasper_jax.evaluation.curves import read_metrics, running_median
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow
from jasper_jax.evaluation.image_tests import contact_sheet
from jasper_jax.evaluation.plots import plot_dimensions, plot_training
from jasper_jax.evaluation.retrieval import Interval, RetrievalScore
from jasper_jax.runtime.errors import UserError
from tests.data.picture_helpers import picture


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def ink(path) -> float:
    """Share of the picture's pixels that are not white."""
    return float((imread(path)[..., :3] < 0.98).any(axis=-1).mean())


def step(number: int, stage: int, loss: float, terms: dict, **more) -> dict:
    return {
        "event": "step",
        "stage": stage,
        "stage_index": stage - 1,
        "global_step": number,
        "loss": loss,
        "terms": terms,
        **more,
    }


def events() -> list[dict]:
    out: list[dict] = [{"event": "start", "stage": 1}]
    for k in range(1, 61):
        terms = {"fc1/cosine": 50.0 / k, "fc1/similarity": 0.4}
        if k > 30:
            terms["fc2/similarity"] = 0.2
        out.append(step(k, 1 if k <= 30 else 2, 100.0 / k, terms))
        if k % 20 == 0:
            held = {"fc1/cosine": 60.0 / k}
            out.append({"event": "evaluation", "stage_index": 0, "global_step": k, "loss": 1.0, "terms": held})
    return out


def write(path, records, tail: str = ""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def test_training_curves(tmp_path, drawn):
    out = tmp_path / "figures" / "training.png"
    plot_training(write(tmp_path / "metrics.jsonl", events(), '{"event": "st'), out)
    assert 0.01 < ink(out) < 0.5
    total, cosine, similarity, spare = drawn[0].axes
    assert [a.get_title(loc="left") for a in (total, cosine, similarity)] == [
        "total loss",
        "cosine loss",
        "similarity loss",
    ]
    assert not spare.axison
    np.testing.assert_allclose(total.get_lines()[0].get_ydata(), [100 / k for k in range(1, 31)])
    assert total.get_yscale() == "log"
    assert similarity.get_yscale() == "linear"
    words = {text.get_text() for text in similarity.texts}
    assert words == {"stage 1", "stage 2", "fc1", "fc2"}
    boundaries = [line for line in cosine.get_lines() if list(line.get_xdata()) == [30.5, 30.5]]
    assert len(boundaries) == 1
    held_out = [line for line in cosine.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(held_out[0].get_xdata(), [20, 40, 60])
    assert total.get_xlim() == similarity.get_xlim()


def test_the_shortest_runs_are_drawn(tmp_path):
    out = tmp_path / "one.png"
    plot_training(write(tmp_path / "a.jsonl", [step(1, 1, 2.0, {})]), out)
    assert ink(out) > 0.005
    plot_training(write(tmp_path / "b.jsonl", [step(k, 1, float("nan"), {"fc1/x": 0.0}) for k in (1, 2)]), out)
    assert ink(out) > 0.005


def test_of_a_repeated_step_the_later_counts(tmp_path):
    records = [step(1, 1, 1.0, {}), step(2, 1, 9.0, {}), step(2, 1, 5.0, {}), step(3, 1, 4.0, {})]
    steps, evaluations = read_metrics(write(tmp_path / "m.jsonl", records))
    assert [(s["global_step"], s["loss"]) for s in steps] == [(1, 1.0), (2, 5.0), (3, 4.0)]
    assert evaluations == []


def test_running_median():
    values = np.random.default_rng(0).normal(size=320)
    place, median = running_median(values)
    assert place.tolist() == list(range(320))
    assert median[100] == np.median(values[90:111])
    assert median[0] == np.median(values[:11])
    place, median = running_median(np.arange(50_000.0))
    assert (len(place), place[0], place[-1]) == (400, 0, 49_999)
    np.testing.assert_array_equal(median[100:300], place[100:300])


def test_metrics_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no training step"):
        read_metrics(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no training step"):
        read_metrics(write(tmp_path / "empty.jsonl", [{"event": "start"}], "{"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"event": "ste\n' + json.dumps(step(1, 1, 1.0, {})) + "\n")
    with pytest.raises(UserError, match="1: not a JSON line"):
        read_metrics(broken)


def row(provider: str, role: str, dim: int, value: float, **more) -> EvaluationRow:
    at = Interval(value, value - 0.01, value + 0.01)
    return EvaluationRow(
        provider=provider,
        role=role,
        dim=dim,
        retrieval={"nyt": RetrievalScore(9, 9, 0, at, at, at, at)},
        **more,
    )


def evaluation() -> Evaluation:
    final = [
        row("after stage 3", "student", dim, 0.6 + dim / 10_000, stage=3, head=head)
        for dim, head in ((1024, "fc1"), (256, "fc1"), (256, "fc2"), (128, "fc2"))
    ]
    before = [
        row("student before training", "student", 512, 0.4, stage=0, head="pooled"),
        row("closed-form start", "student", 1024, 0.45, stage=0, head="fc1"),
        row("closed-form start", "student", 256, 0.43, stage=0, head="fc1"),
    ]
    older = row("after stage 1", "student", 1024, 0.5, stage=1, head="fc1")
    teachers = [row("teacher a", "teacher", 384, 0.74), row("teacher b", "teacher", 768, 0.742)]
    return Evaluation(rows=[*teachers, *before, older, *final])


def test_dimensions(tmp_path, drawn):
    out = tmp_path / "dimensions.png"
    plot_dimensions(evaluation(), out)
    assert 0.01 < ink(out) < 0.5
    (axes,) = drawn[0].axes
    words = [text.get_text() for text in axes.texts]
    for expected in (
        "teacher a (384)  0.740",
        "teacher b (768)  0.742",
        "student before training (512)  0.400",
    ):
        assert expected in words
    assert [word for word in words if "closed" in word] == ["closed-form start (1024)  0.450"]
    assert not any("stage 1" in word for word in words)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["128", "256", "1024"]
    heights = [text.get_position()[1] for text in axes.texts if text.get_text().startswith("teacher")]
    assert abs(heights[0] - heights[1]) > 0.02  # apart, though the lines all but touch


def test_evaluations_with_little_in_them(tmp_path):
    out = tmp_path / "dimensions.png"
    plot_dimensions(Evaluation(rows=evaluation().rows[:3]), out)
    assert ink(out) > 0.005
    plot_dimensions(Evaluation(rows=evaluation().rows[-1:]), out, test="nyt")
    assert ink(out) > 0.005
    with pytest.raises(UserError, match="has nyt"):
        plot_dimensions(evaluation(), out, test="wiki")
    with pytest.raises(UserError, match="has none"):
        plot_dimensions(Evaluation(), out)


def test_the_same_picture_twice_and_no_window_system(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # which would open windows and keep state
    for name in ("a.png", "b.png"):
        plot_dimensions(evaluation(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_setting_of_a_matplotlibrc_counts(tmp_path):
    """One in the current folder is read when matplotlib is imported; LaTeX reads files and runs programs."""
    import matplotlib

    with matplotlib.rc_context(
        {"text.usetex": True, "text.latex.preamble": r"\input{/etc/passwd}", "axes.facecolor": "k"}
    ):
        plot_dimensions(evaluation(), tmp_path / "a.png")
        assert matplotlib.rcParams["text.usetex"], "the user's own plots stay as they are"
    plot_dimensions(evaluation(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_captions_are_no_formulas(tmp_path):
    texts = ["costs $5 or $6", r"$\frac{$", "x_1^2 $$", "\x1b[31m <b>"]
    pairs = [SimpleNamespace(image=picture(i), caption=text, name="x") for i, text in enumerate(texts)]
    vectors = np.eye(4, dtype=np.float32)
    contact_sheet(vectors, vectors, pairs, tmp_path / "sheet.png", title="t")
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'jasper-jax\[plot\]'"):
        plot_dimensions(evaluation(), tmp_path / "x.png")
