"""Checkpoints in the names and words of the hub, made from transformers' own models: the older layouts of gte and
Nomic BERT, and NV-Embed written out in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.encoders.reference import torch_model


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A folder with ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def new_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """transformers' gte in the layout of ``model_type: new``."""
    state = model.state_dict()
    out = {f"new.{name}": t for name, t in state.items() if name.startswith("embeddings.")}
    for i in range(model.config.num_hidden_layers):
        here, there = f"layers.{i}", f"new.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            out[f"{there}.attention.qkv_proj.{kind}"] = torch.cat(
                [state[f"{here}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            )
            out[f"{there}.attention.o_proj.{kind}"] = state[f"{here}.self_attn.o_proj.{kind}"]
            out[f"{there}.attn_ln.{kind}"] = state[f"{here}.post_attention_layernorm.{kind}"]
            out[f"{there}.mlp_ln.{kind}"] = state[f"{here}.post_mlp_layernorm.{kind}"]
            out[f"{there}.mlp.down_proj.{kind}"] = state[f"{here}.mlp.down_proj.{kind}"]
        out[f"{there}.mlp.up_gate_proj.weight"] = torch.cat(
            [state[f"{here}.mlp.up_proj.weight"], state[f"{here}.mlp.gate_proj.weight"]]
        )
    return out


def nomic_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """transformers' nomic_bert in the layout of the hub."""
    state = model.state_dict()
    out = {n: t for n, t in state.items() if n.endswith("_embeddings.weight")}
    out |= {f"emb_ln.{kind}": state[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
    for i in range(model.config.num_hidden_layers):
        here, there = f"layers.{i}", f"encoder.layers.{i}"
        out[f"{there}.attn.Wqkv.weight"] = torch.cat([state[f"{here}.self_attn.{x}_proj.weight"] for x in "qkv"])
        out[f"{there}.attn.out_proj.weight"] = state[f"{here}.self_attn.o_proj.weight"]
        for new, old in (("fc11", "up"), ("fc12", "gate"), ("fc2", "down")):
            out[f"{there}.mlp.{new}.weight"] = state[f"{here}.mlp.{old}_proj.weight"]
        for kind in ("weight", "bias"):
            out[f"{there}.norm1.{kind}"] = state[f"{here}.post_attention_layernorm.{kind}"]
            out[f"{there}.norm2.{kind}"] = state[f"{here}.post_mlp_layernorm.{kind}"]
    return out


class NvEmbed:
    """NV-Embed-v2 as its paper and checkpoint describe it, in PyTorch, on transformers' bidirectional Mistral."""

    latents, heads, head_dim = 7, 2, 12

    def __init__(self) -> None:
        self.mistral = torch_model("mistral", num_key_value_heads=2, sliding_window=None, is_causal=False, head_dim=8)
        D = self.mistral.config.hidden_size
        inner, generator = self.heads * self.head_dim, torch.Generator().manual_seed(1)

        def random(*shape: int, scale: float = 0.12, mean: float = 0.0) -> torch.Tensor:
            return torch.randn(shape, generator=generator) * scale + mean

        block = "latent_attention_model.cross_attend_blocks"
        self.tensors = {
            "latent_attention_model.latents": random(self.latents, D, scale=1.0),
            f"{block}.0.fn.to_q.weight": random(inner, D),
            f"{block}.0.fn.to_kv.weight": random(2 * inner, D),
            f"{block}.0.fn.to_out.weight": random(D, inner),
            **{f"{block}.0.{n}.weight": random(D, mean=1.0) for n in ("norm", "norm_context")},
            **{f"{block}.0.{n}.bias": random(D) for n in ("norm", "norm_context")},
            f"{block}.1.fn.net.0.weight": random(8 * D, D),
            f"{block}.1.fn.net.0.bias": random(8 * D),
            f"{block}.1.fn.net.2.weight": random(D, 4 * D),
            f"{block}.1.fn.net.2.bias": random(D),
            f"{block}.1.norm.weight": random(D, mean=1.0),
            f"{block}.1.norm.bias": random(D),
        }

    def save(self, folder: Path) -> Path:
        text = {**self.mistral.config.to_dict(), "model_type": "bidir_mistral", "sliding_window": 4}
        text.pop("is_causal", None)
        config = {
            "model_type": "nvembed",
            "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
            "text_config": text,
            "latent_attention_config": {
                "model_type": "latent_attention",
                "num_latents_value": self.latents,
                "num_cross_heads": self.heads,
                "cross_dim_head": self.head_dim,
                "hidden_dim": 32,
                "latent_dim": 32,
                "output_normalize": True,
            },
            "mask_type": "b",
        }
        language = {f"embedding_model.{name}": t for name, t in self.mistral.state_dict().items()}
        return write(folder, config, {**language, **self.tensors})

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, L, D]: each token of Mistral's output, after the latent attention."""
        t, block = self.tensors, "latent_attention_model.cross_attend_blocks"
        x = self.mistral(ids.long(), attention_mask=mask.long()).last_hidden_state
        D = x.shape[-1]

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, (D,), t[f"{block}.{name}.weight"], t[f"{block}.{name}.bias"])

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

        q = split(norm(x, "0.norm") @ t[f"{block}.0.fn.to_q.weight"].T)
        context = norm(t["latent_attention_model.latents"], "0.norm_context")
        k, v = (split(part) for part in (context @ t[f"{block}.0.fn.to_kv.weight"].T).chunk(2, dim=-1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / self.head_dim**0.5, dim=-1)
        x = x + (weights @ v).transpose(-3, -2).flatten(-2) @ t[f"{block}.0.fn.to_out.weight"].T
        inner = norm(x, "1.norm") @ t[f"{block}.1.fn.net.0.weight"].T + t[f"{block}.1.fn.net.0.bias"]
        first, second = inner.chunk(2, dim=-1)
        return x + (first * F.gelu(second)) @ t[f"{block}.1.fn.net.2.weight"].T + t[f"{block}.1.fn.net.2.bias"]
