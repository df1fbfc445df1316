"""The report of one run: its sections, from what its folder has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jasper_jax.evaluation.by_text import ByText, pairs_of
from jasper_jax.evaluation.evaluation import final_rows, retained
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_sources import FILE_KINDS, SOURCE_KINDS
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.reporting.benchmark_table import benchmark_section
from jasper_jax.reporting.figures import Chart, time_figure
from jasper_jax.reporting.losses import loss_figures
from jasper_jax.reporting.page import Card, Page, Section
from jasper_jax.reporting.quality import FLOAT32, measures, quality_figures
from jasper_jax.reporting.run_files import RunFiles, model_label
from jasper_jax.reporting.score_table import score_table
from jasper_jax.reporting.tables import Table, as_cell, scored
from jasper_jax.reporting.text_figures import density_figures, map_figures, provider_label
from jasper_jax.runtime.timings import duration

_DISAGREE = 25
"""Texts in the table of those on which student and teachers disagree most."""


def run_page(run: RunFiles) -> Page:
    """The page of ``run``; what the folder lacks is a sentence in its section."""
    sections = [_quality(run), _queries(run), *_benchmark(run), *_instructions(run)]
    sections += [*_agreement(run), *_map(run)]
    sections += [losses_section(run), _time(run), _scores(run), made_from(run)]
    return Page(run.recipe.name, lead(run.recipe), _cards(run), sections, _data(run.by_text))


def lead(recipe: Recipe) -> str:
    """What was distilled from what, in a sentence."""
    student = model_label(recipe.student.model, "A student with random weights")
    teachers = [model_label(teacher.model, teacher.name) for teacher in recipe.teachers]
    source = " and ".join(teachers) or "the model itself"
    return f"{student}, distilled from {source} in {len(resolve_stages(recipe))} stages."


def _cards(run: RunFiles) -> list[Card]:
    cards = []
    if run.evaluation is not None:
        kept = [k for k in retained(run.evaluation) if k.of_teacher is not None] if run.evaluation.rows else []
        for k in {k.dim: k for k in (*kept[:1], *kept[-1:])}.values():
            label = f"of the best teacher's nDCG@10 at {k.dim} dimensions, {FLOAT32 * k.dim:,} bytes per vector"
            cards.append(Card(f"{k.of_teacher:.1f}%", label))
        students = final_rows(run.evaluation)
        cost = max((row.weights or 0 for row in run.evaluation.rows if row.role in ("teacher", "teachers")), default=0)
        if students and students[0].weights and cost:
            label = "weights per token in the teachers for each one in the student"
            cards.append(Card(f"{cost / students[0].weights:.1f}×", label))
    if run.seconds:
        cards.append(Card(duration(sum(run.seconds.values())), "for everything, from texts to export"))
    return cards


def _quality(run: RunFiles) -> Section:
    section = Section("quality", "Quality", missing=run.missing.get("evaluation", ""))
    if run.evaluation is None:
        return section
    figures = [quality_figures(run.evaluation, measure) for measure in measures(run.evaluation)]
    if not figures:
        section.missing = "No stage is finished yet, or the recipe asks for no test of texts."
        return section
    section.text = (
        "Each point is one kind of vector. Bars are 95% bootstrap intervals over queries. Small squares need no"
        " training: the teachers' vectors through an SVD. Choose in the legend what is drawn."
    )
    by_dim, by_bytes = zip(*figures)
    section.charts = [
        Chart("dimension", "By dimension", list(by_dim), height=430),
        Chart("bytes", "By bytes per vector", list(by_bytes), height=430),
    ]
    return section


def _queries(run: RunFiles) -> Section:
    section = Section("queries", "Queries gained and lost", missing=run.missing.get("by_text", ""))
    found = run.by_text
    if found is None:
        return section
    if not found.retrieval:
        section.missing = "The recipe asks for no retrieval test."
        return section
    table = Table(
        ["test", "student", "against", "queries", "gained", "lost", "equal", "mean difference", "95% low", "high"],
        caption="nDCG@10 of the same queries: higher with the student (gained), lower (lost)",
    )
    for name, test in found.retrieval.items():
        for c in test.comparisons:
            student, teacher = (provider_label(found.providers[side]) for side in (c.student, c.teacher))
            equal = test.queries - c.gained - c.lost
            bounds = [as_cell(x, "{:+.3f}") for x in (c.difference.value, c.difference.low, c.difference.high)]
            table.add(name, student, teacher, test.queries, c.gained, c.lost, equal, *bounds)
    section.text = (
        "A query is gained where the student's ranking has the higher nDCG@10, lost where the teacher's has. Below are"
        " those with the largest differences, with the first ten passages of both; a tick marks the relevant ones."
    )
    section.tables, section.browser = [table], True
    return section


def _benchmark(run: RunFiles) -> Iterator[Section]:
    """Nothing if `jasper mteb` has not scored the run."""
    if run.benchmark is not None and run.benchmark.models:
        yield benchmark_section(run.benchmark)
    elif missing := run.missing.get("benchmark"):
        yield Section("mteb", "MTEB", missing=missing)


def _instructions(run: RunFiles) -> Iterator[Section]:
    """Nothing if the recipe asks for no other wordings."""
    rows = run.evaluation.instructions if run.evaluation else []
    if not rows:
        return
    section = Section("instructions", "Other instructions")
    section.text = "nDCG@10 with the model's own prompts and with other wordings of them, which users may send."
    columns = ["test", "vectors", "dim", "prompt of", "own prompt", "mean", "spread", "worst", "worst wording"]
    table = Table(columns, caption="Spread: standard deviation over the wordings")
    for row in rows:
        scores = [as_cell(x, "{:.3f}") for x in (row.plain, row.mean, row.spread, row.worst)]
        table.add(row.test, row.provider, as_cell(row.dim, "{}"), row.kind, *scores, row.worst_wording)
    section.tables = [table]
    yield section


def _agreement(run: RunFiles) -> Iterator[Section]:
    """Nothing if the recipe asks for no agreement."""
    section = Section("agreement", "Agreement with the teachers")
    rows = [row for row in final_rows(run.evaluation) if row.agreement] if run.evaluation else []
    if run.by_text is not None and run.by_text.densities:
        section.text = (
            "Pairs of texts that were not trained on, by their similarity to a teacher and to the student: the stronger"
            " the colour, the more pairs (logarithmic). On the dashed line both similarities are the same."
        )
        section.charts = [Chart("density", "Density of pairs", density_figures(run.by_text), height=460)]
    table = Table(["student", "head", "Spearman", "common neighbours", "texts", "pairs"])
    table.caption = "With the teachers' order of similarities, over all pairs and among nearest neighbours"
    for row in rows:
        assert row.agreement is not None
        a = row.agreement
        shared = as_cell(None if a.overlap is None else 100 * a.overlap, "{:.1f}%")
        table.add(f"student ({row.dim})", row.head or "", scored(a.spearman), shared, a.texts, a.pairs)
    section.tables = [table] if rows else []
    if section.charts or section.tables:
        yield section


def _map(run: RunFiles) -> Iterator[Section]:
    """Nothing if there is no map."""
    found = run.by_text
    if found is None or not found.map:
        return
    section = Section("map", "Where they disagree", neighbours=True)
    section.text = (
        "Texts that were not trained on, near each other where the teachers' vectors are. Colour: disagreement, 1 less"
        " the correlation of a text's similarities to all others, by the student and by the teacher. Choose a text to"
        " see its nearest ones by each model."
    )
    note = "Circles: passages; diamonds: queries."
    section.charts = [Chart("map", "Map of held-out texts", map_figures(found), height=520, note=note)]
    pairs = pairs_of(found.providers)
    students = list(dict.fromkeys(s for s, _ in pairs))
    teachers = list(dict.fromkeys(t for _, t in pairs))
    names = [f"{provider_label(found.providers[s])}, {found.providers[t].name}" for s in students for t in teachers]
    table = Table(["text", "kind", *names])
    table.caption = f"The {min(_DISAGREE, len(found.map))} texts on which they disagree most"
    for number in _most(found)[:_DISAGREE]:
        text = found.map[number]
        table.add(text.text, text.kind, *(as_cell(x, "{:.3f}") for row in text.disagreement for x in row))
    section.tables = [table]
    yield section


def _most(found: ByText) -> list[int]:
    """The texts of the map, those first on which the first student disagrees most with the last teacher."""
    return sorted(range(len(found.map)), key=lambda n: -found.map[n].disagreement[0][-1])


def losses_section(run: RunFiles) -> Section:
    section = Section("losses", "Losses", missing=run.missing.get("metrics", ""))
    if not run.steps:
        return section
    section.text = "Faint: single steps. Line: running median. Dots: held-out texts. Vertical lines divide the stages."
    section.charts = [
        Chart(f"loss-{number}", figure.title, [figure], height=270)
        for number, figure in enumerate(loss_figures(run.steps, run.held_out))
    ]
    return section


def _time(run: RunFiles) -> Section:
    section = Section("time", "Time and cost", missing=run.missing.get("timings", ""))
    if not run.seconds:
        return section
    total = sum(run.seconds.values())
    table = Table(["phase", "seconds", "share"], caption="Summed over all commands on this run")
    for phase, seconds in run.seconds.items():
        share = as_cell(100 * seconds / total if total else None, "{:.1f}%")
        table.add(phase, as_cell(seconds, "{:,.1f}"), share)
    section.tables = [table]
    section.charts = [Chart("time", "Seconds by phase", [time_figure({"": run.seconds})], height=200)]
    rates = dict.fromkeys(str(s.get("stage")) for s in run.steps if "texts_per_second" in s)
    if rates:
        speed = Table(["stage", "steps", "texts per second", "tokens per second", "padding"])
        speed.caption = "Median over the steps of a stage"
        for stage in rates:
            steps = [s for s in run.steps if str(s.get("stage")) == stage]
            speed.add(stage, len(steps), *(_median(steps, key, form) for key, form in _SPEEDS))
        section.tables.append(speed)
    if costs := _costs(run):
        section.tables.append(costs)
    machine = run.evaluation.metadata.get("environment") if run.evaluation else None
    if isinstance(machine, dict):
        facts = ", ".join(f"{key}: {value}" for key, value in machine.items())
        section.text = f"The evaluation ran on {facts}."
    return section


def _costs(run: RunFiles) -> Table | None:
    """What a vector of each teacher and of the student costs, whatever the machine."""
    table = Table(["vectors", "dim", "M weights per token", "bytes per vector", "GB per million vectors"])
    table.caption = "Cost of a vector, in float32"
    teachers = [row for row in run.evaluation.rows if row.role in ("teacher", "teachers")] if run.evaluation else []
    for row in (*teachers, *(final_rows(run.evaluation) if run.evaluation else ())):
        name = "student" if row.stage else row.provider
        weights = as_cell(None if row.weights is None else row.weights / 1e6, "{:,.1f}")
        size = FLOAT32 * row.dim
        table.add(name, as_cell(row.dim, "{}"), weights, size, as_cell(size / 1000, "{:.3f}"))
    return table if table.rows else None


_SPEEDS = (("texts_per_second", "{:,.0f}"), ("tokens_per_second", "{:,.0f}"), ("padding_share", "{:.1%}"))


def _median(steps: list[dict], key: str, form: str):
    values = sorted(step[key] for step in steps if isinstance(step.get(key), int | float))
    return as_cell(values[len(values) // 2] if values else None, form)


def _scores(run: RunFiles) -> Section:
    section = Section("scores", "All scores", missing=run.missing.get("evaluation", ""))
    if run.evaluation is None:
        return section
    section.tables = [
        score_table(run.evaluation, "±: half of the 95% bootstrap interval over queries; bold: best of a column")
    ]
    return section


def made_from(run: RunFiles) -> Section:
    """Models, stages and texts of a run."""
    recipe = run.recipe
    models = Table(["part", "model", "name", "dimensions", "M weights"], caption="Models")
    rows = {row.provider: row for row in run.evaluation.rows} if run.evaluation else {}
    for teacher in recipe.teachers:
        row = rows.get(f"teacher {teacher.name}")
        weights = as_cell(row.weights / 1e6 if row and row.weights else None, "{:.1f}")
        label = model_label(teacher.model, "imported vectors")
        models.add("teacher", label, teacher.name, str(row.dim) if row else "–", weights)
    students = final_rows(run.evaluation) if run.evaluation else []
    dims = ", ".join(str(row.dim) for row in students) or ", ".join(str(h.dim) for h in recipe.heads.values())
    weights = students[0].weights if students else None
    label = model_label(recipe.student.model, "random weights")
    models.add("student", label, recipe.name, dims, as_cell(weights / 1e6 if weights else None, "{:.1f}"))
    stages = Table(["stage", "trained", "heads", "steps", "batch", "learning rate"], caption="Stages")
    for stage in resolve_stages(recipe):
        rate = as_cell(stage.settings.learning_rate, "{:g}")
        stages.add(stage.name, ", ".join(stage.train), ", ".join(stage.heads), stage.steps, stage.batch_size, rate)
    tables = [models, stages]
    if recipe.texts is not None:
        counts = ", ".join(f"{count:,} {split.replace('_', ' ')}" for split, count in run.texts.items())
        texts = Table(["source", "split", "kind", "weight"], caption=f"Texts: {counts}" if counts else "Texts")
        for source in recipe.texts.sources:
            kind = source.only(SOURCE_KINDS)
            name = str(getattr(source, kind))
            label = Path(name).name if kind in FILE_KINDS else model_label(name, "")
            split = source.split if isinstance(source.split, str) else ", ".join(source.split or ())
            texts.add(f"{label} ({kind})", split, source.kind or "", source.weight)
        tables.append(texts)
    return Section("made-from", "What was distilled from what", lead(recipe), tables=tables)


def _data(found: ByText | None) -> dict:
    """What the browser of queries and the map read."""
    if found is None:
        return {}
    tests = found.model_dump(mode="json", include={"retrieval": {"__all__": {"passages", "examples", "comparisons"}}})
    return {
        "providers": [provider_label(provider) for provider in found.providers],
        "tests": tests["retrieval"],
        "map": [{"text": text.text, "nearest": text.nearest} for text in found.map],
        "pairs": pairs_of(found.providers),
        "most": _most(found)[:1],
    }
