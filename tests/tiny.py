"""Tiny models, texts and recipes for tests: real files in the real formats, made in milliseconds, without a network."""

from __future__ import annotations

import atexit
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.weights import save
from jasper_jax.recipe.config import Recipe
from tests.families import CASES

SUBJECTS = "the old river,a young doctor,this machine,our teacher,the city council,every student,a small bird".split(
    ","
)
VERBS = "carries,finds,describes,repairs,forgets,measures,follows,remembers".split(",")
OBJECTS = "a long letter,the broken bridge,some water,her neighbour,the last train,two questions,a map".split(",")
ENDS = "in the morning,before winter,without a word,near the harbour,for the third time,".split(",")


def sentences(number: int, seed: int = 0) -> list[str]:
    """Different sentences of 4 to 14 words."""
    rng, found = random.Random(seed), {}
    while len(found) < number:
        parts = [rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(ENDS), rng.choice(ENDS)]
        found[" ".join(p for p in parts if p) + "."] = None
    return list(found)


def words() -> list[str]:
    """The vocabulary of :func:`sentences`."""
    text = " ".join([*SUBJECTS, *VERBS, *OBJECTS, *ENDS, ". ? what is x y"])
    return list(dict.fromkeys(text.split()))


def write_tokenizer(folder: Path) -> int:
    """A word-level BERT tokenizer over :func:`words`; returns the size of its vocabulary."""
    vocab = {t: i for i, t in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *words()])}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 64,
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "mask_token": "[MASK]",
            }
        )
    )
    return len(vocab)


def write_byte_tokenizer(folder: Path) -> int:
    """Qwen's kind of tokenizer, without merges: what transformers makes for a qwen config, whatever the file says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<|endoftext|>"])}
    backend = Backend(models.BPE(vocab, merges=[]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": None, "model_max_length": 64}))
    return len(vocab)


POOLED = {"mean": "mean_tokens", "lasttoken": "lasttoken"}


def write_model(folder: Path, *, model_type: str = "bert", hidden: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """A sentence-transformers folder with random weights, normalised, at most 32 tokens; ``model_type`` is a case of
    ``tests.families``. Mean pooling, of causal decoders the last token's state."""
    return shutil.copytree(_model(model_type, hidden, layers, seed), folder, dirs_exist_ok=True)


_MADE = Path(tempfile.mkdtemp(prefix="jasper-models-"))
atexit.register(shutil.rmtree, _MADE, ignore_errors=True)


@functools.cache
def _model(model_type: str, hidden: int, layers: int, seed: int) -> Path:
    """The folder that :func:`write_model` copies: made once in a process, for drawing the weights compiles a program
    for every shape."""
    folder = _MADE / f"{model_type}-{hidden}-{layers}-{seed}"
    model_type, settings = CASES[model_type]
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": write_byte_tokenizer(folder) if model_type in ("qwen2", "qwen3") else write_tokenizer(folder),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 64,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
        # Wide weights: vectors of different texts differ clearly.
        "initializer_range": 0.3,
    }
    gated = model_type not in ("bert", "mpnet", "roberta", "xlm-roberta")
    config |= {"hidden_act": "silu"} if gated and model_type != "gte" else {}
    config |= {**settings, "num_attention_heads": 2, "pad_token_id": 1}
    config |= {"num_key_value_heads": 1} if "num_key_value_heads" in settings else {}
    encoder = encoder_from_config(config)
    save(encoder.init(jax.random.key(seed)), encoder, folder)
    (mode,) = encoder.family.pooling(encoder.config).modes
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
        for i, (p, k) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": hidden, f"pooling_mode_{POOLED[mode]}": True})
    )
    (folder / "2_Normalize").mkdir(exist_ok=True)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    return folder


def write_texts(path: Path, number: int = 160, seed: int = 0) -> Path:
    """A JSONL file of sentences, every fourth of them a query."""
    rows = [{"text": s, "kind": "query" if i % 4 == 0 else "passage"} for i, s in enumerate(sentences(number, seed))]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def recipe_tree(place: Path, **changes: Any) -> dict[str, Any]:
    """A recipe as a plain tree: two teachers, a two-layer student, three heads, three stages, in ``place``."""
    for name, kwargs in {
        "teacher-a": {"hidden": 16, "seed": 1},
        "teacher-b": {"hidden": 8, "seed": 2, "model_type": "mpnet"},
        "student": {"hidden": 16, "layers": 3, "seed": 3},
    }.items():
        if not (place / name).is_dir():
            write_model(place / name, **kwargs)
    if not (place / "texts.jsonl").is_file():
        write_texts(place / "texts.jsonl")
    stage = {"steps": 4, "batch_size": 16, "learning_rate": 1e-2}
    tree: dict[str, Any] = {
        "name": "tiny",
        "run_dir": str(place / "run"),
        "texts": {
            "sources": [{"jsonl": str(place / "texts.jsonl"), "kind_column": "kind"}],
            "held_out": 32,
            "shard_rows": 32,
        },
        "teachers": [
            {"name": "a", "model": str(place / "teacher-a")},
            {"name": "b", "model": str(place / "teacher-b"), "dtype": "float32", "prompts": {"query": "what is "}},
        ],
        "student": {"model": str(place / "student"), "layers": [0, 2]},
        "heads": {
            "fc1": {"dim": "teachers", "nested": [12], "init": "ridge"},
            "fc2": {"dim": 8},
            "fc3": {"dim": 6, "nested": [4], "target": "fc1"},
        },
        "stages": [
            {"stage": 1, **stage},
            {"stage": 2, "last_layers": 1, **stage},
            {"stage": 3, **stage},
        ],
        "training": {"shapes": 1, "save_every": 2, "evaluate_every": 2, "ridge_texts": 64},
    }
    return {**tree, **changes}


def recipe(place: Path, **changes: Any) -> Recipe:
    """:func:`recipe_tree`, parsed."""
    from jasper_jax.recipe.load import parse_recipe

    return parse_recipe(recipe_tree(place, **changes), where="tiny")
