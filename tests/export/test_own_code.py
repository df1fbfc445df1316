"""An export in somebody else's run folder, whose marker fits it, is not taken for ours if it has other code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import jasper_jax
from jasper_jax.checkpoints.export_marker import checksums, write_marker
from jasper_jax.export.jasper_vl import AUTO_MAP, CODE, MODULE
from jasper_jax.export.own_code import refuse_other_code
from jasper_jax.export.public import public_recipe
from jasper_jax.export.sentence_transformers import is_exported
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe

ATTACKS = {
    "modeling_jasper_vl.py": "import os",
    "config.json": {"auto_map": {"AutoModel": "somebody/model--modeling.X"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.X", None]}},
    "preprocessor_config.json": {"a": [{"auto_map": AUTO_MAP}]},
    "sentence_bert_config.json": {"model_kwargs": {"attn_implementation": "somebody/kernel"}},
    "modules.json": [{"type": "evil.X"}],
    "asymmetric/router_config.json": {"types": {"a": "evil.X"}},
    "asymmetric/document_0_Transformer/config.json": {"auto_map": AUTO_MAP},
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What a student of images has of code, and of its names."""
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    for name in CODE:
        shutil.copyfile(Path(jasper_jax.__file__).parent / "export" / "remote" / name, folder / name)
    (folder / "config.json").write_text(json.dumps({"auto_map": AUTO_MAP, "text_config": {"auto_map": None}}))
    (folder / "modules.json").write_text(json.dumps([{"type": MODULE}]))
    (folder / "README.md").write_text("# Card")
    return folder


def mark(folder: Path, content: Any = None) -> None:
    write_marker(folder, {"format": 1, "made_by": "jasper_jax", "recipe": content, "sha256": checksums(folder)})


@pytest.mark.parametrize(("name", "content"), ATTACKS.items(), ids=ATTACKS)
def test_code_of_somebody_else_is_noticed(export: Path, tmp_path: Path, call, name: str, content: Any) -> None:
    ours = recipe(tmp_path)
    run = cast(Any, SimpleNamespace(recipe=ours))
    (export / "serve.py").write_text("of the user's own; nothing names it")
    mark(export, public_recipe(ours))
    refuse_other_code(export)
    assert is_exported(run, export)
    (export / name).parent.mkdir(parents=True, exist_ok=True)
    (export / name).write_text(content if isinstance(content, str) else json.dumps(content))
    mark(export, public_recipe(ours))
    with pytest.raises(UserError, match=rf"{name}: .* of this version of jasper_jax, and is run with"):
        refuse_other_code(export)
    assert not is_exported(run, export)
    code, _, err = call("push", export, "alice/student")
    assert (code, "is run with trust_remote_code" in err, len(err.splitlines())) == (2, True, 1)
