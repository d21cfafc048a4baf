"""Write what a run or a call to compress left as a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.pt2 import captured_pt2
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import find_groups
from l0compress.graph.groups.cost import Cost
from l0compress.loading.huggingface import load_folder
from l0compress.pipeline.compress_result import CompressResult
from l0compress.pipeline.config import read_config
from l0compress.pipeline.run_result import metric_name, targets_in
from l0compress.pipeline.runs import CONFIG, PLAN, FinishedRun, reading_of
from l0compress.pipeline.sources import captured_like
from l0compress.training.results import FinetuneResult
from l0compress.verification.calls import Call

if TYPE_CHECKING:
    from l0compress.export.huggingface.card import Facts
    from l0compress.export.huggingface.export import Cut, ExportedFolder
    from l0compress.export.huggingface.with_past import ExportedWithPast
    from l0compress.export.onnx_settings import OnnxSettings

FORMAT = "huggingface"


def export_huggingface(
    small: CompressResult | FinetuneResult | CapturedGraph,
    source: str | Path,
    folder: str | Path,
    *,
    plan: KeepPlan | None = None,
    inputs: Sequence[Call] = (),
) -> ExportedFolder:
    """Write a small model as a folder of Hugging Face ``transformers``, if it equals the masked dense model.

    A class of transformers loads it where its settings can say the widths. Otherwise the folder brings a class of its
    own, for ``trust_remote_code=True``, which needs no l0compress. ``generate`` works as before.

    Args:
        small: what :func:`l0compress.compress` or :func:`l0compress.finetune` returned, or a small graph with ``plan``.
        source: the folder of the model that was captured; tokenizer and settings are copied from it.
        folder: the folder to write; an earlier export is replaced.
        plan: which channels were kept, where ``small`` is a graph.
        inputs: more calls to check the folder on, such as a batch of one's own data.

    Raises:
        InputError: the source is no such folder, holds another model, or there is no plan.
        NotEqualError: no class computes what the small model computes; nothing is written.
        RunError: the folder exists and is no earlier export, or cannot be written.

    Example:
        >>> import tempfile, torch, transformers, l0compress as l0
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
        >>> config = transformers.LlamaConfig(vocab_size=9, num_key_value_heads=2, **sizes)
        >>> model, home = transformers.LlamaForCausalLM(config), Path(tempfile.mkdtemp())
        >>> model.save_pretrained(home / "dense")
        >>> graph = l0.capture(model.eval(), (), {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])})
        >>> plan = l0.KeepPlan.random(l0.find_groups(graph), density=0.5)
        >>> exported = l0.export_huggingface(l0.shrink(graph, plan), home / "dense", home / "small", plan=plan)
        >>> auto = transformers.AutoModelForCausalLM.from_pretrained(exported.path, trust_remote_code=True)
        >>> auto.model.layers[0].mlp.up_proj
        Linear(in_features=4, out_features=8, bias=False)
    """
    from l0compress.export.huggingface.card import Facts
    from l0compress.export.huggingface.export import export_folder

    facts = Facts()
    if isinstance(small, CompressResult):
        facts = Facts(small.dense_cost, small.small_cost, [*_scores_of(small)], _targets(small))
    cut = _cut(small, plan, "export_huggingface(small, source, folder, plan=plan)")
    return export_folder(cut, Path(source), Path(folder), facts=facts, inputs=inputs)


def export_onnx_with_past(
    small: CompressResult | FinetuneResult | CapturedGraph,
    source: str | Path,
    path: str | Path,
    *,
    plan: KeepPlan | None = None,
    inputs: Sequence[Call] = (),
    settings: OnnxSettings | None = None,
) -> ExportedWithPast:
    """Write a small causal language model as an ONNX file with past key values, to generate with token by token.

    Inputs are ``input_ids``, ``attention_mask``, ``position_ids`` where the model takes them, and
    ``past_key_values.N.key`` and ``.value``; outputs are ``logits``, ``present.N.key`` and ``.value``. Each layer has
    heads and widths of its own. The file appears only if its logits, token by token with the cache, are those of the
    masked dense model on whole sequences.

    Args:
        small: what :func:`l0compress.compress` or :func:`l0compress.finetune` returned, or a small graph with ``plan``.
        source: the folder of the model that was captured.
        path: the file to write.
        plan: which channels were kept, where ``small`` is a graph.
        inputs: more calls to check the file on, such as a batch of one's own data.
        settings: the version of the operators, and how large the file may be.

    Raises:
        InputError: the source holds no causal language model, or another one, or there is no plan.
        NotEqualError: the file does not compute what the masked dense model computes; nothing is written.
        SurgeryError: the model cannot be converted to ONNX.
        RunError: the path cannot be written to.

    Example:
        >>> import tempfile, torch, transformers, l0compress as l0
        >>> sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 9}
        >>> model, home = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), Path(tempfile.mkdtemp())
        >>> model.save_pretrained(home / "dense")
        >>> graph = l0.capture(model.eval(), (), {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])})
        >>> plan = l0.KeepPlan.random(l0.find_groups(graph), density=0.5)
        >>> small = l0.shrink(graph, plan)
        >>> exported = l0.export_onnx_with_past(small, home / "dense", home / "small.onnx", plan=plan)
        >>> [*l0.load(exported.path)(input_ids=torch.tensor([[1, 2, 3]]))]
        ['logits', 'present.0.key', 'present.0.value']
    """
    from l0compress.export.huggingface.with_past import export_with_past

    cut = _cut(small, plan, "export_onnx_with_past(small, source, path, plan=plan)")
    return export_with_past(cut, Path(source), Path(path), inputs=inputs, settings=settings)


def _cut(small: CompressResult | FinetuneResult | CapturedGraph, plan: KeepPlan | None, call: str) -> Cut:
    from l0compress.export.huggingface.export import Cut

    if not isinstance(small, CapturedGraph):
        return Cut(small.small, small.plan)
    if plan is None:
        raise InputError(
            "a small graph does not say what was cut.",
            fix=f"Pass the plan that made it: {call}.",
            assurance=NOTHING_WRITTEN,
        )
    return Cut(small, plan)


def export_run_folder(run: FinishedRun, destination: Path, *, inputs: Sequence[Call] = ()) -> ExportedFolder:
    """Write the small model of a run as a folder of transformers, beside the tokenizer of the folder it came from.

    Raises:
        InputError: the run was not made from such a folder, or that is not there any more.
        NotEqualError, RunError: as :func:`export_huggingface`.
    """
    from l0compress.export.huggingface.export import export_folder

    source = _source_of(run)
    return export_folder(_cut_of(run, source), source, destination, facts=_facts_of(run), inputs=inputs)


def export_run_with_past(run: FinishedRun, path: Path, *, settings: OnnxSettings | None = None) -> ExportedWithPast:
    """Write the small model of a run as an ONNX file with past key values.

    Raises:
        InputError: the run was not made from a folder of a causal language model, or that is not there any more.
        NotEqualError, SurgeryError, RunError: as :func:`export_onnx_with_past`.
    """
    from l0compress.export.huggingface.with_past import export_with_past

    source = _source_of(run)
    return export_with_past(_cut_of(run, source), source, path, settings=settings)


def _cut_of(run: FinishedRun, source: Path) -> Cut:
    """The cut of a run, whose plan is read as it was written: by the groups of the model as the folder has it.

    A group is named after the first layer that it cuts, and the order of layers is not the same in ``dense.pt2``.
    """
    from l0compress.export.huggingface.export import Cut

    fixed = read_config(run.folder / CONFIG).get("fixed")
    dense = captured_like(captured_pt2(run.dense), load_folder(source), dynamic="batch" if fixed else "auto")
    kept = json.loads((run.folder / PLAN).read_text(encoding="utf-8"))["kept"]
    plan = KeepPlan.from_kept(find_groups(dense), kept)
    return Cut(captured_pt2(run.small), plan, captured_pt2(run.masked))


def _source_of(run: FinishedRun) -> Path:
    model = Path(str(read_config(run.folder / CONFIG)["model"]))
    if not model.is_dir():
        what = "is not there any more" if not model.exists() else "is no folder of transformers"
        raise InputError(
            f"Run {str(run.folder)!r} was made from {str(model)!r}, which {what}.",
            fix="Put the folder back where it was, or export the run as onnx or pt2.",
            assurance=NOTHING_WRITTEN,
        )
    return model


def _facts_of(run: FinishedRun) -> Facts:
    from l0compress.export.huggingface.card import Facts

    result: Mapping[str, Any] = run.result
    name = metric_name(result, reading_of(run.folder))
    part = result["test"] or result["val"]
    dense, small = (f"{part[which]['metric']:.4g}" for which in ("dense", "small"))
    asked = ", ".join(f"{target['unit']} <= {target['limit']:,}" for target in targets_in(result))
    return Facts(Cost(**result["dense"]), Cost(**result["small"]), [(name, dense, small)], asked)


def _scores_of(result: CompressResult) -> Iterator[tuple[str, str, str]]:
    for part, scores in (("validation", result.val), ("test", result.test)):
        if scores is not None:
            name = f"{part} {scores.dense.metric_name}"
            yield name, f"{scores.dense.metric:.4g}", f"{scores.small.metric:.4g}"


def _targets(result: CompressResult) -> str:
    return ", ".join(str(budget.target) for budget in result.budgets)
