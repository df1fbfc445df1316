"""The exported tokenizer gives transformers the ids that the student is trained on, whatever its source was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.export import tokenizer as exported
from jasper_jax.export.tokenizer import OWN_CLASS, TEXTS, check_tokenizer, write_tokenizer
from jasper_jax.runtime.errors import UserError
from tests import st_folders, tiny

LIMIT = 24


def sentencepiece(folder: Path) -> None:
    """XLM-R's kind: Unigram, NFKC, words marked by ▁."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -4.0 - i / 100) for i, c in enumerate("abcdefghijklmnopqrstuvwxyzABCDEF0123456789.,éÉüö東京")]
    pieces += [("▁the", -1.0), ("▁word", -1.5), ("<mask>", 0.0)]
    backend = Backend(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))


SOURCES = {
    "uncased BERT": ("bert", {"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
    "cased BERT without do_lower_case": ("bert", {"tokenizer_class": "BertTokenizer"}),
    "cased BERT": ("bert", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}),
    "BERT of no class": ("bert", {}),
    "BERT, the file alone": ("bert", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
    "BERT saved by transformers 5": ("bert", {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}),
    "BERT with accents": ("bert", {"tokenizer_class": "BertTokenizer", "strip_accents": False}),
    "BERT without CJK": ("bert", {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}),
    "MPNet": ("mpnet", {"tokenizer_class": "MPNetTokenizer"}),
    "XLM-R tokenizer in a BERT folder": ("bert", None),
    "XLM-R": ("xlm-roberta", None),
    "Qwen2": ("qwen2", {"tokenizer_class": "Qwen2Tokenizer", "add_eos_token": True}),
    "Qwen3": ("qwen3", {"tokenizer_class": "Qwen2Tokenizer"}),
}


def source(folder: Path, name: str) -> tuple[Path, str]:
    model_type, settings = SOURCES[name]
    if settings is None:
        sentencepiece(folder)
    elif model_type in ("qwen2", "qwen3"):
        tiny.write_byte_tokenizer(folder)
    else:
        st_folders.write_tokenizer(model_type, folder, lowercase="uncased" in name)
    if settings is not None:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in config.items() if k != "tokenizer_class"} | settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder, model_type


def automatic(folder: Path, texts, **arguments) -> list[list[int]]:
    """Ids of the tokenizer that transformers chooses for the folder."""
    return transformers.AutoTokenizer.from_pretrained(folder)(list(texts), truncation=True, **arguments)["input_ids"]


@pytest.mark.parametrize("lower", [False, True], ids=["", "lower-cased by sentence-transformers"])
@pytest.mark.parametrize("name", SOURCES)
def test_the_export_gives_the_ids_of_training(tmp_path: Path, name: str, lower: bool) -> None:
    folder, model_type = source(tmp_path / "source", name)
    tokenizer = Tokenizer.load(folder, LIMIT, lower_case=lower, pad_id=1)
    if lower and model_type in OWN_CLASS:
        with pytest.raises(UserError, match="transformers would tokenise .* remove settings that change the tokenizer"):
            check_tokenizer(tokenizer, folder, model_type)
        return
    check_tokenizer(tokenizer, folder, model_type)
    write_tokenizer(tmp_path / "export", tokenizer, folder, model_type)
    (tmp_path / "export" / "config.json").write_text(json.dumps({"model_type": model_type}))
    ids = automatic(tmp_path / "export", TEXTS)
    assert ids == [x.tolist() for x in tokenizer.encode(TEXTS)]
    assert max(map(len, ids)) == LIMIT
    chosen = type(transformers.AutoTokenizer.from_pretrained(tmp_path / "export"))
    assert chosen is exported._class(model_type), "the dry export must load what transformers loads"


@pytest.mark.parametrize("name", [n for n, (t, s) in SOURCES.items() if s is not None and t in ("bert", "mpnet")])
def test_a_source_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    folder, _ = source(tmp_path, name)
    texts = [text for text in TEXTS if "[MASK]" not in text]  # which these vocabularies lack, so transformers adds it
    assert [x.tolist() for x in Tokenizer.load(folder, LIMIT).encode(texts)] == automatic(
        folder, texts, max_length=LIMIT
    )


def test_other_ids_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = source(tmp_path, "cased BERT")
    tokenizer = Tokenizer.load(folder, LIMIT)
    check_tokenizer(tokenizer, folder, "bert")
    assert tokenizer.truncated == 0, "the check counts no texts"
    monkeypatch.setattr(exported, "_class", lambda _: transformers.BertTokenizer)
    with pytest.raises(UserError, match=r"'A plain sentence.*: token \d+ differs, \d+ instead of \d+"):
        check_tokenizer(tokenizer, folder, "bert")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truncation_side": "left"}, "truncation_side is 'left'; only \"right\""),
        ({"split_special_tokens": True}, "split_special_tokens is True; only false"),
        ({"added_tokens_decoder": {"900": {"content": "<new>"}}}, "adds the token '<new>', which tokenizer.json lacks"),
        ({"additional_special_tokens": ["<new>"]}, "adds the token '<new>'"),
    ],
)
def test_settings_that_would_change_ids_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    folder, _ = source(tmp_path, "cased BERT")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        Tokenizer.load(folder)


def test_half_of_a_surrogate_pair_is_named_and_the_advice_works(tmp_path: Path) -> None:
    folder, _ = source(tmp_path, "cased BERT")
    tokenizer, text = Tokenizer.load(folder), "a cat \ud83d b"
    for read in (tokenizer.encode, tokenizer.lengths):
        with pytest.raises(UserError, match=r"texts\[1\]: '\\ud83d' at character 6 is half of a surrogate pair"):
            read(["é", text])
    assert len(tokenizer.encode([text.encode("utf-8", "replace").decode()])[0]) == np.asarray(
        tokenizer.lengths(["a cat ? b"])
    )
