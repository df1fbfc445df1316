"""Mistral (arXiv 2310.06825): grouped queries, a sliding window in every layer. e5-mistral, SFR-Embedding."""

from __future__ import annotations

from jasper_jax.encoders.decoder import Defaults, decoder_family

DEFAULTS = Defaults(
    intermediate_size=14336,
    max_positions=131072,
    num_kv_heads=8,
    qkv_bias=False,
    window=4096,
    windowed="all",
)
FAMILY = decoder_family("mistral", "MistralModel", DEFAULTS)
