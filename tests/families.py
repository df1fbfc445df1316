"""Every encoder family in the settings that the tests run it with, in transformers' words; sizes are the tests' own."""

from __future__ import annotations

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 2.5, "original_max_position_embeddings": 16}
_MODERN = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}

CASES: dict[str, tuple[str, dict]] = {
    "bert": ("bert", {}),
    "mpnet": ("mpnet", {}),
    "roberta": ("roberta", {"pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "llama": ("llama", {"num_key_value_heads": 1}),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": 6, "head_dim": 12}),
    "qwen2-bidirectional": ("qwen2", {"num_key_value_heads": 2, "is_causal": False}),
    "qwen2-causal": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gte": ("gte", {"pad_token_id": 1}),
    "nomic_bert": ("nomic_bert", {}),
    "modernbert": ("modernbert", {"local_attention": 8, **_MODERN}),
}
"""Case -> transformers' model_type and settings: causal and not, grouped queries or not, with and without biases."""
VARIANTS: dict[str, tuple[str, dict]] = {
    "llama with biases, llama3 rope": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": _LLAMA3}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}}),
    "llama, dynamic rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}}),
    "mistral without a window": ("mistral", {"num_key_value_heads": 4, "sliding_window": None}),
    "mistral, bidirectional window": ("mistral", {"num_key_value_heads": 1, "sliding_window": 5, "is_causal": False}),
    "qwen2, upper layers windowed": (
        "qwen2",
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen2, yarn": ("qwen2", {"num_key_value_heads": 4, "rope_parameters": _YARN}),
    "qwen3, bidirectional, biases": ("qwen3", {"num_key_value_heads": 4, "attention_bias": True, "is_causal": False}),
    "gte without token types": ("gte", {"type_vocab_size": 0, "pad_token_id": 0}),
    "modernbert with biases, all local": (
        "modernbert",
        {
            **_MODERN,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "local_attention": 6,
            "layer_types": ["sliding_attention"] * 4,
        },
    ),
}
"""Settings beside those of ``CASES`` that checkpoints in use have."""
