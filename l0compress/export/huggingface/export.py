"""Export to a folder that ``from_pretrained`` reads: stock classes where they can say the widths, otherwise our own.

requires: a small graph, the plan that made it, and the folder of ``transformers`` that was captured.
ensures:  a folder that appears only if the model that ``from_pretrained`` makes of it computes what the masked dense
          model computes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from l0compress.errors import NOTHING_WRITTEN, InputError, L0Error, NotEqualError
from l0compress.export.files import Exported, size_on_disk
from l0compress.export.huggingface.card import NO_FACTS, Facts, Loading, card_of, front_matter, widths_of
from l0compress.export.huggingface.classes import PREFIX, auto_classes, code_of
from l0compress.export.huggingface.folder import (
    CARD,
    CODE,
    CONFIG,
    WEIGHTS,
    copy_companions,
    module_folders,
    staged_folder,
    write_config,
)
from l0compress.export.huggingface.layouts import DENSE_LAYOUTS, Layouts, narrow_layouts
from l0compress.export.huggingface.record import CutModel, Small, cut_model
from l0compress.export.huggingface.stock import builds, stock_settings
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan, unshrink_state
from l0compress.loading.huggingface import RECORD, load_folder, read_config, small_class, transformer_folder
from l0compress.loading.references import FOREIGN_ERRORS, first_line
from l0compress.verification.calls import Call, example_calls
from l0compress.verification.equality import verify


@dataclass(frozen=True)
class ExportedFolder(Exported):
    """A folder that was written; ``how`` says what loads it."""

    how: str

    def lines(self) -> tuple[str, ...]:
        """What was checked and how it is loaded, in words."""
        return (*super().lines(), self.how)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {**super().to_json(), "how": self.how}


@dataclass(frozen=True, eq=False)
class Way:
    """One way to write a folder: the class that loads it, and the settings, the tensors and the code of its files."""

    name: str
    model: type
    config: Mapping[str, Any]
    cut: CutModel
    code: str = ""


STOCK, NARROW, DENSE = "stock", "narrow", "dense"
HOW = {
    STOCK: "transformers loads it by itself",
    NARROW: "transformers loads it with trust_remote_code=True: the folder brings a class for its widths",
    DENSE: (
        "transformers loads it with trust_remote_code=True: the folder brings a class for its widths; activations are "
        "as wide as before, since the model's forward has widths as literals, so that only the weights are smaller"
    ),
}


def export_folder(
    small: Cut, source: Path, destination: Path, *, facts: Facts = NO_FACTS, inputs: Sequence[Call] = ()
) -> ExportedFolder:
    """Write a cut model as a folder of transformers, if that loaded again computes what the masked dense model does.

    Args:
        small: a small graph and the plan that made it.
        source: the folder that was captured; tokenizer and settings are copied from it.
        destination: the folder to write.
        facts: what the model card says of costs and scores.
        inputs: more calls to check it on.

    Raises:
        InputError: ``source`` is no such folder, or the model is not the one that was captured.
        NotEqualError: no way to write it computes what the reference computes; the message says why each failed.
        RunError: the destination cannot be written.
    """
    model = load_folder(source)
    left = Small(small.graph.state(), small.plan.parameter_keeps())
    narrow = narrow_layouts(model, left.keeps)
    widths = [*widths_of(model, left.keeps, narrow or DENSE_LAYOUTS)]
    calls, failures = (*example_calls(small.graph), *inputs), []
    with staged_folder(destination) as folder:
        for way in _ways(model, left, narrow, source):
            try:
                _write(way, folder / transformer_folder(source))
                equality = verify(load_folder(folder, architecture=way.model).forward, small.reference(), inputs=calls)
            except (*FOREIGN_ERRORS, L0Error) as reason:
                failures.append(f"{way.name}: {first_line(reason)}")
                _empty_(folder)
                continue
            copy_companions(source, folder)
            text = card_of(widths, _loading(way, type(model), source), facts, equality, _front(way))
            (folder / CARD).write_text(text, encoding="utf-8")
            return ExportedFolder(destination, size_on_disk(folder), equality, HOW[way.name])
        raise NotEqualError(
            f"no class of transformers computes what the small model computes ({'; '.join(failures)}).",
            fix="Export it as onnx or pt2.",
            assurance=NOTHING_WRITTEN,
        )


@dataclass(frozen=True, eq=False)
class Cut:
    """A small graph and the plan that made it of a dense one, and the reference where there is one already."""

    graph: CapturedGraph
    plan: KeepPlan
    masked: CapturedGraph | None = None

    def reference(self) -> nn.Module:
        """The dense-shaped model with the small one's weights, blind to what was removed."""
        if self.masked is not None:
            return self.masked.module()
        plan = self.plan.decision()
        return masked(plan.groups.graph.with_state(unshrink_state(plan, self.graph.state())), plan)


def _ways(model: nn.Module, small: Small, narrow: Layouts | None, source: Path) -> Iterator[Way]:
    config = read_config(source)
    if RECORD in config:
        raise InputError(
            f"{str(source)!r} was cut by l0compress before, and its record has no room for a second cut.",
            fix="Compress the original folder to the smaller target, or export this one as onnx or pt2.",
            assurance=NOTHING_WRITTEN,
        )
    config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}
    if narrow is not None:
        cut = cut_model(model, small, narrow)
        settings = stock_settings(model, config, cut, narrow)
        if settings is not None and builds(type(model), settings, cut):
            yield Way(STOCK, type(model), settings, cut)
        yield _own(NARROW, type(model), config, cut)
    yield _own(DENSE, type(model), config, cut_model(model, small, DENSE_LAYOUTS))


def _own(name: str, architecture: type, config: Mapping[str, Any], cut: CutModel) -> Way:
    autos = auto_classes(architecture)
    originals = sorted({architecture.__name__, *autos.values()})
    own = {
        **config,
        "architectures": [f"{PREFIX}{architecture.__name__}"],
        "auto_map": {auto: f"{Path(CODE).stem}.{PREFIX}{original}" for auto, original in autos.items()},
        RECORD: dict(cut.record),
    }
    return Way(name, small_class(architecture), own, cut, code_of(originals))


def _write(way: Way, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_config(folder, way.config)
    save_file(dict(way.cut.tensors), folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors writes for its owner alone.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    if way.code:
        (folder / CODE).write_text(way.code, encoding="utf-8")


def _loading(way: Way, architecture: type, source: Path) -> Loading:
    autos = auto_classes(architecture)
    auto = next((name for name, original in autos.items() if original == architecture.__name__), "AutoModel")
    return Loading(HOW[way.name], auto, trusted=bool(way.code), sentences=bool(module_folders(source)))


def _front(way: Way) -> dict[str, str]:
    return front_matter(way.config.get("_name_or_path"))


def _empty_(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
