"""Small models of transformers with random weights, cut at random: what is exported, and what it is compared with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l0compress as l0
from l0compress.export.huggingface.export import Cut
from l0compress.graph.capture import CapturedGraph

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 31, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 300}
NARROW = {**SIZES, "hidden_size": 16, "intermediate_size": 24}
GROUPED = {**NARROW, "num_key_value_heads": 2}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 31, shape, generator=torch.Generator().manual_seed(1))


def llama(**more: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **NO_ENDS, **more))


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, **NO_ENDS, head_dim=8))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=4, n_positions=300, **NO_ENDS)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**NARROW))


def gemma3() -> nn.Module:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GROUPED, **NO_ENDS, head_dim=4))


def phi3() -> nn.Module:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**{**GROUPED, **NO_ENDS, "pad_token_id": 0}))


def bloom() -> nn.Module:
    config = transformers.BloomConfig(vocab_size=31, hidden_size=16, n_layer=2, n_head=4, **NO_ENDS)
    return transformers.BloomForCausalLM(config)


def phi() -> nn.Module:
    """With rotary embeddings of half of each head's width."""
    return transformers.PhiForCausalLM(transformers.PhiConfig(**{**NARROW, **NO_ENDS, "hidden_size": 32}))


def gpt_neox() -> nn.Module:
    """As Phi, and with queries, keys and values of each head side by side in one product."""
    rotary = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = transformers.GPTNeoXConfig(**{**NARROW, **NO_ENDS, "hidden_size": 32}, rope_parameters=rotary)
    return transformers.GPTNeoXForCausalLM(config)


DECODERS = {"Llama": llama, "Qwen3": qwen3, "GPT-2": gpt2}
Kept = dict[str, list[int]]


class Case:
    """A folder with a dense model of random weights, its graph and its groups."""

    def __init__(self, model: nn.Module, home: Path, **inputs: Tensor) -> None:
        torch.manual_seed(0)
        for parameter in model.parameters():
            # Norms and biases, too, or a mistake in them would not be seen.
            nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
        self.model, self.home = model.eval(), home
        self.source, self.folder = home / "dense", home / "small"
        self.model.save_pretrained(self.source)
        self.graph: CapturedGraph = l0.capture(self.model, (), inputs or {"input_ids": tokens(2, 6)})
        self.groups = l0.find_groups(self.graph)

    def whole(self) -> Kept:
        return l0.KeepPlan.everything(self.groups).kept()

    def random(self, seed: int) -> Kept:
        """Widths that differ from layer to layer."""
        generator = torch.Generator().manual_seed(seed)
        draw = {
            key: [i for i in kept if torch.rand((), generator=generator) < 0.5] for key, kept in self.whole().items()
        }
        return {key: kept or self.whole()[key][:1] for key, kept in draw.items()}

    def without(self, *patterns: str) -> Kept:
        return {key: [] if any(re.search(p, key) for p in patterns) else kept for key, kept in self.whole().items()}

    def cut(self, kept: Kept) -> Cut:
        plan = l0.KeepPlan.from_kept(self.groups, kept)
        return Cut(l0.shrink(self.graph, plan), plan)

    def exported(self, cut: Cut) -> Any:
        return l0.export_huggingface(cut.graph, self.source, self.folder, plan=cut.plan)

    def loaded(self, auto: str = "AutoModelForCausalLM") -> Any:
        return getattr(transformers, auto).from_pretrained(self.folder, trust_remote_code=True).eval()


def is_masked_greedy(said: Tensor, cut: Cut, prompt: Tensor, count: int) -> bool:
    """Whether the dense model, blind to what was cut, would have said this behind the prompt, without a cache.

    It reads the whole at once: a causal model says at every place what it would say if it had come there by itself, so
    what agrees with it everywhere is what it says token by token.
    """
    if said.shape != (prompt.shape[0], prompt.shape[1] + count) or not torch.equal(said[:, : prompt.shape[1]], prompt):
        return False
    with torch.no_grad():
        expected = cut.reference()(input_ids=said)["logits"].argmax(-1)
    return torch.equal(said[:, prompt.shape[1] :], expected[:, prompt.shape[1] - 1 : -1])


def generated(model: Any, prompt: Tensor, count: int) -> Tensor:
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
