"""What a run is asked to do, and the same as the values of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from l0compress.errors import InputError
from l0compress.loading import ModelSource, Target, import_reference, parse_target
from l0compress.pipeline.config import complete
from l0compress.pipeline.options import GATES, OPTIONS
from l0compress.training.settings import FinetuneSettings, GateSettings

NEEDED = ("model", "data", "target")


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Attributes:
        source: the model file.
        data: names the data.
        target: the budget.
        loss: ``auto``, ``cross-entropy``, ``mse``, or ``package.module:function`` of (outputs, targets).
        output: the run's folder, new or empty; under ``./runs`` by date and time where it is None.
        settings: fields of :class:`~l0compress.training.settings.FinetuneSettings` that differ from their defaults.
        threads: threads of PyTorch; None leaves them as they are.
        checkpoint_every: steps between two snapshots; None goes by time.
    """

    source: ModelSource
    data: str
    target: Target
    loss: str = "auto"
    output: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    checkpoint_every: int | None = None

    def finetune_settings(self) -> FinetuneSettings:
        """The settings with the user's own loss, if there is one.

        Raises:
            InputError: the loss cannot be imported, or a setting is out of range.
        """
        loss: Any = self.loss
        if ":" in self.loss:
            loss = import_reference(self.loss, flag="--loss", error=InputError)
        return FinetuneSettings(loss=loss, **self.settings)

    def values(self) -> dict[str, Any]:
        """The request as values of a configuration file; where it goes to is not one of them."""
        settings = FinetuneSettings(**self.settings)
        of_settings = {**asdict(settings), "clip": settings.clip or 0.0}
        named = {
            name: (of_settings["gates"] if option.section == GATES else of_settings)[option.field]
            for name, option in OPTIONS.items()
            if option.field
        }
        about = {"model": str(self.source.path), "factory": self.source.factory, "data": self.data}
        more = {"trust_pickle": self.source.trust_pickle, "target": str(self.target), "loss": self.loss}
        return complete({**named, **about, **more, "threads": self.threads, "checkpoint_every": self.checkpoint_every})

    def changed(self, changes: Mapping[str, Any]) -> RunRequest:
        """The request with other values of some settings."""
        return request_of({**self.values(), **changes}, output=self.output)


def request_of(given: Mapping[str, Any], *, output: Path | None = None) -> RunRequest:
    """The request that values of a configuration file, or of flags, stand for.

    >>> request = request_of({"model": "net.pt2", "data": "digits", "target": "macs=0.5", "epochs": 8, "clip": 0.0})
    >>> request.settings["epochs"], request.settings["clip"], request_of(request.values()) == request
    (8, None, True)

    Raises:
        InputError: model, data or target is missing, or cannot be read.
    """
    values = complete(given)
    missing = [name for name in NEEDED if values[name] is None]
    if missing:
        named = " and ".join("MODEL" if name == "model" else f"--{name}" for name in missing)
        raise InputError(f"{named} must be given. Nothing was changed. Say it as a flag, or in the file of --config.")
    settings = {option.field: values[name] for name, option in OPTIONS.items() if option.field and not _is_gate(option)}
    gates = {option.field: values[name] for name, option in OPTIONS.items() if _is_gate(option)}
    loss = settings.pop("loss")
    settings["clip"] = settings["clip"] or None
    return RunRequest(
        source=ModelSource(Path(values["model"]), values["factory"], values["trust_pickle"]),
        data=values["data"],
        target=parse_target(values["target"]),
        loss=loss,
        output=output,
        settings={**settings, "gates": replace(GateSettings(), **gates)},
        threads=values["threads"],
        checkpoint_every=values["checkpoint_every"],
    )


def _is_gate(option: Any) -> bool:
    return option.section == GATES
