"""The tokenizer of an exported folder: ``tokenizer.json``, and a config with which transformers uses it unchanged.

transformers rebuilds the normalizer and the template of a tokenizer whose class belongs to one model, from flags of
``tokenizer_config.json``. ``PreTrainedTokenizerFast`` uses the file as it is, in every version. :func:`check_tokenizer`
compares ids before training, so that no student is trained whose export would give others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.export.model import write_json
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.student import Student
from jasper_jax.vision.vision_model import IMAGE_TOKENS

OWN_CLASS = {"qwen2": "Qwen2Tokenizer"}
"""``model_type`` -> the class that transformers 5 uses whatever the folder says; it reads only the vocabulary, the
merges and the template of ``tokenizer.json``."""
TEXTS = (
    "A plain sentence, of 1,234.5 numbers.",
    "ÀÉÎõü Straße İstanbul ŁÓDŹ ÉTÉ Köln",
    "e\u0301 n\u0303 A\u030a o\u0308 combining",
    "ﬁne ﬂow eﬃcient ½ ① ℡ ™ ²",
    "ＦＵＬＬ ｗｉｄｔｈ １２３ ｶﾀｶﾅ",
    "UPPER lower MiXeD iPhone",
    "東京は日本の首都です。 北京 서울 กรุงเทพ",
    "العربية हिन्दी עִבְרִית Ελληνικά ΣΊΣΥΦΟΣ",
    "😀 👩‍👩‍👧 🇩🇪 ❤️",
    "a\tb\nc\r\nd\u00a0e\u2009f\u200bg\u3000h",
    "\x00\x07\x1b control\x7f \ufffd \ufeff",
    "  white space at both ends  ",
    " ",
    "",
    "“quotes” ‘single’ – — … don't can't I'm",
    "[CLS] [MASK] <s> </s> <mask> <|endoftext|> <|im_start|> text",
    "http://example.com/a_b?c=d#e snake_case x=y+z; {json: [1]}",
    "word " * 600,
)
"""Texts that try normalizers, and one longer than the maximum (of more than 600 tokens, as long as needed)."""


def exported_as(student: Student) -> tuple[str, tuple[str, ...]]:
    """The ``model_type`` and the further special tokens of the student's export."""
    return (student.encoder.family.model_type, ()) if student.vision_model is None else ("jasper_vl", IMAGE_TOKENS)


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, source: Path, model_type: str, extra: tuple[str, ...] = (), name: str = ""
) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``.

    ``source``: the folder whose config names the special tokens. ``extra``: further special tokens. ``name``: another
    class for the config to name, which reads ``tokenizer.json`` alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    own = OWN_CLASS.get(model_type)
    roles = {**tokenizer.roles, **_roles(source)}
    config: dict[str, Any] = {
        "tokenizer_class": name or own or "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.max_length,
        # Token types are 0 in every encoder here, which is what models take them for.
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    if extra:
        config["extra_special_tokens"] = list(extra)
    if own:  # its class keeps no added tokens of tokenizer.json
        config["added_tokens_decoder"] = tokenizer.added_tokens()
    write_json(folder / "tokenizer_config.json", config)


def check_tokenizer(tokenizer: Tokenizer, source: Path, model_type: str, extra: tuple[str, ...] = ()) -> None:
    """Export the tokenizer to a temporary folder, load it with transformers and compare ids on ``TEXTS``.

    Takes a second or two, needs no PyTorch.

    Raises:
      UserError: transformers gives other ids, or cannot load it.
    """
    assert tokenizer.max_length is not None
    texts = [*TEXTS[:-1], TEXTS[-1] * (1 + tokenizer.max_length // 600)]
    truncated = tokenizer.truncated
    expected = tokenizer.encode(texts)
    tokenizer.truncated = truncated
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tokenizer(folder, tokenizer, source, model_type, extra)
        try:
            loaded = _class(model_type).from_pretrained(folder)
            ids = loaded(texts, truncation=True)["input_ids"]
        except Exception as error:  # noqa: BLE001  whatever transformers raises would end the export
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{source}: transformers cannot load this tokenizer for a {model_type} model ({reason})"
            ) from None
    for text, ours, theirs in zip(texts, expected, ids, strict=True):
        if not np.array_equal(ours, theirs):
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
            )
            raise UserError(
                f"{source}: transformers would tokenise the exported {model_type} student otherwise than it is trained"
                f" ({text[:40]!r}: token {at} differs, {_at(theirs, at)} instead of {_at(ours, at)}), so its vectors"
                f" would differ;{_remedy(model_type)}"
            )


def _at(ids: Any, index: int) -> str:
    return str(int(ids[index])) if index < len(ids) else "no token"


def _remedy(model_type: str) -> str:
    if model_type in OWN_CLASS:
        return (
            f" transformers always uses {OWN_CLASS[model_type]} for this model type: remove settings that change the"
            " tokenizer (student.append_eos, do_lower_case), or start from a model with that tokenizer"
        )
    return " start from another model, or report this as a defect"


def _class(model_type: str) -> Any:
    """The class that transformers uses for an export; these modules do not import PyTorch."""
    os.environ.setdefault(
        "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
    )  # else it prints that PyTorch is missing, where it is
    if model_type in OWN_CLASS:
        from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

        return Qwen2Tokenizer
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    return TokenizersBackend


def _roles(source: Path) -> dict[str, str]:
    """The special tokens by role (``cls_token``) in the source's own files."""
    roles = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (source / name).is_file():
            continue
        config = read_object(source / name)
        for role in (f"{r}_token" for r in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")):
            token = config.get(role)
            content = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(content, str):
                roles[role] = content
    return roles
