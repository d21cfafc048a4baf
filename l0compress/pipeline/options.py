"""Every setting of a run by its name in a configuration file: the settings of training, and what a run has besides.

The keys are the flags of ``l0compress finetune`` with underscores. What no flag sets is a field of
:class:`~l0compress.training.settings.FinetuneSettings` or :class:`~l0compress.training.settings.GateSettings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from l0compress.training.schema import Setting, settings_of
from l0compress.training.settings import FinetuneSettings, GateSettings

TRAINING, GATES, READING = "training", "gates", "reading"
# What a run may be resumed with another value of: training may have broken down over it, or computes the same.
CHANGEABLE = ("lr", "clip", "checkpoint_every", "track", "shard")
TRACKERS = ("tensorboard", "mlflow", "wandb")
_DATA_PANEL, _RUN_PANEL = "Data", "Run"

_MODEL = (
    Setting(
        str,
        key="model",
        needed=True,
        absent="a model file",
        metavar="MODEL",
        help="A .pt2 file of torch.export.save, weights (.pt, .pth, .th, .ckpt, .safetensors) with --factory, an .onnx "
        "file, or a folder of Hugging Face transformers. With --resume: a run folder.",
    ),
    Setting(
        str,
        key="factory",
        absent="none: the model file says what it is",
        metavar="PKG.MOD:FN",
        help="Builds the module that the weights belong to.",
    ),
    Setting(
        str,
        key="factory_args",
        absent="none: keyword arguments of the factory, as a JSON object",
        format="factory_args",
        metavar="JSON",
        help="""Keyword arguments of the factory, such as '{"width": 64}'.""",
    ),
    Setting(
        bool,
        False,
        key="trust_pickle",
        one_way=True,
        help="Allow unpickling, which runs any code that is in the file.",
    ),
    Setting(
        bool,
        False,
        key="fixed",
        one_way=True,
        help="Accept only sequences as long as the data's. By default any length, if MODEL accepts any.",
    ),
    Setting(
        str,
        key="data",
        needed=True,
        absent="what to train on",
        help="'digits', an .npz file (x_train y_train ..., or x y), a folder of images, a .csv, sentences (.tsv), or "
        "PKG.MOD:FN that returns the parts.",
    ),
    Setting(
        str,
        key="target",
        needed=True,
        absent="the budget, such as macs=0.5",
        format="target",
        metavar="UNIT=NUMBER,...",
        many=True,
        help="The budget: params, macs, bytes, int8-bytes (of the file that export --quantize writes) or latency "
        "(measured on this machine), as a fraction of MODEL (macs=0.5) or absolute (params=26500, macs=12M, bytes=1MB, "
        "latency=5ms). Given several times, in units of their own, all hold. Several numbers in one (macs=0.8,0.4) "
        "make a family: one small model for each, from one run.",
    ),
    Setting(
        str,
        key="penalty",
        or_number=True,
        absent="none: a target says how much is left",
        format="penalty",
        metavar="STRENGTH|aic|bic",
        help="In place of --target: a fixed penalty on every parameter that gates keep, as loss for each (1e-6), or as "
        "a criterion weighs it. How much is left is then an outcome.",
    ),
)
_RUNNING = (
    Setting(int, key="threads", absent="chosen by PyTorch", least=1, help="Threads to compute with."),
    Setting(
        int,
        key="checkpoint_every",
        absent="by time: every half minute, or less often if writing is slow",
        least=1,
        metavar="STEPS",
        panel=_RUN_PANEL,
        help="Steps between two checkpoints to resume from.",
    ),
    Setting(
        str,
        key="track",
        absent="none",
        names=TRACKERS,
        or_reference=True,
        many=True,
        metavar="NAME",
        panel=_RUN_PANEL,
        help="Log loss, score, density and rates to tensorboard, mlflow or wandb, or to what PKG.MOD:FN of (run, "
        "folder) returns. May be given several times.",
    ),
)
_READING = (
    Setting(
        str,
        key="target_column",
        absent="none: required for tables",
        metavar="NAME",
        help="The column of a .csv to predict.",
    ),
    Setting(
        str,
        key="tokenizer",
        absent="the model's own folder",
        metavar="FOLDER",
        help="Folder of the tokenizer for sentences.",
    ),
    Setting(int, key="max_length", absent="the longest sentence, up to 128", least=2, help="Tokens a sentence."),
    Setting(
        int,
        key="image_size",
        absent="images must have the same size",
        least=1,
        help="Resize images to this height and width.",
    ),
    Setting(
        str,
        key="normalize",
        absent="not at all",
        format="normalize",
        metavar="MEAN/STD",
        help="Of each channel of images: 0.5,0.5,0.5/0.2,0.2,0.2, or imagenet.",
    ),
    Setting(
        str,
        key="augment",
        absent="not at all",
        format="augment",
        metavar="PKG.MOD:FN",
        help="Changes training images at random: a transform of a tensor or PIL image, as of torchvision or timm.",
    ),
    Setting(
        bool,
        False,
        key="no_labels",
        one_way=True,
        help="Ignore the labels: the dense model is the only teacher.",
    ),
    Setting(
        str,
        "0.6,0.2,0.2",
        key="split",
        format="split",
        metavar="TRAIN,VAL,TEST",
        help="Shares of the parts, if the data are a single set.",
    ),
    Setting(
        bool,
        False,
        key="stratify",
        one_way=True,
        help="Give each part its share of every class, to within one sample.",
    ),
    Setting(int, 0, key="data_seed", least=0, help="Of the data's parts."),
    Setting(int, 0, key="workers", least=0, help="That decode images."),
)


def _rows() -> Iterator[Setting]:
    training = list(settings_of(FinetuneSettings, section=TRAINING))
    yield from _MODEL
    yield from (row for row in training if not row.section)
    yield from _RUNNING
    yield from (row for row in training if row.section)
    yield from settings_of(GateSettings, section=GATES)
    yield from (replace(row, section=READING, panel=_DATA_PANEL) for row in _READING)


OPTIONS: dict[str, Setting] = {row.key: row for row in _rows()}
