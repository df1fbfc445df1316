"""RoBERTa and XLM-RoBERTa: BERT whose positions count from the padding (arXiv 1907.11692, 1911.02116).
multilingual-e5, bge-m3."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx

from jasper_jax.encoders.bert import BertConfig, BertEmbeddings, BertEnds, PostNormLayer, bert_weights
from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.layout import Layout, offset_positions


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """``max_positions`` is the longest text; the position table has ``pad_id`` + 1 rows more."""

    position_rows: int = 0

    @classmethod
    def read(cls, family: str, vocab_size: int, hf: Mapping[str, Any], where: str = "config.json") -> RobertaConfig:
        """From a transformers ``config.json``; absent keys take transformers' defaults."""
        bert = BertConfig.from_hf(hf, where, family=family, vocab_size=vocab_size, pad_id=1)
        fields = {**dataclasses.asdict(bert), "max_positions": bert.max_positions - bert.pad_id - 1}
        return cls(**fields, position_rows=bert.max_positions)


class RobertaEmbeddings(BertEmbeddings):
    """word + token type 0 + position after padding, then a norm."""

    def __init__(self, config: RobertaConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(dataclasses.replace(config, max_positions=config.position_rows), dtype=dtype, rngs=rngs)
        self.padding = config.pad_id

    def positions(self, token_ids: jax.Array, layout: Layout) -> jax.Array:
        return offset_positions(token_ids, layout, self.padding)


class RobertaEnds(BertEnds):
    make_embeddings = RobertaEmbeddings


def _family(model_type: str, architecture: str, vocab_size: int) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        read_config=partial(RobertaConfig.read, model_type, vocab_size),
        ends=RobertaEnds,
        layer=PostNormLayer,
        weights=bert_weights,
        prefixes=("roberta.",),
        ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "lm_head.*"),
        renamed=((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")),
    )


ROBERTA = _family("roberta", "RobertaModel", 50265)
XLM_ROBERTA = _family("xlm-roberta", "XLMRobertaModel", 30522)
