"""Data as people hand them over: each form works, or is refused in one sentence that says what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_cli, save_pt2
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from l0compress.data import Data, DatasetSplit, Split, StreamSplit
from l0compress.errors import DataError
from l0compress.loading import DataSource, as_data, load_data
from l0compress.pipeline.compress import compress
from l0compress.pipeline.requests import request_of
from l0compress.pipeline.sources import prepare
from l0compress.training.settings import FinetuneSettings

N = 60
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = np.arange(N) % 2
TX, TY = torch.from_numpy(X), torch.from_numpy(Y)


def net() -> nn.Module:
    """3 inputs, 8 hidden units, 2 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


class Named(nn.Module):
    """As models of transformers are called: by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.inner(values * scale)


class Samples(Dataset):
    """Samples that exist only when they are asked for."""

    def __init__(self, wrap: Callable[[int], Any] = lambda i: (X[i], int(Y[i])), count: int = N, **more: Any) -> None:
        self.wrap, self.count = wrap, count
        self.__dict__.update(more)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Any:
        return self.wrap(position)


class Endless:
    """Neither a data set nor a list: batches again and again."""

    def __iter__(self):
        return iter([(X[:30], Y[:30]), (X[30:], Y[30:])])


class Columns:
    """As a data set of Hugging Face is: a list of dicts that knows its columns."""

    def __init__(self) -> None:
        self.column_names = ["values", "scale", "label"]

    def __len__(self) -> int:
        return N

    def __getitem__(self, key: int | str) -> Any:
        if key == "label":
            return Y.tolist()
        return {"values": X[key].tolist(), "scale": [1.0], "label": int(Y[key])}


class Stream(IterableDataset):
    """Samples one after the other."""

    def __iter__(self):
        return iter([(X[i], int(Y[i])) for i in range(N)])


class Frame:
    """What NumPy can read, as data frames are."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        del copy
        return self.array if dtype is None else self.array.astype(dtype)


def read_only(array: np.ndarray) -> np.ndarray:
    copied = array.copy()
    copied.flags.writeable = False
    return copied


LOADER = DataLoader(TensorDataset(TX, TY), batch_size=10, shuffle=True)
VAL = (X[:20], Y[:20])
# The name, the data, and the samples of the three parts.
ONE_PIECE = (36, 12, 12)
WORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "two arrays": ((X, Y), ONE_PIECE),
    "two tensors": ((TX, TY), ONE_PIECE),
    "two arrays in a list": ([X, Y], ONE_PIECE),
    "two lists": ((X.tolist(), Y.tolist()), ONE_PIECE),
    "frames": ((Frame(X), Frame(Y)), ONE_PIECE),
    "double precision": ((X.astype(np.float64), Y), ONE_PIECE),
    "another byte order": ((X.astype(">f4"), Y.astype(">i4")), ONE_PIECE),
    "reversed arrays": ((X[::-1], Y[::-1]), ONE_PIECE),
    "arrays that must not be written to": ((read_only(X), read_only(Y)), ONE_PIECE),
    "int32 labels": ((X, Y.astype(np.int32)), ONE_PIECE),
    "uint8 labels": ((X, Y.astype(np.uint8)), ONE_PIECE),
    "yes and no": ((X, Y.astype(bool)), ONE_PIECE),
    "inputs alone": (X, ONE_PIECE),
    "a dict of arrays": ({"x": X, "y": Y}, ONE_PIECE),
    "a Split": (Split((TX,), TY), ONE_PIECE),
    "a list of samples": ([(X[i], int(Y[i])) for i in range(N)], ONE_PIECE),
    "a list of samples with tensors for labels": ([(TX[i], TY[i]) for i in range(N)], ONE_PIECE),
    "a Dataset": (Samples(), ONE_PIECE),
    "a Dataset of tensors": (TensorDataset(TX, TY), ONE_PIECE),
    "a Subset": (Subset(Samples(), range(50)), (30, 10, 10)),
    "a loader": (LOADER, (55, 5)),
    "a loader of double precision and int32 labels": (
        DataLoader(TensorDataset(TX.double(), TY.int()), batch_size=10),
        (55, 5),
    ),
    "a loader in order": (DataLoader(Samples(), batch_size=10), (55, 5)),
    "a loader of samples one by one": (DataLoader(Samples(), batch_size=1), (55, 5)),
    "parts of loaders": ({"train": LOADER, "val": DataLoader(TensorDataset(TX, TY), batch_size=7)}, (60, 60)),
    "parts of everything": ({"train": Samples(), "validation": VAL, "test": [VAL, VAL]}, (60, 20, 40)),
    "a training part alone": ({"train": (X, Y)}, (55, 5)),
    "a loader of arrays": ({"train": Endless(), "val": VAL}, (60, 20)),
    "an iterable data set": ({"train": Stream(), "val": VAL}, (60, 20)),
    "parts of random_split": (
        dict(zip(("train", "val"), random_split(TensorDataset(TX, TY), [40, 20]), strict=True)),
        (40, 20),
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_it_works(name):
    given, sizes = WORKS[name]
    prepared = prepare(net(), given)
    parts = prepared.data.parts()
    assert tuple(len(split) for split in parts.values()) == sizes
    values = []
    for split in parts.values():
        for batch in split.batches(16, seed=0):
            (x,) = (*batch.args, *batch.kwargs.values())
            assert x.dtype == torch.float32
            assert prepared.graph.module()(x).shape == (len(batch), 2)
            if name != "inputs alone":
                assert batch.targets.dtype == torch.int64
                values += [(row[0], label) for row, label in zip(x.tolist(), batch.targets.tolist(), strict=True)]
    known = {(row[0], label) for row, label in zip(X.tolist(), Y.tolist(), strict=True)}
    assert set(values) <= known and (len(set(values)) == N or name in ("inputs alone", "a Subset"))


@pytest.mark.parametrize(
    "given",
    [
        ({"values": X, "scale": np.ones((N, 1))}, Y),
        {"values": X, "scale": np.ones((N, 1)), "labels": Y},
        (X, np.ones((N, 1), np.float32), Y),
        ((TX, torch.ones(N, 1)), TY),
        TensorDataset(TX, torch.ones(N, 1), TY),
        Columns(),
        DataLoader(TensorDataset(TX, torch.ones(N, 1), TY), batch_size=10),
        DataLoader(Columns(), batch_size=10, collate_fn=lambda rows: {
            "values": torch.tensor([row["values"] for row in rows]), "scale": torch.ones(len(rows), 1),
            "label": torch.tensor([row["label"] for row in rows])}),
    ],
)  # fmt: skip
def test_several_inputs_by_position_or_by_name(given):
    data = prepare(Named(), given).data
    assert sum(map(len, data.parts().values())) == N
    for split in data.parts().values():
        counts = torch.cat([batch.targets for batch in split.batches(8)]).bincount()
        assert abs(int(counts[0]) - int(counts[1])) <= 1


@pytest.mark.parametrize(
    ("dataset", "known"),
    [
        (Samples(targets=Y.tolist()), True),
        (Samples(labels=TY), True),
        (Subset(Samples(targets=Y), [4, 1, 3]), True),
        (Columns(), True),
        (Samples(), False),
        (Samples(targets=Y.tolist(), target_transform=lambda y: 1 - y), False),
        (Samples(targets=X), False),
        (Samples(targets=["a"] * N), False),
    ],
)
def test_labels_that_a_data_set_tells_make_its_parts_alike(dataset, known):
    split = as_data({"train": dataset, "val": VAL}, name="data").train
    assert isinstance(split, DatasetSplit) and (split.labels is not None) == known
    if known:
        indices = range(len(dataset)) if not isinstance(dataset, Subset) else dataset.indices
        assert split.labels.tolist() == [int(Y[i]) for i in indices]


def test_a_data_set_is_read_anew_each_epoch_and_shuffled_by_the_seed():
    split = as_data({"train": Samples(), "val": VAL}, name="data").train
    first, again, other = ([batch.args[0] for batch in split.batches(8, seed=seed)] for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    assert [len(batch) for batch in split.batches(8, drop_last=True)] == [8] * 7


def test_a_loader_gives_its_validation_part_and_keeps_its_ways():
    loader = DataLoader(Samples(targets=Y), batch_size=10, shuffle=True, drop_last=True, num_workers=0)
    data = as_data(loader, name="data")
    train, val = data.train.source, data.val.source
    assert (train.batch_size, train.drop_last, val.drop_last, len(train.dataset), len(val.dataset)) == (
        10, True, False, 55, 5,
    )  # fmt: skip
    assert set(train.dataset.indices).isdisjoint(val.dataset.indices) and len(loader.dataset) == N


def test_compress_trains_on_arrays():
    result = compress(net(), (X, Y), target="params=0.8", settings=FinetuneSettings(epochs=2))
    assert result.reached <= 40 and result.test is not None and result.test.small.num_samples == 12


def uneven(rows: list[Any]) -> Any:
    raise AssertionError(f"a collate_fn broke on {len(rows)} sample")


KEEPS = "Nothing was changed. "
NUMBERS = "Encode classes with numpy.unique(y, return_inverse=True)[1], sentences with a tokenizer."
REFUSED: dict[str, tuple[Any, str]] = {
    "a number": (3, "'data' must return Data or a dict with 'train', 'val' and optionally 'test', but returns "
        "int. " + KEEPS + "Return for example {'train': (x, y)}."),
    "an empty dict": ({}, "'data' must return Data or a dict with 'train', 'val' and optionally 'test', but returns "
        "dict. " + KEEPS + "Return for example {'train': (x, y)}."),
    "a dict without a training part": ({"val": VAL}, "'data' must return Data or a dict with 'train', 'val' and "
        "optionally 'test', but returns dict. " + KEEPS + "Return for example {'train': (x, y)}."),
    "a part of another name": ({"train": VAL, "holdout": VAL}, "'data' gives an unknown part 'holdout'; the parts are "
        "train, val, test. " + KEEPS + "Rename it."),
    "a part that is none": ({"train": VAL, "val": 3}, "In the val part: A part is int, but must be arrays (x, y), a "
    "Dataset, a DataLoader or a list of samples. " + KEEPS + "Write for example {'train': (x, y)}."),
    "a part that is missing": ({"train": VAL, "val": None}, "In the val part: A part is NoneType, but must be arrays "
    "(x, y), a Dataset, a DataLoader or a list of samples. " + KEEPS + "Write for example {'train': (x, y)}."),
    "labels that are texts": ((X, np.array(["cat", "dog"] * 30)), "In 'data': the target holds text, but numbers are "
    "needed. " + KEEPS + NUMBERS),
    "inputs that are texts": ({"train": (["a film"] * N, Y)}, "In the train part: input 0 holds text, but numbers are "
    "needed. " + KEEPS + NUMBERS),
    "rows of different lengths": (([[1.0], [1.0, 2.0]] * 30, Y), "In 'data': input 0 is a list whose rows have "
        "different lengths. " + KEEPS + "Pad them to one length."),
    "objects": ((np.array([object()] * N), Y), "In 'data': input 0 holds objects, but numbers are needed. " + KEEPS
        + NUMBERS),
    "something else for inputs": ({"train": (Named(), Y)}, "In the train part: input 0 is a Named, but numbers are "
    "needed. " + KEEPS + NUMBERS),
    "another number of labels": ((X, Y[:-1]), "In 'data': Inputs and targets have different numbers of samples (input "
        "0: 60, the targets: 59). " + KEEPS + "Give one target for each sample."),
    "a label alone": ((X, np.array(1)), "In 'data': A part has a single number for the targets. " + KEEPS
        + "Give one per sample."),
    "no samples": ((X[:0], Y[:0]), "In 'data': The data has no samples."),
    "an empty list": ({"train": [], "val": VAL}, "In the train part: The data has no samples."),
    "an empty loader": ({"train": LOADER, "val": DataLoader(TensorDataset(TX[:0], TY[:0]))}, "In the val part: The "
        "data has no samples."),
    "an empty Dataset": ({"train": Samples(count=0), "val": VAL}, "In the train part: The data has no samples."),
    "one sample": ((X[:1], Y[:1]), "Data 'data' has 1 samples, too few to split into three parts. " + KEEPS
        + "Give it more samples, or parts of its own."),
    "a training part of one sample": ({"train": DataLoader(TensorDataset(TX[:1], TY[:1])), "val": VAL},
        "The training part has 1 sample, and at least 3 are needed. " + KEEPS + "Give it more samples."),
    "a generator": ({"train": ((X, Y) for _ in range(3)), "val": VAL}, "In the train part: The data is an iterator "
        "that is used up after one epoch. Give a DataLoader or a list of batches."),
    "an iterable data set alone": (Stream(), "'data' is a Stream, which has no random access, so no part can be split "
    "off. " + KEEPS + "Give parts: {'train': DataLoader(dataset, batch_size=64), 'val': ...}."),
    "batches alone": ([(X, Y), (X, Y)], "Data 'data' streams its training part and has no 'val' part. " + KEEPS
        + "Add one: decisions are made on it."),
    "a loader of weighted samples alone": (
        DataLoader(TensorDataset(TX, TY), sampler=WeightedRandomSampler([1.0] * N, N)),
        "Data 'data' streams its training part and has no 'val' part. " + KEEPS + "Add one: decisions are made on it."),
    "batches without a length in common": ({"train": [(X[:9], Y[:8])], "val": VAL}, "In the train part: A batch has "
        "different numbers of samples (input 0: 9, the targets: 8). " + KEEPS + "Give one target for each sample."),
    "a batch of other numbers": ({"train": [(X, Y), (X.astype(np.int64), Y)], "val": VAL}, "In the train part: Batch "
    "1 of the data has whole numbers of 2 dimensions for input 0, but the first batch has decimal numbers of 2 "
    "dimensions. " + KEEPS + "Give batches of the same form."),
    "a batch without labels": ({"train": [(X, Y), (X,)], "val": VAL}, "In the train part: Batch 1 of the data has "
    "nothing for the target, but the first batch has whole numbers of 1 dimensions. " + KEEPS
        + "Give batches of the same form."),
    "batches that are none": ({"train": ["ab"], "val": VAL}, "In the train part: The data yields str, which is not a "
    "batch. Yield (x, y), (x1, x2, y), ((x1, x2), y), ({'name': x}, y), a tensor, or a dict of tensors."),
    "a loader that fails": ({"train": DataLoader(TensorDataset(TX, TY), collate_fn=uneven), "val": VAL}, "Reading the "
        "train part, a DataLoader, fails (AssertionError: a collate_fn broke on 1 sample). " + KEEPS
        + "Check that one pass over it works: for batch in data: ..."),
    "samples of different sizes": ([(X[i, : 1 + i % 2], 0) for i in range(N)], "In 'data': input 0 has samples of "
        "different shapes, (1,) and (2,). " + KEEPS + "Resize them to one size, or give a DataLoader with a "
        "collate_fn that pads them."),
    "samples of which some have no label": ([(X[0], 1), (X[1],)] * 30, "In 'data': The samples do not all have the "
    "same inputs, or some lack a target. " + KEEPS + "Give all of them the same ones."),
    "a training part of one class": ((X, Y * 0), "All samples of the train part are of class 0: there is nothing to "
    "distinguish. " + KEEPS + "Give samples of the other classes (shuffle data sorted by class before you split "
    "them), or pass --no-labels to learn only from the dense model."),
    "labels beyond the model's classes": ((X, Y + 1), "Label 2 of sample 0 in the train part is out of range: the "
        "model has 2 outputs, so labels are 0 to 1. " + KEEPS + "Give labels of the model's classes; -100 leaves a "
        "sample out."),
    "a tensor where inputs are expected": (lambda: Split(TX, TY), "The inputs of a part are Tensor, but must be a "
    "tuple or a dict. " + KEEPS + "Pass (x,) for x."),
    "a loader where a part is expected": (lambda: Data(LOADER, LOADER), "The train part is DataLoader, but must be a "
    "Split or a StreamSplit. " + KEEPS + "Write Split((x,), y) for tensors, and StreamSplit(loader) for a loader."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_sentence(name):
    given, message = REFUSED[name]
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        prepare(net(), given() if callable(given) and not isinstance(given, Dataset) else given)


def test_pixels_of_whole_numbers():
    message = (
        r"^The model cannot run on input 0 of uint8 \(RuntimeError: .+\), but can on float32\. Nothing was changed\. "
        r"Write x\.float\(\) / 255 for pixels, or what the model was trained on\.$"
    )
    with pytest.raises(DataError, match=message):
        prepare(net(), ((X * 10).astype(np.uint8), Y))


def test_a_validation_loader_of_another_shape():
    message = (
        r"^The model cannot run on the val part \(RuntimeError: .+\)\. Its samples have the shape \(4,\), those of the "
        r"train part \(3,\)\. Nothing was changed\. Give all parts the shape that the model takes\.$"
    )
    val = DataLoader(TensorDataset(torch.zeros(8, 4), TY[:8]), batch_size=4)
    with pytest.raises(DataError, match=message):
        prepare(net(), {"train": LOADER, "val": val})


class Drawn(Dataset):
    """Samples that are drawn at random where they are read, in a worker."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3), position % 2


def test_workers_that_live_on_draw_the_same_samples_for_the_same_seed():
    loader = DataLoader(Drawn(), batch_size=4, num_workers=1, persistent_workers=True)
    split = StreamSplit(loader, num_samples=8)
    whole = [[batch.args[0] for batch in split.batches(4, seed=seed)] for seed in (1, 2)]
    resumed = [batch.args[0] for batch in StreamSplit(loader, num_samples=8).batches(4, seed=2)]
    assert all(map(torch.equal, whole[1], resumed)) and not torch.equal(whole[0][0], whole[1][0])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of every kind of data, in the working directory."""
    monkeypatch.chdir(tmp_path)
    np.savez("whole.npz", x=X, y=Y)
    np.savez("parts.npz", x_train=X, y_train=Y)
    Path("table.csv").write_text("size,hue\n" + "1.5,red\n2.5,blue\n" * 20)
    Path("pictures/cat").mkdir(parents=True)
    (Path("pictures/cat") / "1.png").write_bytes(b"never opened")
    Path("sentences").mkdir()
    Path("sentences/train.tsv").write_text("0 a film\n")
    return tmp_path


def given() -> tuple[np.ndarray, np.ndarray]:
    """What ``--data test_misuse_data:given`` calls."""
    return X, Y


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "whole.npz": ({"tokenizer": "there"}, "--tokenizer is for sentences, but data 'whole.npz' is arrays."),
    "parts.npz": ({"workers": 2}, "--workers is for a folder of images, but data 'parts.npz' is arrays."),
    "digits": ({"target_column": "y"}, "--target-column is for a table, but data 'digits' is the digits."),
    "table.csv": ({"image_size": 8}, "--image-size is for a folder of images, but data 'table.csv' is a table."),
    "pictures": ({"max_length": 8}, "--max-length is for sentences, but data 'pictures' is a folder of images."),
    "sentences": (
        {"normalize": ((0.5,), (0.5,))},
        "--normalize is for a folder of images, but data 'sentences' is sentences.",
    ),
    "test_misuse_data:given": (
        {"image_size": 8},
        "--image-size is for a folder of images, but data 'test_misuse_data:given' is a function of yours.",
    ),
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", OTHERS)
def test_an_option_of_another_kind_of_data(name):
    options, message = OTHERS[name]
    with pytest.raises(DataError, match=f"^{re.escape(message)} Nothing was changed\\. Omit it\\.$"):
        load_data(DataSource(name, **options))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", ["parts.npz", "sentences"])
def test_shares_of_what_has_parts_already(name):
    message = (
        f"--split is for a single set of data, but data '{name}' already has parts. Nothing was changed. Omit "
        "it, or give a single set."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load_data(DataSource(name, tokenizer="." if name == "sentences" else None, shares=(0.8, 0.1, 0.1)))


def test_shares_of_what_a_function_gives_in_one_piece():
    data = load_data(DataSource("test_misuse_data:given", shares=(0.5, 0.5, 0.0)))
    assert [len(split) for split in data.parts().values()] == [30, 30]


@pytest.mark.usefixtures("files")
def test_the_command_line_says_the_same():
    save_pt2(net(), (torch.zeros(2, 3),), Path("net.pt2"))
    usual = ("finetune", "net.pt2", "--data", "parts.npz", "--target", "params=0.8", "-o", "run")
    outcome = run_cli(*usual, "--image-size", "8")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "Error: --image-size is for a folder of images, but data 'parts.npz' is arrays. Nothing was changed. Omit "
        "it.\n",
    )
    assert not Path("run").exists()
    outcome = run_cli("inspect", "net.pt2", "--image-size", "8")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "Error: --image-size applies to --data, but there is no --data. Nothing was changed. Give the data too, or "
        "omit it.\n",
    )


def test_the_tokenizer_of_a_model_folder_is_none_of_arrays(files):
    values = {"model": str(files / "sentences"), "target": "macs=0.5"}
    assert request_of({**values, "data": "whole.npz"}).data.tokenizer is None
    # As the configuration of a run has it that began before.
    assert request_of({**values, "data": "whole.npz", "tokenizer": str(files / "sentences")}).data.tokenizer is None
    assert request_of({**values, "data": "sentences"}).data.tokenizer == files / "sentences"


def test_dropout_of_the_inputs_is_a_flag():
    printed = run_cli("finetune", "--input-dropout", "0.25", "--print-config").stdout
    assert "input_dropout = 0.25" in printed.splitlines()
    outcome = run_cli("finetune", "--input-dropout", "1", "--print-config")
    assert outcome.exit_code == 2 and outcome.stderr.startswith(
        "Error: --input-dropout = 1.0: expected 0 or more and below 1. Nothing was changed."
    )


def test_labels_of_a_stream_are_left_out(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "streamed.py").write_text(
        "import torch\nx, y = torch.zeros(8, 3), torch.zeros(8, dtype=torch.int64)\n"
        "def parts():\n    return {'train': [(x, y), (x, y)], 'val': [(x, y)]}\n"
    )
    data = prepare(net(), DataSource("streamed:parts", with_labels=False)).data
    assert [batch.targets for split in data.parts().values() for batch in split.batches(4)] == [None] * 3
