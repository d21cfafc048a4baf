"""What a run is asked to do, and the same as the values of a configuration file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0compress.errors import InputError, TargetError
from l0compress.loading import DataSource, ModelSource, import_reference, parse_factory_args
from l0compress.loading.datasets import kind_of
from l0compress.loading.images import parse_normalize
from l0compress.loading.splits import parse_shares
from l0compress.pipeline.config import complete
from l0compress.pipeline.options import GATES, OPTIONS
from l0compress.training.family_targets import parse_targets, written
from l0compress.training.goals import Criterion, parse_penalty
from l0compress.training.schema import Setting
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.training.targets import Target, targets_of

if TYPE_CHECKING:
    from l0compress.pipeline.given import Given

NEEDED = ("model", "data", "target")
_STREAM_BATCH = 64


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Attributes:
        source: the model file.
        data: where the data come from; None where they were given in memory.
        targets: the budgets, which hold together; of a family the last that was named.
        loss: ``auto``, ``cross-entropy``, ``bce``, ``mse``, or ``package.module:function`` of (outputs, targets).
        output: the run's folder, new or empty; under ``./runs`` by date and time where it is None.
        settings: fields of :class:`~l0compress.training.settings.FinetuneSettings` that differ from their defaults.
        threads: threads of PyTorch; None leaves them as they are.
        checkpoint_every: steps between two checkpoints; None goes by time.
        fixed: capture the model for sequences as long as the data's, not of any length.
        penalty: the fixed penalty in place of a budget, as it was given.
        family: the budgets of a family's members, as they were given; empty where there is one.
        given: model, data and functions in memory, which take the place of what is named.
        track: the trackers that the run is logged to.
    """

    source: ModelSource
    data: DataSource | None
    targets: tuple[Target, ...]
    loss: str = "auto"
    output: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    checkpoint_every: int | None = None
    fixed: bool = False
    family: tuple[Target, ...] = ()
    penalty: str | float | None = None
    given: Given | None = field(default=None, compare=False)
    track: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[Target, ...] | Criterion:
        """The budgets, or the fixed penalty in place of them."""
        return self.targets if self.penalty is None else parse_penalty(self.penalty)

    def finetune_settings(self) -> FinetuneSettings:
        """The settings with the user's own loss, if there is one.

        Raises:
            InputError: the loss cannot be imported, or a setting is out of range.
        """
        loss: Any = self.loss
        if self.given is not None:
            return replace(FinetuneSettings(**self.settings), **{"loss": loss, **self.given.functions})
        if ":" in self.loss:
            loss = import_reference(self.loss, flag="--loss", error=InputError)
        return FinetuneSettings(loss=loss, **self.settings)

    def _target_text(self) -> str | list[str] | None:
        if self.penalty is not None:
            return None
        if self.family:
            return written(self.family)
        return str(self.targets[0]) if len(self.targets) == 1 else [str(target) for target in self.targets]

    def values(self) -> dict[str, Any]:
        """The request as values of a configuration file; where it goes to is not one of them."""
        settings = FinetuneSettings(**self.settings)
        of_settings = {**asdict(settings), "clip": settings.clip or 0.0}
        named = {
            name: (of_settings["gates"] if option.section == GATES else of_settings)[option.field]
            for name, option in OPTIONS.items()
            if option.field
        }
        arguments = dict(self.source.factory_args)
        about = {
            "model": str(self.source.path),
            "factory": self.source.factory,
            "factory_args": json.dumps(arguments) if arguments else None,
            **({} if self.data is None else data_values(self.data)),
        }
        more = {
            "trust_pickle": self.source.trust_pickle,
            "target": self._target_text(),
            "penalty": self.penalty,
            "loss": self.loss,
            "fixed": self.fixed,
            "track": (list(self.track) if len(self.track) > 1 else next(iter(self.track), None)),
        }
        return complete({**named, **about, **more, "threads": self.threads, "checkpoint_every": self.checkpoint_every})

    def changed(self, changes: Mapping[str, Any]) -> RunRequest:
        """The request with other values of some settings."""
        return request_of({**self.values(), **changes}, output=self.output, given=self.given)


def request_of(values: Mapping[str, Any], *, output: Path | None = None, given: Given | None = None) -> RunRequest:
    """The request that values of a configuration file, or of flags, stand for.

    >>> request = request_of({"model": "net.pt2", "data": "digits", "target": "macs=0.5", "epochs": 8, "clip": 0.0})
    >>> request.settings["epochs"], request.settings["clip"], request_of(request.values()) == request
    (8, None, True)
    >>> [str(target) for target in request.changed({"target": "macs=0.5,0.25"}).family]
    ['macs=0.5', 'macs=0.25']

    Raises:
        InputError: model, data or target is missing, or cannot be read.
    """
    values = complete(values)
    _check_named(values, in_memory=() if given is None else ("model", "data"))
    settings = _fields(values)
    loss = settings.pop("loss")
    targets, family = _targets(values["target"])
    return RunRequest(
        source=ModelSource(
            Path(values["model"]),
            values["factory"],
            values["trust_pickle"],
            parse_factory_args(values["factory_args"]),
        ),
        data=None if values["data"] is None else data_source(values),
        targets=targets,
        loss=loss,
        output=output,
        settings=settings,
        threads=values["threads"],
        checkpoint_every=values["checkpoint_every"],
        fixed=values["fixed"],
        family=family,
        penalty=values["penalty"],
        given=given,
        track=tuple([values["track"]] if isinstance(values["track"], str) else values["track"] or ()),
    )


def _check_named(values: Mapping[str, Any], *, in_memory: tuple[str, ...]) -> None:
    """Raises:
    InputError: model, data or target is missing, or there is a penalty beside a target.
    """
    target, penalty = values["target"], values["penalty"]
    if penalty is not None and target is not None:
        told = target if isinstance(target, str) else " --target ".join(target)
        raise TargetError(
            f"--penalty {penalty} and --target {told}: a fixed penalty stands in place of a budget.",
            fix="Pass one of the two.",
        )
    needed = [name for name in NEEDED if name not in in_memory and (name != "target" or penalty is None)]
    missing = [name for name in needed if values[name] is None]
    if missing:
        named = " and ".join("MODEL" if name == "model" else f"--{name}" for name in missing)
        raise InputError(f"{named} must be given.", fix="Pass it as a flag, or in the file of --config.")


def settings_in(values: Mapping[str, Any]) -> FinetuneSettings:
    """The settings of training in values of a configuration file; a function stays the name of one.

    >>> settings_in({"epochs": 8, "loss": "mine:loss"}).loss
    'mine:loss'
    """
    return FinetuneSettings(**_fields(complete(values)))


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    settings = {option.field: values[name] for name, option in OPTIONS.items() if option.field and not _is_gate(option)}
    gates = {option.field: values[name] for name, option in OPTIONS.items() if _is_gate(option)}
    return {**settings, "clip": settings["clip"] or None, "gates": replace(GateSettings(), **gates)}


def _targets(given: str | list[str] | None) -> tuple[tuple[Target, ...], tuple[Target, ...]]:
    """The budgets that hold together, and those of a family's members; none of a penalty."""
    if given is None:
        return (), ()
    listed = [given] if isinstance(given, str) else list(given)
    families = [text for text in listed if "," in text]
    if not families:
        return targets_of(listed), ()
    if len(listed) > 1:
        raise TargetError(
            f"Target {families[0]!r} names the members of a family, so no other target can stand beside it.",
            fix="Give each member a run of its own, or one target to all of them.",
        )
    family = parse_targets(families[0])
    return (family[-1],), family


def data_source(values: Mapping[str, Any]) -> DataSource:
    """The data that values of a configuration file stand for; a model in a folder brings its own tokenizer.

    Raises:
        DataError: a text among them is malformed.
    """
    normalize = values["normalize"]
    tokenizer = _tokenizer(values)
    return DataSource(
        values["data"],
        seed=values["data_seed"],
        shares=parse_shares(values["split"]),
        stratify=values["stratify"],
        target_column=values["target_column"],
        tokenizer=None if tokenizer is None else Path(tokenizer),
        max_length=values["max_length"],
        image_size=values["image_size"],
        normalize=None if normalize is None else parse_normalize(normalize),
        with_labels=not values["no_labels"],
        workers=values["workers"],
        augment=values["augment"],
        batch_size=values["batch_size"] or _STREAM_BATCH,
    )


def _tokenizer(values: Mapping[str, Any]) -> str | None:
    """The tokenizer that was named, or that the model brings; the model's own is none of data that are no sentences."""
    model, named = values["model"], values["tokenizer"]
    own = model if model is not None and Path(model).is_dir() else None
    if named is not None and str(named) != own:
        return named
    if own is None or kind_of(values["data"], target_column=values["target_column"]) not in ("text", "dataset"):
        return None
    return own


def data_values(source: DataSource) -> dict[str, Any]:
    """The values that :func:`data_source` makes ``source`` of; the size of its batches is the training's.

    >>> source = DataSource("pets", normalize=((0.5,), (0.25,)), shares=(0.8, 0.1, 0.1))
    >>> data_source({**complete({}), **data_values(source)}) == source
    True
    """
    normalize = None if source.normalize is None else "/".join(_listed(side) for side in source.normalize)
    return {
        "data": source.name,
        "data_seed": source.seed,
        "split": _listed(source.shares),
        "stratify": source.stratify,
        "target_column": source.target_column,
        "tokenizer": None if source.tokenizer is None else str(source.tokenizer),
        "max_length": source.max_length,
        "image_size": source.image_size,
        "normalize": normalize,
        "no_labels": not source.with_labels,
        "workers": source.workers,
        "augment": source.augment,
    }


def _listed(numbers: Iterable[float]) -> str:
    return ",".join(map(str, numbers))


def _is_gate(option: Setting) -> bool:
    return option.section == GATES
