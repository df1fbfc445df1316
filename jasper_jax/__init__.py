"""Distil text-embedding models in JAX."""
