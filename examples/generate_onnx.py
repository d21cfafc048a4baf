"""Generate with a small language model in onnxruntime alone, its keys and values kept from token to token.

    pip install 'l0compress[transformers]'
    python examples/generate_onnx.py

The model is made up, so that nothing is downloaded. Of a run from a folder, `l0compress export RUN --with-past` writes
the file that :func:`greedy` reads.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import l0compress as l0

PROMPT = np.array([[3, 1, 4, 1, 5]])


def greedy(path: Path, prompt: np.ndarray, count: int) -> np.ndarray:
    """The prompt, integers (n, length), and the ``count`` likeliest tokens that follow."""
    session = onnxruntime.InferenceSession(str(path))
    inputs = {entry.name: entry for entry in session.get_inputs()}
    # At first the past is empty; each layer has heads and widths of its own.
    past = {
        name: np.zeros((len(prompt), entry.shape[1], 0, entry.shape[3]), np.float32)
        for name, entry in inputs.items()
        if name.startswith("past_key_values.")
    }
    said, new = prompt, prompt
    for _ in range(count):
        positions = np.arange(said.shape[1])[None].repeat(len(said), 0)
        feeds = {"input_ids": new, "attention_mask": np.ones_like(said), "position_ids": positions[:, -new.shape[1] :]}
        logits, *present = session.run(None, {**{name: feeds[name] for name in feeds if name in inputs}, **past})
        past = dict(zip(past, present, strict=True))
        new = logits[:, -1:].argmax(-1)
        said = np.concatenate([said, new], 1)
    return said


def main(folder: Path, *, count: int = 64) -> np.ndarray:
    """Cut a model, export it with and without its cache in onnxruntime, and compare what both say."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, eos_token_id=None, initializer_range=0.3, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "dense")

    graph = l0.capture(l0.load_model(folder / "dense"), (), {"input_ids": torch.from_numpy(PROMPT)})
    plan = l0.KeepPlan.random(l0.find_groups(graph), density=0.5)
    small = l0.shrink(graph, plan)
    exported = l0.export_onnx_with_past(small, folder / "dense", folder / "small.onnx", plan=plan)
    print(f"{exported.path.name}: equal within {exported.equality.max_relative:.1e}")

    said = greedy(exported.path, PROMPT, count)
    l0.export_huggingface(small, folder / "dense", folder / "small", plan=plan)
    model = AutoModelForCausalLM.from_pretrained(folder / "small", trust_remote_code=True)
    prompt = torch.from_numpy(PROMPT)
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False)
    print(f"{count} tokens, {'as' if np.array_equal(said, expected.numpy()) else 'NOT as'} generate() says them")
    return said


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()))
