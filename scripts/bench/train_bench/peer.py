"""The same train step in PyTorch as a good user would write it: transformers' BertModel, padding to the longest text.

Same parameters, texts, heads, nested dimensions, losses, clipping and AdamW. The relative loss is equation 3 as it
stands, over all pairs of pairs of each vector, in the three ways it can be written for autograd, from the most careful
to the plainest:

- ``lean``: what depends on the teacher is computed once a batch, as a table of 0 where the order counts and minus
  infinity where not; it is added in place before the ReLU. One table is made and one kept per vector;
- ``where``: the table of hinges, then ``torch.where`` on the teacher's order;
- ``gather``: differences taken for each unordered pair of pairs once, by index, and turned by the sign of the teacher's
  difference, as public training code for this method does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertModel

from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.encoders.weights import save
from jasper_jax.losses import HeadLoss
from train_bench.world import World


@dataclasses.dataclass
class PaddedBatch:
    """A batch on the host, padded to its longest text."""

    ids: torch.Tensor
    mask: torch.Tensor
    teachers: torch.Tensor

    @property
    def padding_share(self) -> float:
        return 1.0 - float(self.mask.sum()) / self.mask.numel()


class HostWork:
    """What a data loader does: texts -> padded tensors, with transformers' own tokenizer."""

    def __init__(self, world: World):
        self.world = world
        self.tokenizer = AutoTokenizer.from_pretrained(str(world.run.student.path))

    def load(self, batch: LoadedBatch) -> PaddedBatch:
        found = self.tokenizer(
            self.world.prompted(batch),
            padding="longest",
            truncation=True,
            max_length=self.world.tokenizer.max_length,
            return_tensors="pt",
        )
        return PaddedBatch(found["input_ids"], found["attention_mask"], torch.from_numpy(batch.arrays["teachers"]))


class Student(torch.nn.Module):
    """Encoder, mean pooling, heads, with the parameters of ``world``."""

    def __init__(self, world: World, scratch: Path):
        super().__init__()
        recipe, student = world.run.recipe, world.student
        if student.pooling.modes != ("mean",) or student.dropout or student.vector_dropout:
            raise SystemExit("the PyTorch step is written for mean pooling without dropout")
        if world.program.partition.split(world.params)[1]:
            raise SystemExit("the PyTorch step trains everything: choose a --stage that does")
        if any(recipe.heads[name].target != "teachers" for name in world.stage.heads):
            raise SystemExit("the PyTorch step is written for heads that the teachers teach")
        save(world.params["encoder"], student.encoder, scratch)
        self.encoder = BertModel.from_pretrained(
            str(scratch),
            add_pooling_layer=False,
            attn_implementation="sdpa",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            dtype=torch.float32,
        )
        self.heads = torch.nn.ModuleDict()
        for name, head in world.params["heads"].items():
            kernel = np.array(head["kernel"])
            self.heads[name] = torch.nn.Linear(*kernel.shape, bias="bias" in head)
            with torch.no_grad():
                self.heads[name].weight.copy_(torch.from_numpy(kernel.T))
                if "bias" in head:
                    self.heads[name].bias.copy_(torch.from_numpy(np.array(head["bias"])))

    def forward(self, batch: PaddedBatch) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        mask = batch.mask[:, :, None].to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1)
        return {name: head(pooled) for name, head in self.heads.items()}


def similarities(vectors: torch.Tensor) -> torch.Tensor:
    vectors = normalize(vectors, dim=-1)
    return vectors @ vectors.T


def lean_hinges(target: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """``(s, margin) -> Σ`` over the pairs of pairs that the teacher orders, see the module."""
    counts = torch.full((len(target), len(target)), -torch.inf).masked_fill_(target[:, None] > target[None, :], 0.0)
    return lambda s, margin: (s[None, :] - (s[:, None] - margin)).add_(counts).relu_().sum()


def where_hinges(target: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    ordered = target[:, None] > target[None, :]
    return lambda s, margin: torch.where(ordered, torch.relu(s[None, :] - (s[:, None] - margin)), 0.0).sum()


def gather_hinges(target: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    first, second = torch.triu_indices(len(target), len(target), 1)
    sign = torch.sign(target[first] - target[second])
    return lambda s, margin: torch.relu(margin - sign * (s[first] - s[second])).mul(sign.abs()).sum()


FORMS = {"lean": lean_hinges, "where": where_hinges, "gather": gather_hinges}


class Peer:
    """One PyTorch train step, with the state it trains. ``form``: how the relative loss is written, None: left out."""

    def __init__(self, world: World, scratch: Path, form: str | None):
        settings = world.stage.settings
        self.world, self.form, self.clip_norm, self.steps = world, form, settings.clip_norm, 0
        self.model = Student(world, scratch).train()
        self.pairs = torch.triu_indices(world.stage.batch_size, world.stage.batch_size, 1)
        matrices = [p for n, p in self.model.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
        known = {id(p) for p in matrices}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(settings.b1, settings.b2),
            eps=settings.eps,
            fused=True,
        )

    def step(self, batch: PaddedBatch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.world.rate(self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._terms(batch)["loss"]
        loss.backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.steps += 1
        return float(loss.detach())

    @torch.no_grad()
    def losses(self, batch: PaddedBatch) -> dict[str, float]:
        """As ``world.Ours.losses``."""
        return {name: float(value) for name, value in self._terms(batch).items()}

    def _terms(self, batch: PaddedBatch) -> dict[str, torch.Tensor]:
        target = similarities(batch.teachers)
        hinges = None
        if self.form:
            hinges = FORMS[self.form](target[tuple(self.pairs)])
        terms: dict[str, torch.Tensor] = {}
        for name, vectors in self.model(batch).items():
            found = self._head(vectors, batch.teachers, target, self.world.spec[name], hinges)
            terms |= {f"{name}/{term}": value for term, value in found.items()}
        totals = torch.stack([value for name, value in terms.items() if name.endswith("/total")])
        return {"loss": totals.sum() if self.world.stage.reduce_heads == "sum" else totals.mean(), **terms}

    def _head(self, vectors: torch.Tensor, teachers: torch.Tensor, target: torch.Tensor, spec: HeadLoss, hinges: Any):
        found: dict[str, torch.Tensor] = {}
        if spec.weights["cosine"]:
            found["cosine"] = (1 - (normalize(vectors, dim=-1) * normalize(teachers, dim=-1)).sum(-1)).mean()
        own = [similarities(vectors[:, :m]) for m in spec.nested or (vectors.shape[1],)]
        found["similarity"] = mean([(one - target).square().mean() for one in own])
        if hinges:
            count = self.pairs.shape[1]
            sums = [hinges(one[tuple(self.pairs)], spec.settings["margin"]) for one in own]
            found["relative"] = mean(sums) / (count * (count - 1) / 2)
        total = torch.zeros(())
        for term, value in found.items():
            total = total + spec.weights[term] * value
        return {**found, "total": total}


def mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()
