"""Tiny sentence-transformers folders for tests, written by sentence-transformers itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

transformers.utils.logging.disable_progress_bar()

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    *("the", "of", "and", "to", "cat", "dog", "river", "stone", "query"),
    *("passage", "represent", "sentence", "find", "answer", "this", "for"),
)
SPECIAL = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "mpnet": ["<s>", "<pad>", "</s>", "[UNK]"]}
DIM, LONGEST = 32, 48


def write_tokenizer(family: str, folder: Path, *, lowercase: bool = True) -> int:
    """A WordPiece tokenizer that spells unknown words; returns its size."""
    vocab = [*SPECIAL[family], *LETTERS, *LETTERS.upper(), *(f"##{c}" for c in LETTERS + LETTERS.upper()), *WORDS, ":"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    first, last = ("[CLS]", "[SEP]") if family == "bert" else ("<s>", "</s>")
    pad = "[PAD]" if family == "bert" else "<pad>"
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=30))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0", special_tokens=[(first, ids[first]), (last, ids[last])]
    )
    # old folders carry settings of training in the file: neither may act
    backend.enable_truncation(7)
    backend.enable_padding(length=9, pad_id=ids[pad], pad_token=pad)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    tokens = {"cls_token": first, "sep_token": last, "pad_token": pad, "unk_token": "[UNK]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(ids)


def write_transformer(family: str, folder: Path, *, seed: int = 0, lowercase: bool = True) -> Path:
    """A plain transformers folder: a random model of two layers with its tokenizer."""
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=write_tokenizer(family, folder, lowercase=lowercase),
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=LONGEST + (2 if family == "mpnet" else 0),
        initializer_range=0.3,
        pad_token_id=1 if family == "mpnet" else 0,
    )
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def write_sentence_transformer(
    family: str,
    folder: Path,
    *,
    dense: Sequence[Dense] = (),
    pooling: Pooling | None = None,
    normalize: bool = True,
    max_length: int = 20,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    lowercase: bool = True,
    do_lower_case: bool = False,
) -> SentenceTransformer:
    """Save a model with the steps asked for into ``folder``, and return it as sentence-transformers loads it."""
    source = write_transformer(family, folder.with_name(f"{folder.name}-source"), lowercase=lowercase)
    model = SentenceTransformer(
        modules=[
            Transformer(str(source), max_seq_length=max_length, do_lower_case=do_lower_case),
            pooling or Pooling(DIM, "mean"),
            *dense,
            *([Normalize()] if normalize else []),
        ],
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        device="cpu",
    )
    model.save_pretrained(str(folder), create_model_card=False)
    return SentenceTransformer(str(folder), device="cpu")


def linear(d_in: int, d_out: int, activation: torch.nn.Module, *, bias: bool = True, seed: int = 0) -> Dense:
    torch.manual_seed(seed)
    layer = Dense(d_in, d_out, bias=bias, activation_function=activation)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    return layer


def write_dense_folder(folder: Path, d_in: int, d_out: int, *, seed: int = 0) -> Path:
    """A ``2_Dense_{dim}`` folder as in the Stella checkpoints: bias, identity."""
    layer = linear(d_in, d_out, torch.nn.Identity(), seed=seed)
    folder.mkdir(parents=True)
    config = {"in_features": d_in, "out_features": d_out, "bias": True}
    config["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.detach() for name, value in layer.state_dict().items()}, folder / "model.safetensors")
    return folder
