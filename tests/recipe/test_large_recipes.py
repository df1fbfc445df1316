"""The recipes of billions of parameters, on a machine that has none of their models."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.commands.check import report
from jasper_jax.commands.validation import validate
from jasper_jax.encoders.published import TEXT_MODELS, describe
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.console import PlainConsole
from jasper_jax.runtime.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without these models and without the hub."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("jasper_jax.assets.hub.snapshot", lambda *_, **__: pytest.fail("would download"))
    return tmp_path


def printed(name: str, place: Path, **changes: str) -> tuple[str, Run]:
    overrides = [f"{k}={v}" for k, v in {"run_dir": str(place / "run"), **changes}.items()]
    run = Run(load_recipe(CONFIGS / name, overrides), describe=True)
    console = PlainConsole(width=200, record=True, file=io.StringIO())
    report(run, console)
    return console.export_text(), run


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())


def test_jasper_2b(offline) -> None:
    text, run = printed("jasper_2b.yaml", offline)
    student, teacher_dim = validate(run)
    shapes = student.shapes()
    assert teacher_dim == 12288  # the paper's 4096 + 8192
    assert count(shapes["encoder"]) == pytest.approx(1.54e9, rel=0.005)
    assert {name: leaf.shape for name, leaf in flatten(shapes["heads"]).items() if "kernel" in name} == {
        "fc1/kernel": (1536, 12288),
        "fc2/kernel": (1536, 1024),
        "fc3/kernel": (1536, 512),
        "fc4/kernel": (1536, 256),
    }
    assert not student.encoder.config.causal
    first, three_layers = 1536 * 12288 + 12288, 3 * 46_797_824
    text_side = count(shapes["encoder"]) + count(shapes["heads"])
    assert count(shapes["vision"]) == pytest.approx(413e6, rel=0.01)
    for number in (first, first + three_layers, text_side, count(shapes["vision"]), count(shapes)):
        assert f"{number:,}" in text
    # float16, float32 and int8 of the vectors of 1.6 of 8 million texts, and the texts of each stage
    sizes = ("13.1 GB", "26.1 GB", "52.1 GB", "6.6 GB", "1,586,896", "8,004,096")
    for cell in ("4,096", "8,192", "12,288", *sizes, "512,000", "896,000", "281,600", "315,000", "not on this machine"):
        assert cell in text, cell


@pytest.fixture
def no_extras(monkeypatch):
    """An installation without optional packages."""
    for name in ("datasets", "PIL", "resvg_py", "torch", "sentence_transformers", "tensorboardX", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_recipe_is_described_without_the_libraries_that_run_it(offline, no_extras) -> None:
    text, run = printed("jasper_2b.yaml", offline)
    assert "needs the extra datasets (texts.sources[0].hf, texts.sources[1].hf, texts.sources[2].hf, images" in text
    assert "needs the extra vision (images): pip install 'jasper-jax[vision]'" in text
    with pytest.raises(UserError, match=r"Pillow: pip install 'jasper-jax\[vision\]'"):
        validate(Run(run.recipe))


def test_stella_400m(offline) -> None:
    text, run = printed("stella_400m.yaml", offline)
    student, teacher_dim = validate(run)
    assert teacher_dim == 8192
    assert count(student.shapes()["encoder"]) == pytest.approx(434e6, rel=0.01)
    assert "not on this machine" in text


def test_a_run_does_not_train_on_what_is_only_described(offline, monkeypatch) -> None:
    """Only check describes; a run fetches the model, and says so where it cannot."""

    def nothing(*_, **__):
        raise UserError("model could not be fetched")

    monkeypatch.setattr("jasper_jax.student.source.resolve_model", nothing)
    monkeypatch.setattr("jasper_jax.teachers.models.resolve_model", nothing)
    run = Run(load_recipe(CONFIGS / "jasper_2b.yaml", [f"run_dir={offline / 'run'}"]))
    with pytest.raises(UserError, match="could not be fetched"):
        validate(run)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_descriptions_are_of_the_published_size(name: str) -> None:
    expected = {
        "NovaSearch/stella_en_1.5B_v5": 1.54e9,
        "NovaSearch/stella_en_400M_v5": 434e6,
        "nvidia/NV-Embed-v2": 7.85e9,
    }
    folder = describe(name, causal=False if "1.5B" in name else None)
    shapes = encoder_from_config(folder.hf_config, name).shapes()
    assert sum(int(np.prod(s)) for s in shapes.values()) == pytest.approx(expected[name], rel=0.01)


def test_a_decoder_that_does_not_say_whether_it_is_causal() -> None:
    with pytest.raises(UserError, match="set causal to true or false"):
        describe("NovaSearch/stella_en_1.5B_v5")
