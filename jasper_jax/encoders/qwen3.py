"""Qwen3 (arXiv 2505.09388): norms of each head's query and key, heads of any width. Qwen3-Embedding."""

from __future__ import annotations

from jasper_jax.encoders.decoder import Defaults, decoder_family

FAMILY = decoder_family(
    "qwen3",
    "Qwen3Model",
    Defaults(
        vocab_size=151936,
        intermediate_size=22016,
        max_positions=32768,
        num_kv_heads=32,
        head_dim=128,
        head_norms=True,
        window=4096,
        windowed="above",
    ),
)
