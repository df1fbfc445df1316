"""A stage on labelled pairs at tiny size: mined negatives, the real loop, exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.recipe.config_training import Mining
from jasper_jax.run import Run
from jasper_jax.teachers import mining
from jasper_jax.teachers.needed import needed_draws
from jasper_jax.training.metrics import read_events
from tests.tiny import recipe, recipe_tree, sentences
from tests.training.runs import fill, parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")


def pair_recipe(place: Path, name: str, **mining_settings):
    """60 queries of 30 passages, two of each."""
    passages, queries = sentences(30, seed=5), sentences(60, seed=6)
    lines = [{"query": query, "passage": passages[i // 2]} for i, query in enumerate(queries)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = recipe_tree(place)
    texts = {**tree["texts"], "pairs": [{"jsonl": str(place / "pairs.jsonl")}], "held_out_pairs": 9}
    stage = {"stage": "pairs", "steps": 6, "batch_size": 4, "learning_rate": 1e-3, "negatives": 2, "text_share": 0.25}
    losses = {"contrastive": 1, "ranking": 1, "margin_mse": 1, "spread": 0.1, "learn_temperature": True}
    return recipe(
        place,
        texts=texts,
        stages=[{**stage, "losses": losses}],
        heads={"fc1": {"dim": "teachers", "nested": [12], "init": "ridge"}},
        mining={"depth": 4, **mining_settings},
        run_dir=str(place / name),
        stores=str(place / "stores"),
    )


def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = Run(pair_recipe(tmp_path, "undisturbed"), progress=False)
    assert run_training(undisturbed)
    stopped = pair_recipe(tmp_path, "stopped")
    assert not run_training(Run(stopped, progress=False), stop=lambda step: step == 3)
    assert run_training(Run(stopped, progress=False))
    expected, found = parameters(undisturbed, 0), parameters(Run(stopped, progress=False), 0)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    assert expected["losses/contrastive/log_scale"] != 0, "the temperature is learned"
    events = read_events(undisturbed.folder / "metrics.jsonl")
    names = {"fc1/contrastive", "fc1/ranking", "fc1/margin_mse", "fc1/spread", "fc1/similarity"}
    assert all(names <= set(event["terms"]) for event in events if event["event"] in ("step", "evaluation"))
    assert {"step", "evaluation"} <= {event["event"] for event in events}


@pytest.mark.parametrize("processes", [1, 3])
def test_mined_negatives_are_the_nearest_that_are_far_enough(tmp_path, monkeypatch, processes) -> None:
    """Against a loop over pairs; in blocks and shards of a few, by any number of processes."""
    monkeypatch.setattr(mining, "BLOCK", 7)
    monkeypatch.setattr("jasper_jax.teachers.negatives.SHARD", 20)
    settings = Mining(depth=4, absolute_margin=0.001, relative_margin=0.01)
    run = Run(pair_recipe(tmp_path, "run", absolute_margin=0.001, relative_margin=0.01), progress=False)
    texts, view = fill(run)
    for index in range(processes):
        mined = run.vectors.mine(texts, process_index=index, process_count=processes)
        assert (mined is None) == (index < processes - 1)
    assert mined is not None
    for split in ("train", "held_out"):
        table, passages = texts.pairs[split], texts.pairs[split].passages
        vectors, found = view.read(split, passages), mined.pairs[split]
        for pair in range(len(table)):
            query, answer = view.read(split, [table.query[pair], table.passage[pair]])
            limit = query @ answer - max(settings.absolute_margin, settings.relative_margin * abs(query @ answer))
            near = {
                int(p): float(v @ query)
                for p, v in zip(passages, vectors)
                if p not in table.answers_of(table.query[pair])
            }
            expected = sorted((p for p in near if near[p] <= limit), key=lambda p: -near[p])[:4]
            assert [row for row in found.rows[pair] if row >= 0] == expected
            assert found.left_out[pair] == sum(score > limit for score in near.values())
    assert run.vectors.negatives(texts) is not None


def test_all_texts_are_embedded_where_a_stage_draws_pairs(tmp_path: Path) -> None:
    assert needed_draws(pair_recipe(tmp_path, "run"), 10**6) is None
