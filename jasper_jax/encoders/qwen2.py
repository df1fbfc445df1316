"""Qwen2 (arXiv 2407.10671): query, key and value have biases. stella_en_1.5B_v5 and the Jasper student (bidirectional),
gte-Qwen2 (both)."""

from __future__ import annotations

from jasper_jax.encoders.decoder import Defaults, decoder_family

FAMILY = decoder_family(
    "qwen2",
    "Qwen2Model",
    Defaults(
        vocab_size=151936,
        intermediate_size=22016,
        max_positions=32768,
        num_kv_heads=32,
        qkv_bias=True,
        window=4096,
        windowed="above",
    ),
)
