"""Every encoder family beside its PyTorch counterpart: forward, and forward with backward, one after the other.

    python scripts/bench/encoders.py [--family NAME ...] [--output docs/results/encoders.md]

Random weights of a few layers at a width that checkpoints have; B=16, L=128, float32, the padding of real texts.
PyTorch runs as transformers sets it up: SDPA, eval mode. Compilation is reported apart. The rounds alternate, and what
is reported is the median over rounds of the ratio of two neighbours. Then one traced pass of each side says where the
time of forward and backward goes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from train_bench.report import Section, write
from train_bench.trace import by_kind
from train_bench.world import machine, seconds

from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.encoders.weights import load_params

ROWS, LENGTH, LAYERS = 16, 128, 4
SMALL = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
GATED = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1024}
CASES = {
    "bert": ("bert", SMALL),
    "mpnet": ("mpnet", {**SMALL, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", SMALL),
    "qwen2, bidirectional": ("qwen2", {**GATED, "num_key_value_heads": 2, "is_causal": False}),
    "qwen2, causal": ("qwen2", {**GATED, "num_key_value_heads": 2}),
    "qwen3": ("qwen3", {**GATED, "num_key_value_heads": 2, "head_dim": 64}),
    "mistral": ("mistral", {**GATED, "num_key_value_heads": 2, "sliding_window": None}),
    "llama": ("llama", GATED),
    "gte": ("gte", GATED),
    "nomic_bert": ("nomic_bert", GATED),
    "modernbert": ("modernbert", {**GATED, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}),
}
TORCH_KINDS = (("matmul", r"^aten::(add|badd)?b?mm$"), ("attention", r"scaled_dot_product"))
"""(kind, pattern over the name of a PyTorch operation)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=list(CASES), help="only these (repeatable)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows, profiles = [], []
    for name in options.family or CASES:
        row, profile = measure(name, options.rounds)
        rows.append(row)
        profiles.append(profile)
        print(" | ".join(row), flush=True)
        print(" | ".join(profile), flush=True)
    write(options.output, "Encoder families beside PyTorch", introduction(), sections(rows, profiles))
    return 0


def measure(name: str, rounds: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One line of each table."""
    import torch
    import transformers

    model_type, settings = CASES[name]
    shared = {"vocab_size": 1000, "num_hidden_layers": LAYERS, "max_position_embeddings": 514, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(model_type, **{**shared, **settings}, use_cache=False)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        encoder = encoder_from_folder(folder)
        params = load_params(folder, encoder)
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(LENGTH // 2, LENGTH + 1, ROWS))[::-1]
    lengths[0] = LENGTH
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    ids = np.where(mask == 1, rng.integers(5, 1000, (ROWS, LENGTH)), encoder.config.pad_id).astype(np.int32)
    direction = rng.normal(size=(ROWS, LENGTH, encoder.hidden_size)).astype(np.float32) * mask[:, :, None]
    torch_ids, torch_mask = torch.tensor(ids).long(), torch.tensor(mask).long()
    torch_direction = torch.tensor(direction)

    @jax.jit
    def forward(params, ids, mask):
        return encoder.apply(params, ids, mask)

    @jax.jit
    def gradient(params, ids, mask, direction):
        return jax.grad(lambda p: (encoder.apply(p, ids, mask, training=True) * direction).sum())(params)

    def torch_forward() -> None:
        with torch.inference_mode():
            model(torch_ids, attention_mask=torch_mask)

    def torch_gradient() -> None:
        model.zero_grad(set_to_none=True)
        (model(torch_ids, attention_mask=torch_mask).last_hidden_state * torch_direction).sum().backward()

    arrays = (jnp.asarray(ids), jnp.asarray(mask))
    pairs = {
        "forward": (lambda: jax.block_until_ready(forward(params, *arrays)), torch_forward),
        "gradient": (lambda: jax.block_until_ready(gradient(params, *arrays, direction)), torch_gradient),
    }
    cells = [name, f"{np.mean(mask):.0%}"]
    for ours, theirs in pairs.values():
        compiling = seconds(ours)
        theirs()
        found = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
        ratio = statistics.median(a / b for a, b in found)
        low, high = min(a / b for a, b in found), max(a / b for a, b in found)
        cells += [
            f"{statistics.median(a for a, _ in found) * 1e3:,.0f}",
            f"{statistics.median(b for _, b in found) * 1e3:,.0f}",
            f"**{ratio:.2f}** ({low:.2f} to {high:.2f})",
            f"{compiling:.1f}",
        ]
    program = gradient.lower(params, *arrays, direction).compile().as_text() or ""
    with tempfile.TemporaryDirectory() as folder:
        shares, _ = by_kind(program, pairs["gradient"][0], Path(folder))
    times = [float(cells[column].replace(",", "")) for column in (6, 7)]
    return tuple(cells), profile_line(name, (shares, torch_by_kind(torch_gradient)), times)


def torch_by_kind(work: Callable[[], object]) -> dict[str, float]:
    """Shares of PyTorch's own time in ``work``, by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as traced:
        work()
    found: Counter[str] = Counter()
    for event in traced.key_averages():
        kind = next((kind for kind, pattern in TORCH_KINDS if re.search(pattern, event.key)), "else")
        found[kind] += event.self_cpu_time_total
    return {kind: microseconds / sum(found.values()) for kind, microseconds in found.items()}


def profile_line(name: str, shares: Sequence[dict[str, float]], times: Sequence[float]) -> tuple[str, ...]:
    """Milliseconds in products, attention's among ours, and in all else on each side; then what ours is of."""
    ours, theirs = shares
    products = (ours["matmul"], theirs.get("matmul", 0.0) + theirs.get("attention", 0.0))
    cells = [f"{share * whole:,.0f}" for share, whole in zip(products, times, strict=True)]
    cells += [f"{(1 - share) * whole:,.0f}" for share, whole in zip(products, times, strict=True)]
    rest = sorted(((share, kind) for kind, share in ours.items() if kind != "matmul"), reverse=True)
    return (name, *cells, ", ".join(f"{kind} {share:.0%}" for share, kind in rest[:4]))


def reached(rows: list[tuple[str, ...]], column: int, aim: float) -> str:
    """How many families keep to ``aim``, by the ratios in ``column``."""
    ratios = [float(row[column].split("**")[1]) for row in rows]
    kept = sum(ratio <= aim for ratio in ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"takes {spread} times PyTorch's time, at most {aim} in {kept} of {len(ratios)} families"


def sections(rows: list[tuple[str, ...]], profiles: list[tuple[str, ...]]) -> list[Section]:
    half = ("ours ms", "torch ms", "ratio", "compile s")
    reads = (
        f"Forward {reached(rows, 4, 1.0)}; forward and backward {reached(rows, 8, 1.3)}. Both sides compute the padding"
        " here; in training and embedding several texts share a row and there is next to none"
        " ([train-step](train-step.md))."
    )
    pieces = (
        "Shares of one traced pass of each side, times the milliseconds above. PyTorch's products hold its whole fused"
        " attention, softmax included, ours the matrix products alone. The last column names what our pass does beside"
        " products, as shares of all of it."
    )
    columns = ("products", "products and attention", "all else", "all else")
    sides = [f"{name}, {side} ms" for name, side in zip(columns, ("ours", "torch", "ours", "torch"), strict=True)]
    return [
        Section("Time beside PyTorch's", ("family", "tokens", *half, *half), rows, [reads]),
        Section("Where forward and backward spend it", ("family", *sides, "ours beside products"), profiles, [pieces]),
    ]


def introduction() -> list[str]:
    import torch
    import transformers

    tunables = os.environ.get("GLIBC_TUNABLES", "not set")
    torch_version = torch.__version__.split("+")[0]
    return [
        f"{machine()}; GLIBC_TUNABLES {tunables}",
        f"jax {jax.__version__}, torch {torch_version}, transformers {transformers.__version__}.",
        f"Random weights, {LAYERS} layers, {ROWS} texts of up to {LENGTH} tokens (the share of slots that hold one is"
        " given), float32. First the forward pass, then forward and backward. A ratio below 1: faster than PyTorch; in"
        " brackets the range over the rounds.",
    ]


if __name__ == "__main__":
    sys.exit(main())
