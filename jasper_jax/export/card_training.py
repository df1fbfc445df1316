"""The section of a model card on training: from what, on which texts, with which settings, and how it went."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.stores import DataStores
from jasper_jax.data.texts import TextRecord, TextStore
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.export.asymmetric import model_name
from jasper_jax.export.card_metadata import base_model
from jasper_jax.export.model import TrainedStudent
from jasper_jax.export.public import public_name
from jasper_jax.recipe.config import Recipe, Teacher
from jasper_jax.recipe.config_sources import PAIR_SOURCE_KINDS, SOURCE_KINDS, PairSource, TextSource
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.runtime.markdown import code_span, markdown_text
from jasper_jax.training.events import read_events

MOST_ROWS = 40
"""Of the training log: of a longer one every n-th row, the best and the last."""
MOST_CHARACTERS = 200
"""Of a sample."""
_LOGGED = {"stage", "stage_index", "step", "loss"}
"""Keys of an event that the log shows."""


@dataclass(frozen=True)
class History:
    """What a run folder says of its training."""

    counts: Mapping[str, int]
    """The number of texts or pairs of each use."""
    samples: Sequence[TextRecord]
    """Training texts that the recipe allows to be shown."""
    held_out: Sequence[TextRecord]
    """As many held-out ones."""
    evaluations: Sequence[Mapping[str, Any]]
    """The events of ``metrics.jsonl`` with losses of held-out texts."""

    @classmethod
    def of(cls, run: RunFolder) -> History:
        """Of a run that may have lost its texts, as one continued from a mirror has."""
        logged = read_events(run.path / "metrics.jsonl")
        events = [e for e in logged if e.get("event") == "evaluation" and e.keys() >= _LOGGED]
        store = TextStore.find(DataStores(run.recipe).text_folder)
        if store is None:
            return cls({}, (), (), events)
        counts = {split: store.size(split) for split in ("train", "held_out")}
        pairs = {f"{split} pairs": len(table) for split, table in store.pairs.items() if len(table)}
        train, held_out = (
            list(store.read(split, range(min(store.size(split), run.recipe.export.samples)))) for split in counts
        )
        return cls({**counts, **pairs}, train, held_out, events)


def _teacher(teacher: Teacher) -> str:
    weight = "" if teacher.weight == 1 else f" (weight {teacher.weight:g})"
    return f"{model_name(teacher)}{weight}"


def training_section(recipe: Recipe, trained: TrainedStudent, history: History) -> list[str]:
    """The lines of the section, without its title."""
    model = recipe.student.model
    start = code_span(public_name(model)) if model else f"random {markdown_text(recipe.student.config['model_type'])}"  # type: ignore[index]
    kept = f", layers {', '.join(map(str, recipe.student.layers))}" if recipe.student.layers is not None else ""
    hub = f" ({code_span(name)})" if (name := base_model(recipe)) and name != model else ""
    return [
        f"- Student: {start}{hub}{kept}; {_pooling(trained.student.pooling)}.",
        f"- Teachers: {', '.join(map(_teacher, recipe.teachers)) or 'the model itself'}.",
        *_texts(recipe, history),
        f"- AdamW, seed {recipe.seed}, texts of at most {recipe.training.max_length or trained.student.max_length}"
        " tokens.",
        "",
        "| stage | trained | heads | losses | steps | batch | learning rate | warm-up |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
        *_stages(recipe),
        *_samples(history.samples),
        *_log(history.evaluations),
    ]


def _stages(recipe: Recipe) -> Iterator[str]:
    for stage in resolve_stages(recipe):
        losses = ", ".join(f"{name} {weight:g}" for name, weight in stage.losses.weights.items())
        warmup = stage.settings.warmup_steps
        yield (
            f"| {markdown_text(stage.name)} | {', '.join(map(code_span, stage.train))} |"
            f" {', '.join(map(markdown_text, stage.heads))} | {losses} | {stage.steps} | {stage.batch_size} |"
            f" {stage.settings.learning_rate:g} | {stage.steps // 10 if warmup is None else warmup} |"
        )


def _texts(recipe: Recipe, history: History) -> list[str]:
    if recipe.texts is None:
        return []
    names = [_source(source) for source in (*recipe.texts.sources, *recipe.texts.pairs)]
    counts = [f"{number:,} {name.replace('_', ' ')}" for name, number in history.counts.items()]
    numbers = f": {', '.join(counts)}" if counts else ""
    return [f"- Texts of {', '.join(dict.fromkeys(names))}{numbers}."]


def _source(source: TextSource | PairSource) -> str:
    kind = source.only(SOURCE_KINDS if isinstance(source, TextSource) else PAIR_SOURCE_KINDS)
    named = kind in ("asset", "hf", "tfds")
    return code_span(public_name(getattr(source, kind))) if named else f"a {kind} file"


def _samples(samples: Sequence[TextRecord]) -> list[str]:
    if not samples:
        return []
    cut = [(s.kind, f"{s.text[:MOST_CHARACTERS]}…" if len(s.text) > MOST_CHARACTERS else s.text) for s in samples]
    rows = [f"| {markdown_text(kind)} | {code_span(text)} |" for kind, text in cut]
    return ["", "Texts it was trained on:", "", "| kind | text |", "| --- | --- |", *rows]


def _log(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Losses of held-out texts; bold: the least of each stage, whose losses are not those of another."""
    events = [event for event in evaluations if event["loss"] is not None and math.isfinite(event["loss"])]
    if not events:
        return []
    best: dict[int, float] = {}
    for event in events:
        best[event["stage_index"]] = min(event["loss"], best.get(event["stage_index"], event["loss"]))
    step = -(-len(events) // MOST_ROWS)
    lines = ["", "Losses of held-out texts; bold: the least of a stage.", "", "| stage | step | loss |"]
    lines.append("| --- | ---: | ---: |")
    for number, event in enumerate(events):
        least = event["loss"] == best[event["stage_index"]]
        if number % step == 0 or least or number == len(events) - 1:
            loss = f"{event['loss']:.4f}"
            lines.append(
                f"| {markdown_text(str(event['stage']))} | {event['step']} | {f'**{loss}**' if least else loss} |"
            )
    return lines


def _pooling(pooling: Pooling) -> str:
    """``mean pooling``; every mode named."""
    return f"{' + '.join(pooling.modes)} pooling{'' if pooling.include_prompt else ' without the prompt'}"
