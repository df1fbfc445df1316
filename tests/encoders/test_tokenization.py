"""Token ids equal those of transformers' fast tokenizers, settings of their config file included."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from tests.st_folders import LETTERS, WORDS, write_tokenizer

TEXTS = ["the cat", "", "The Dog ÉTÉ of river stone, to be", "the " * 30, "[CLS] the", "日本 cat"]


@pytest.fixture
def folder(tmp_path):
    write_tokenizer("bert", tmp_path)
    return tmp_path


def ids_of(tokenizer, texts=TEXTS):
    return [ids.tolist() for ids in tokenizer.encode(texts)]


def expected(folder, max_length, texts=TEXTS):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return theirs(texts, truncation=True, max_length=max_length, padding=False)["input_ids"]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_equals_transformers(family, tmp_path):
    size = write_tokenizer(family, tmp_path)
    tokenizer = Tokenizer.load(tmp_path, max_length=20)
    assert ids_of(tokenizer) == expected(tmp_path, 20)
    assert all(ids.dtype == np.int32 for ids in tokenizer.encode(TEXTS))
    assert tokenizer.vocab_size == size
    assert tokenizer.pad_id == (0 if family == "bert" else 1)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
def test_settings_of_a_bert_tokenizer_win_over_its_file(folder, lower, accents):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "strip_accents": accents}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert ids_of(Tokenizer.load(folder, max_length=20)) == expected(folder, 20)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("asked", [{}, {"add_eos_token": True}, {"add_bos_token": True, "add_eos_token": False}])
def test_begin_and_end_tokens_are_those_of_the_tokenizer_file(tmp_path, name, asked):
    """transformers 5 does not act on what tokenizer_config.json says of them; nor do we."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3, "cat": 4, "t": 5, "h": 6, "e": 7, "th": 8, "c": 9, "a": 10}
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t")]
    backend = Backend(models.BPE(vocab={**vocab, "ca": 11}, merges=merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **asked}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    texts = ["the cat", "cat " * 9, "cat </s>"]
    ids = ids_of(Tokenizer.load(tmp_path, max_length=4), texts)
    assert ids == expected(tmp_path, 4, texts) == [[1, 3, 4], [1, 4, 4, 4], [1, 4, 2]]


def test_lower_case(folder, tmp_path):
    write_tokenizer("bert", tmp_path / "cased", lowercase=False)
    plain = Tokenizer.load(tmp_path / "cased", max_length=20)
    lowered = Tokenizer.load(tmp_path / "cased", max_length=20, lower_case=True)
    assert ids_of(plain, ["The CAT"]) != ids_of(plain, ["the cat"])
    assert ids_of(lowered, ["The CAT"]) == ids_of(plain, ["the cat"])
    assert plain.fingerprint() != lowered.fingerprint()


def test_truncation_is_counted(folder):
    tokenizer = Tokenizer.load(folder, max_length=6)
    texts = ["the cat", "the cat of the", "the cat of the dog", "the " * 50]
    assert [len(ids) for ids in tokenizer.encode(texts)] == [4, 6, 6, 6]
    assert tokenizer.truncated == 2
    tokenizer.encode(texts)
    assert tokenizer.truncated == 4
    np.testing.assert_array_equal(tokenizer.lengths(texts), [4, 6, 6, 6])
    assert tokenizer.truncated == 4, "counting lengths cuts nothing"
    longer = tokenizer.with_max_length(None)
    assert [len(ids) for ids in longer.encode(texts)] == [4, 6, 7, 52]
    assert longer.truncated == 0


def test_length_limit_of_the_folder(folder):
    assert Tokenizer.load(folder).max_length == 48
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 1e30}))
    assert Tokenizer.load(folder).max_length is None


def test_no_texts(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode([]) == []
    assert tokenizer.lengths([]).shape == (0,)


def test_prompt_length(folder):
    tokenizer = Tokenizer.load(folder)
    prompt, text = "represent this : ", "the cat"
    n = tokenizer.prompt_length(prompt)
    assert n == 4  # [CLS] and three words
    assert ids_of(tokenizer, [prompt + text])[0][:n] == ids_of(tokenizer, [prompt])[0][:n]
    assert tokenizer.prompt_length("") == 0


def test_fingerprint(folder, tmp_path):
    one = Tokenizer.load(folder, max_length=10)
    assert one.fingerprint() == Tokenizer.load(folder, max_length=10).fingerprint()
    assert one.fingerprint() != one.with_max_length(11).fingerprint()
    one.encode(["the cat"])
    assert one.fingerprint() == one.with_max_length(10).fingerprint()
    one.save(tmp_path)
    assert Tokenizer.load(tmp_path, max_length=10).fingerprint() == one.fingerprint()


def test_a_vocabulary_beyond_the_table(folder):
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_vocabulary(tokenizer.vocab_size)
    with pytest.raises(UserError, match=f"{tokenizer.vocab_size} tokens, .* {tokenizer.vocab_size - 1} rows"):
        tokenizer.check_vocabulary(tokenizer.vocab_size - 1)


def test_a_folder_without_a_tokenizer_file(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(UserError, match=r"tokenizer.json: no such file; create it once.*AutoTokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer file"):
        Tokenizer.load(tmp_path)


def test_no_room_for_text(folder):
    with pytest.raises(UserError, match="max_length is 2; expected more than the 2 special tokens"):
        Tokenizer.load(folder, max_length=2)


def change(file, **changes):
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **changes}))


@pytest.mark.parametrize("template", [None, "$A"], ids=["no post-processor", "one without special tokens"])
@pytest.mark.parametrize("name", ["BertTokenizer", "MPNetTokenizer", "XLMRobertaTokenizer"])
def test_special_tokens_are_those_of_the_class(tmp_path, name, template):
    """transformers' classes put their own around a text, whatever tokenizer.json says."""
    if name == "XLMRobertaTokenizer":
        pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
        pieces += [("▁", -2.0), *((letter, -4.0) for letter in LETTERS)]
        backend = Backend(models.Unigram(pieces, unk_id=3))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
        backend.save(str(tmp_path / "tokenizer.json"))
    else:
        write_tokenizer({"BertTokenizer": "bert", "MPNetTokenizer": "mpnet"}[name], tmp_path)
    post = template and json.loads(processors.TemplateProcessing(single=template, special_tokens=[]).__getstate__())
    change(tmp_path / "tokenizer.json", post_processor=post)
    change(tmp_path / "tokenizer_config.json", tokenizer_class=name)
    texts = ["the cat", "", "the " * 30]
    ids = ids_of(Tokenizer.load(tmp_path, max_length=9), texts)
    assert ids == expected(tmp_path, 9, texts)
    assert len({(i[0], i[-1]) for i in ids}) == 1


def test_a_class_whose_special_tokens_are_missing(folder):
    change(folder / "tokenizer.json", post_processor=None)
    change(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", cls_token="[START]")
    with pytest.raises(UserError, match=r"a BertTokenizer puts '\[START\]' around a text, which tokenizer.json lacks"):
        Tokenizer.load(folder)


def test_truncation_and_padding_inside_the_file(folder):
    """transformers takes the side to cut from there unless the config names one; the length is the caller's."""
    truncation = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 1}
    change(folder / "tokenizer.json", truncation=truncation)
    texts = ["the cat of the dog and the river", "the cat"]
    with pytest.raises(UserError, match=r"tokenizer.json, truncation.direction: truncation_side is 'left'; only"):
        Tokenizer.load(folder, 6)
    change(folder / "tokenizer_config.json", truncation_side="right", padding_side="left")
    assert ids_of(Tokenizer.load(folder, 6), texts) == expected(folder, 6, texts)


@pytest.mark.parametrize("limit", ["20", True, 0, -1, [20]])
def test_a_length_limit_that_is_no_number(folder, limit):
    change(folder / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(UserError, match="tokenizer_config.json: model_max_length is .*; expected a number of tokens"):
        Tokenizer.load(folder)


def test_the_advice_for_an_end_token_that_is_missing(folder):
    change(folder / "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(UserError, match="eos_token is '</s>', which tokenizer.json lacks.*name the end token .* there"):
        Tokenizer.load(folder, append_eos=True)
    assert ids_of(Tokenizer.load(folder), ["the"]) == ids_of(Tokenizer.load(folder, append_eos=False), ["the"])
    change(folder / "tokenizer_config.json", eos_token="query")
    ids = ids_of(Tokenizer.load(folder, append_eos=True), ["the"])[0]
    assert ids == [*ids_of(Tokenizer.load(folder), ["the"])[0], Tokenizer.load(folder).token_id("query")]
