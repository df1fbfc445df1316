"""Llama (arXiv 2302.13971, 2407.21783): the plain decoder."""

from __future__ import annotations

from jasper_jax.encoders.decoder import Defaults, decoder_family

FAMILY = decoder_family("llama", "LlamaModel", Defaults(mlp_bias=True))
