"""Compress a small transformer in a Trainer of transformers: the numbered lines are all that is new.

    pip install 'l0compress[transformers]' accelerate
    python examples/trainer.py

The task is made up, so that nothing is downloaded: is there a certain word, twice at least?
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import l0compress as l0
from l0compress.integrations.transformers import L0Callback, gated_model

LENGTH, WORDS = 12, 8


def samples(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Random sentences and their labels, as a Dataset yields them."""
    tokens = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = (tokens == 0).sum(1) >= 2
    return [{"input_ids": ids, "labels": label.long()} for ids, label in zip(tokens, labels, strict=True)]


def main(folder: Path, *, samples_seen: int = 2048, epochs: float = 4) -> l0.CapturedGraph:
    """Train dense, train with gates, and export what is left."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **sizes))
    train, test = samples(samples_seen, seed=0), samples(256, seed=1)

    def arguments(name: str) -> TrainingArguments:
        return TrainingArguments(
            str(folder / name), num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=2e-3,
            logging_steps=64, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip

    trainer = Trainer(model, arguments("dense"), train_dataset=train, eval_dataset=test)
    trainer.train()
    print(f"dense: loss {trainer.evaluate()['eval_loss']:.3f}")

    args = arguments("gated")
    gated = gated_model(model, {"input_ids": torch.stack([sample["input_ids"] for sample in test[:2]])})  # 1
    callback = L0Callback(gated, "macs=0.5")  # 2
    optimizer = torch.optim.AdamW(gated.param_groups(lr=args.learning_rate))  # 3
    trainer = Trainer(
        gated, args, train_dataset=train, eval_dataset=test, callbacks=[callback], optimizers=(optimizer, None)
    )
    trainer.train()
    print(f"gated: loss {trainer.evaluate()['eval_loss']:.3f}")
    outcome = callback.finish()  # 4

    exported = l0.export_onnx(outcome.small, folder / "small.onnx", reference=outcome.masked)  # 5
    print(f"MACs: {l0.cost(outcome.dense).macs:,} -> {l0.cost(outcome.small).macs:,}")
    print(f"{exported.path}: equal within {exported.equality.max_relative:.1e}")
    return outcome.small


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()))
