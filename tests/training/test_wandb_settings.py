"""A file of the current folder does not say where the API key of Weights & Biases goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from jasper_jax.runtime.errors import UserError
from jasper_jax.training.wandb_settings import NUMBERS_ONLY, numbers_only, refuse_wandb_settings


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The parent of the current folder ``here``, of the run's and of the temporary one."""
    for name in ("here", "run", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    return tmp_path


def settings(places: Path, text: str, folder: str = "here/wandb") -> None:
    (places / folder).mkdir(exist_ok=True)
    (places / folder / "settings").write_text(text)


@pytest.mark.parametrize("folder", ["here/wandb", "here/.wandb", "run/wandb", "temporary/wandb"])
@pytest.mark.parametrize("section", ["default", "DEFAULT"])
@pytest.mark.parametrize("line", ["base_url = https://evil.example", "Identity_Token_File: /home/me/.ssh/id_rsa"])
def test_nothing_is_sent_where_a_found_file_says(places: Path, folder: str, section: str, line: str) -> None:
    settings(places, f"[{section}]\n{line}\n", folder)
    with pytest.raises(
        UserError, match=r"settings: sets (base_url|identity_token_file) of Weights & Biases"
    ) as refused:
        refuse_wandb_settings(places / "run")
    assert "evil" not in str(refused.value)


def test_what_wandb_writes_and_what_the_environment_says_is_fine(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_wandb_settings(places / "run")
    settings(places, "[default]\nentity = a\nproject = 100%b\nmode = offline\nbase_url = https://api.wandb.ai/\n")
    refuse_wandb_settings(places / "run")
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example")
    settings(places, "[default]\nbase_url = https://own.example/\n")
    refuse_wandb_settings(places / "run")


@pytest.mark.parametrize("text", ["base_url = x", "[default\n", "[default]\n\udcff = x\n"])
def test_a_file_that_cannot_be_read_is_a_line(places: Path, text: str) -> None:
    settings(places, "")
    (places / "here" / "wandb" / "settings").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"wandb/settings: cannot be read"):
        refuse_wandb_settings(places / "run")


def test_what_the_environment_asks_for_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_CONSOLE", raising=False)
    assert numbers_only() == NUMBERS_ONLY
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    assert numbers_only() == {key: value for key, value in NUMBERS_ONLY.items() if key != "console"}
