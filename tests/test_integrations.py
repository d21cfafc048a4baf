"""Other people's training loops: with gates in them they end within the budget, and do what a loop by hand does."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_without_ops  # noqa: F401  transformers imports torchvision where it is installed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import l0compress as l0
from l0compress.errors import InputError
from l0compress.gates.attach import GatedNetwork
from l0compress.integrations.control import Control

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports is deprecated here and there
    lightning = pytest.importorskip("lightning.pytorch")

WORDS, LENGTH, STEPS, BATCH = 8, 6, 8, 8


def samples(count: int = BATCH * STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def gated_network() -> GatedNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))
    return l0.gate(l0.capture(net, (torch.zeros(2, 6),)))


def by_hand(gated: GatedNetwork, ramp: int, *, accumulate: int = 1) -> l0.Budget:
    """The loop of the README, on the samples in their order."""
    budget = l0.Budget(gated, "macs=0.5", ramp_steps=ramp)
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-2))
    torch.manual_seed(7)
    gated.train()
    for step, (x, y) in enumerate(zip(*(part.split(BATCH) for part in samples()), strict=True)):
        (F.cross_entropy(gated(x), y) / accumulate).backward()
        if (step + 1) % accumulate == 0:
            budget.penalty().backward()
            optimizer.step()
            optimizer.zero_grad()
            budget.step()
    return budget


class Digits(lightning.LightningModule):
    def __init__(self, net: nn.Module, *, manual: bool = False, gates_too: bool = True) -> None:
        super().__init__()
        self.net, self.gates_too = net, gates_too
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            torch.manual_seed(7)
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = self.net.param_groups(lr=1e-2)
        return torch.optim.AdamW(groups if self.gates_too else groups[:-1])


def lightning_trainer(folder: Path, callback: Any, **options: Any) -> Any:
    chosen = {"max_epochs": 1, "enable_checkpointing": False, **options}
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback],
        **chosen,
    )


def fit(trainer: Any, module: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, few steps
        trainer.fit(module, DataLoader(TensorDataset(*samples()), batch_size=BATCH), **options)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("accumulate", "manual"), [(1, False), (2, False), (1, True)])
def test_lightning_trains_as_a_loop_by_hand_does(tmp_path, accumulate, manual):
    from l0compress.integrations.lightning import L0Callback

    gated, other = gated_network(), gated_network()
    callback = L0Callback(gated, "macs=0.5")
    options = {} if accumulate == 1 else {"accumulate_grad_batches": accumulate}
    fit(lightning_trainer(tmp_path, callback, **options), Digits(gated, manual=manual))
    budget = by_hand(other, STEPS // accumulate // 2, accumulate=accumulate)
    assert_same(gated, other)
    assert callback.control.budget.state_dict() == pytest.approx(budget.state_dict())
    outcome = callback.finish()
    assert l0.cost(outcome.small).macs <= budget.target < l0.cost(outcome.dense).macs
    assert outcome.equality.max_relative < 1e-5


def test_lightning_resumes_with_gates_and_multiplier(tmp_path):
    from l0compress.integrations.lightning import L0Callback

    whole, first, second = gated_network(), gated_network(), gated_network()
    fit(lightning_trainer(tmp_path, at_once := L0Callback(whole, "macs=0.5"), max_epochs=3), Digits(whole))

    stopped = L0Callback(first, "macs=0.5")
    trainer = lightning_trainer(tmp_path, stopped, max_epochs=3, limit_train_batches=STEPS)
    fit(trainer, module := Digits(first))
    assert_same(whole, first)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    resumed = L0Callback(second, "macs=0.5")
    fit(lightning_trainer(tmp_path, resumed, max_epochs=3), Digits(second), ckpt_path=path, weights_only=False)
    assert_same(module, Digits(second))
    assert (
        resumed.control.budget.state_dict()
        == at_once.control.budget.state_dict()
        == stopped.control.budget.state_dict()
    )


def test_gates_that_nobody_trains_are_refused(tmp_path):
    from l0compress.integrations.lightning import L0Callback

    gated = gated_network()
    with pytest.raises(InputError) as error:
        fit(lightning_trainer(tmp_path, L0Callback(gated, "macs=0.5")), Digits(gated, gates_too=False))
    assert str(error.value) == (
        "the gates are in no optimizer, but have to be trained by themselves, at a higher rate and without decay. "
        "Nothing was trained. Make the optimizer of gated.param_groups(lr=...), for example torch.optim.AdamW."
    )


@pytest.mark.parametrize(
    ("groups", "what"),
    [
        (lambda gated: [{"params": list(gated.parameters()), "weight_decay": 0.0}], "are in a group with the weights"),
        (lambda gated: [{"params": list(gated.gate_parameters().values()), "weight_decay": 0.1}], "are decayed"),
    ],
)
def test_gates_in_the_wrong_group_are_refused(groups, what):
    gated = gated_network()
    with pytest.raises(InputError, match=f"^the gates {what}, but have to be trained by themselves"):
        Control(gated, "macs=0.5").check_optimizers([torch.optim.AdamW(groups(gated))])


def bert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.BertConfig(
        vocab_size=WORDS, max_position_embeddings=LENGTH, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes
    )
    return transformers.BertForSequenceClassification(config)


def sentences() -> list[dict[str, Tensor]]:
    tokens = torch.randint(WORDS, (BATCH * STEPS, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = (tokens == 0).any(1).long()
    return [{"input_ids": ids, "labels": label, "unused": label} for ids, label in zip(tokens, labels, strict=True)]


@functools.cache
def captured_bert() -> tuple[Any, Any]:
    from l0compress.integrations.transformers import gated_model

    model = bert()
    return model, gated_model(model, {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)}, dynamic="batch")


def gated_bert() -> Any:
    return copy.deepcopy(captured_bert()[1])


def in_trainer(folder: Path, *, resume: bool = False, stop: int = -1, **options: Any) -> Any:
    """Train a gated model in a Trainer on the sentences in their order."""
    from l0compress.integrations.transformers import L0Callback

    gated = gated_bert()
    callback = L0Callback(gated, "macs=0.6")

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(sentences())

    class Seeded(transformers.TrainerCallback):
        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            torch.manual_seed(state.global_step)

        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_training_stop = state.global_step == stop

    chosen = {"save_strategy": "no", "num_train_epochs": 1, "lr_scheduler_type": "constant", **options}
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH, learning_rate=1e-2, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", **chosen,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(gated.param_groups(lr=args.learning_rate))
    trainer = InOrder(
        gated, args, train_dataset=sentences(), eval_dataset=sentences(), callbacks=[callback, Seeded()],
        optimizers=(optimizer, None),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def trainer_by_hand(gated: nn.Module, *, accumulate: int) -> l0.Budget:
    """What the Trainer is meant to do with it."""
    steps = STEPS // accumulate
    budget = l0.Budget(gated.gated, "macs=0.6", ramp_steps=steps // 2)
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-2))
    batches = DataLoader(sentences(), batch_size=BATCH)
    gated.train()
    for number, batch in enumerate(batches):
        if number % accumulate == 0:
            torch.manual_seed(number // accumulate)
        outputs = gated(input_ids=batch["input_ids"], labels=batch["labels"])
        (outputs.loss / accumulate).backward()
        if (number + 1) % accumulate == 0:
            torch.nn.utils.clip_grad_norm_(gated.parameters(), 1.0)
            budget.penalty().backward()
            optimizer.step()
            optimizer.zero_grad()
            budget.step()
    return budget


@pytest.mark.mostly_slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_trains_as_a_loop_by_hand_does(tmp_path, accumulate):
    model, other = captured_bert()[0], gated_bert()
    before = copy.deepcopy(model.state_dict())
    trainer, callback = in_trainer(tmp_path, gradient_accumulation_steps=accumulate)
    budget = trainer_by_hand(other, accumulate=accumulate)
    assert_same(trainer.model.gated, other.gated)
    assert callback.control.budget.state_dict() == pytest.approx(budget.state_dict())
    assert all(torch.equal(old, new) for old, new in zip(before.values(), model.state_dict().values(), strict=True))
    outcome = callback.finish()
    assert l0.cost(outcome.small).macs <= budget.target
    inputs = {"input_ids": torch.randint(WORDS, (5, LENGTH))}
    assert type(outcome.small.module()(**inputs)) is type(model(**inputs))

    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    batch = {name: torch.stack([s[name] for s in sentences()]) for name in ("input_ids", "labels")}
    with torch.no_grad():
        logits = other.eval()(input_ids=batch["input_ids"]).logits
    assert first["eval_loss"] == pytest.approx(float(F.cross_entropy(logits, batch["labels"])), rel=1e-4)


@pytest.mark.slow
def test_the_trainer_resumes_with_gates_and_multiplier(tmp_path):
    whole, at_once = in_trainer(tmp_path / "whole")
    in_trainer(tmp_path / "parts", stop=4, save_strategy="steps", save_steps=4)
    resumed, callback = in_trainer(tmp_path / "parts", resume=True)
    assert resumed.state.global_step == STEPS
    assert_same(whole.model, resumed.model)
    assert callback.control.budget.state_dict() == at_once.control.budget.state_dict()
    assert callback.control.budget.state_dict()["num_steps"] == STEPS


class Tied(nn.Module):
    """A module that is nobody's class, with weights that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mlp = nn.Embedding(WORDS, 12), nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        del labels
        return {"scores": self.head(self.mlp(self.embed(input_ids)))}


def test_a_module_of_ones_own_takes_its_loss_from_the_trainer(tmp_path):
    def loss(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        return F.cross_entropy(outputs["scores"][:, 0], labels)

    from l0compress.integrations.transformers import L0Callback, gated_model

    gated = gated_model(Tied(), {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)}, dynamic="batch")
    callback = L0Callback(gated, "macs=0.7")
    args = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_steps=4, save_steps=STEPS,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-2))
    trainer = transformers.Trainer(
        gated, args, train_dataset=sentences(), callbacks=[callback], optimizers=(optimizer, None),
        compute_loss_func=loss,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert {"l0/density_macs", "l0/multiplier"} <= trainer.state.log_history[0].keys()
    assert callback.finish().equality.max_relative < 1e-5
    fresh = gated_model(Tied(), {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)}, dynamic="batch")
    L0Callback(fresh, "macs=0.7")
    saved = load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    fresh.load_state_dict(saved)
    assert_same(gated, fresh)
    assert float(fresh.l0_budget[0]) == STEPS

    with pytest.raises(InputError) as error:
        gated.forward(input_ids=torch.zeros(2, LENGTH, dtype=torch.long), labels=torch.zeros(2))
    assert str(error.value) == (
        "the model was called with labels, which its graph does not take, and it has no loss_function that would. "
        "Nothing was changed. Give the Trainer the loss: compute_loss_func=lambda outputs, labels, **_: ..."
    )


def test_an_input_that_was_not_there_at_capture_is_refused():
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    with pytest.raises(InputError) as error:
        gated_bert()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.zeros(2))
    assert str(error.value) == (
        "the model was called with attention_mask, but captured without. Nothing was changed. Give gated_model a batch "
        "as the data collator returns it."
    )
