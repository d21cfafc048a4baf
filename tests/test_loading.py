"""From files, names and flags to objects."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_blobs, save_pt2, tiny_mlp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.export import ExportedProgram

from l0compress.data import Data, Split, StreamSplit
from l0compress.errors import DataError, ModelError
from l0compress.loading import check_labels, check_values, fit_data, load_data, load_model
from l0compress.loading.datasets import as_data, digits

FACTORY = "conftest:tiny_mlp"


class Trap:
    """Unpickling an instance of this runs code: it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def same_function(left: nn.Module, right: nn.Module) -> bool:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    return torch.equal(left(x), right(x))


class TestModels:
    def test_an_exported_archive(self, mlp_pt2, mlp):
        program = load_model(mlp_pt2)
        assert isinstance(program, ExportedProgram)
        assert same_function(program.module(), mlp)

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
    def test_weights_with_a_factory(self, tmp_path, suffix):
        trained = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        path = tmp_path / f"weights{suffix}"
        torch.save(trained.state_dict(), path)
        loaded = load_model(path, factory=FACTORY)
        assert isinstance(loaded, nn.Module) and not loaded.training
        assert same_function(loaded, trained)

    def test_safetensors_with_a_factory(self, tmp_path):
        trained = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        save_file(trained.state_dict(), tmp_path / "weights.safetensors")
        assert same_function(load_model(tmp_path / "weights.safetensors", factory=FACTORY), trained)

    @pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
    def test_a_training_checkpoint_is_unwrapped(self, tmp_path, key):
        trained = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        weights = {f"module.{name}": value for name, value in trained.state_dict().items()}
        torch.save({key: weights, "epoch": 3}, tmp_path / "checkpoint.pt")
        assert same_function(load_model(tmp_path / "checkpoint.pt", factory=FACTORY), trained)

    def test_a_pickled_module_is_not_unpickled_unless_trusted(self, tmp_path):
        path, sprung = tmp_path / "module.pt", tmp_path / "sprung"
        torch.save({"model": tiny_mlp(), "trap": Trap(sprung)}, path)
        message = f"Model {str(path)!r} is a pickled object; loading it would run code from the file. Nothing was"
        with pytest.raises(ModelError, match=re.escape(message)):
            load_model(path)
        assert not sprung.exists()

    def test_a_trusted_pickled_module(self, tmp_path, mlp):
        torch.save(mlp, tmp_path / "module.pt")
        loaded = load_model(tmp_path / "module.pt", trust_pickle=True)
        assert isinstance(loaded, nn.Module) and same_function(loaded, mlp)

    @pytest.mark.parametrize("where", ["sample inputs", "weights"])
    def test_an_archive_with_a_pickle_inside_is_not_unpickled(self, tmp_path, mlp_pt2, where):
        bad, sprung = tmp_path / "bad.pt2", tmp_path / "sprung"
        with zipfile.ZipFile(mlp_pt2) as source, zipfile.ZipFile(bad, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if where == "sample inputs" and "sample_inputs" in name:
                    content = pickle.dumps(Trap(sprung))
                if where == "weights" and name.endswith("weights_config.json"):
                    config = json.loads(content)
                    config["config"]["0.weight"]["use_pickle"] = True
                    content = json.dumps(config).encode()
                if where == "weights" and name.endswith("weights/weight_0"):
                    content = pickle.dumps(Trap(sprung))
                target.writestr(name, content)
        with pytest.raises(
            ModelError, match=r"has parts that would run code, or .* when loaded .* pass --trust-pickle\.$"
        ):
            load_model(bad)
        assert not sprung.exists()

    def test_a_missing_file(self):
        with pytest.raises(
            ModelError,
            match=r"^Cannot read model 'nowhere\.pt2': no such file\. Nothing was changed\. Check the path\.$",
        ):
            load_model("nowhere.pt2")

    @pytest.mark.parametrize("name", ["noise.pt2", "noise.pt", "noise.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"no model at all"])
    def test_an_unreadable_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"^Cannot read model '.*noise\.\w+'"):
            load_model(tmp_path / name, factory=FACTORY)

    def test_an_unknown_kind_of_file(self, tmp_path):
        (tmp_path / "model.h5").touch()
        with pytest.raises(ModelError, match=r"save, a \.jit file of TorchScript, weights \("):
            load_model(tmp_path / "model.h5")

    def test_weights_without_a_factory(self, tmp_path, mlp):
        torch.save(mlp.state_dict(), tmp_path / "weights.pt")
        with pytest.raises(
            ModelError, match=r"holds weights, not a module\. Name the function that builds the module: --factory"
        ):
            load_model(tmp_path / "weights.pt")

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            ("conftest", "--factory 'conftest' does not have the form package.module:function."),
            ("nowhere:f", "--factory 'nowhere:f': module 'nowhere' cannot be imported (ModuleNotFoundError: "),
            ("conftest:nothing", "--factory 'conftest:nothing': module 'conftest' has no 'nothing'."),
            ("math:pi", "--factory 'math:pi' names a float, which cannot be called."),
            ("math:sqrt", "--factory 'math:sqrt' failed when it was called (TypeError: "),
            ("builtins:dict", "--factory 'builtins:dict' returned a dict, not a torch.nn.Module."),
        ],
    )
    def test_a_bad_factory(self, tmp_path, mlp, factory, message):
        torch.save(mlp.state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ModelError, match="^" + re.escape(message)):
            load_model(tmp_path / "weights.pt", factory=factory)

    def test_weights_of_another_shape(self, tmp_path):
        torch.save(nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ModelError, match=r"'0\.weight' is \(7, 8\) in the file and \(6, 8\) in the module"):
            load_model(tmp_path / "weights.pt", factory=FACTORY)

    def test_weights_of_another_module(self, tmp_path):
        torch.save(nn.Linear(8, 6).state_dict(), tmp_path / "weights.pt")
        message = (
            "the file lacks '0.bias', '0.weight', '2.bias' (4 in all); the module lacks 'bias', 'weight' (2 in all)."
        )
        with pytest.raises(ModelError, match=re.escape(message)):
            load_model(tmp_path / "weights.pt", factory=FACTORY)

    def test_a_factory_is_found_in_the_working_directory(self, tmp_path, monkeypatch, mlp):
        (tmp_path / "my_nets.py").write_text("from conftest import tiny_mlp as build\n")
        torch.save(mlp.state_dict(), tmp_path / "weights.pt")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert isinstance(load_model("weights.pt", factory="my_nets:build"), nn.Module)


class TestData:
    def test_digits_are_split_once_and_for_all(self):
        data, again = load_data("digits", seed=3), load_data("digits", seed=3)
        assert [len(split) for split in data.parts().values()] == [1078, 359, 360]
        (x,) = data.train.take(slice(0, 4)).args
        assert x.shape == (4, 1, 8, 8) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
        assert torch.equal(data.test.targets, again.test.targets)
        assert not torch.equal(data.test.targets, load_data("digits", seed=4).test.targets)

    def test_digits_are_those_of_scikit_learn(self):
        datasets = pytest.importorskip("sklearn.datasets")
        pixels, targets = datasets.load_digits(return_X_y=True)
        images, labels = digits()
        assert torch.equal(images * 16, torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8))
        assert torch.equal(labels, torch.tensor(targets))

    def test_digits_need_no_scikit_learn(self, monkeypatch):
        for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "sklearn", None)
        assert len(load_data("digits").train) == 1078

    def test_npz_with_parts_gets_a_validation_part_off_the_training_part(self, blobs_npz):
        data = load_data(blobs_npz)
        assert {part: len(split) for part, split in data.parts().items()} == {"train": 110, "val": 10, "test": 60}
        stored = np.load(blobs_npz)
        together = torch.cat([data.train.inputs[0], data.val.inputs[0]])
        assert sorted(together.sum(1).tolist()) == sorted(torch.from_numpy(stored["x_train"]).sum(1).tolist())
        assert torch.equal(data.test.inputs[0], torch.from_numpy(stored["x_test"]))

    def test_npz_of_one_piece_is_split_in_three(self, tmp_path):
        np.savez(tmp_path / "all.npz", x=np.arange(50.0).reshape(50, 1), y=np.arange(50))
        data = load_data(str(tmp_path / "all.npz"))
        assert {part: len(split) for part, split in data.parts().items()} == {"train": 30, "val": 10, "test": 10}
        assert sorted(int(t) for split in data.parts().values() for t in split.targets) == list(range(50))

    def test_bytes_become_floats_between_0_and_1_and_floats_stay(self, tmp_path):
        np.savez(tmp_path / "bytes.npz", x_train=np.full((24, 2), 255, np.uint8), y_train=np.zeros(24, np.uint8))
        np.savez(tmp_path / "floats.npz", x_train=np.full((24, 2), 255, np.float32), y_train=np.zeros(24))
        assert load_data(str(tmp_path / "bytes.npz")).train.inputs[0].unique().tolist() == [1.0]
        assert load_data(str(tmp_path / "floats.npz")).train.inputs[0].unique().tolist() == [255.0]

    def test_whole_labels_are_classes_and_floating_labels_are_for_regression(self, tmp_path):
        np.savez(tmp_path / "a.npz", x_train=np.zeros((24, 2)), y_train=np.zeros(24, np.uint8))
        np.savez(tmp_path / "b.npz", x_train=np.zeros((24, 2)), y_train=np.zeros(24))
        assert load_data(str(tmp_path / "a.npz")).train.targets.dtype == torch.int64
        assert load_data(str(tmp_path / "b.npz")).train.targets.dtype == torch.float32

    def test_a_function_may_return_tensors_or_loaders_or_data(self):
        pair = (torch.zeros(12, 2), torch.zeros(12))
        assert isinstance(as_data({"train": pair, "val": pair}, name="f").train, Split)
        batches = [(torch.zeros(4, 2), torch.zeros(4))] * 3
        assert isinstance(as_data({"train": batches, "val": batches}, name="f").train, StreamSplit)
        data = Data(Split(pair[:1]), Split(pair[:1]))
        assert as_data(data, name="f") is data

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"z": np.zeros(3)}, "holds z. It needs x_train and y_train, or x and y."),
            ({"x_train": np.zeros((5, 2)), "y_train": np.zeros(5)}, "has 5 training samples, too few to split"),
            ({"x_train": np.zeros((0, 2)), "y_train": np.zeros(0)}, "x_train: The data has no samples."),
            ({"x_train": np.zeros((9, 2)), "y_train": np.zeros(8)}, "x_train: Inputs and targets have different numb"),
            ({"x_train": np.array(["a"]), "y_train": np.zeros(1)}, "x_train is <U1 of shape (1,); an array of numbers"),
        ],
    )
    def test_an_npz_that_does_not_hold_data(self, tmp_path, arrays, message):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(DataError, match=re.escape(message)):
            load_data(str(tmp_path / "bad.npz"))

    def test_an_npz_with_pickled_objects_is_refused(self, tmp_path):
        sprung = tmp_path / "sprung"
        np.savez(tmp_path / "bad.npz", x_train=np.array([Trap(sprung)], dtype=object))
        with pytest.raises(
            DataError, match=r"^Cannot read data .*bad\.npz, x_train': it holds Python objects, and load"
        ):
            load_data(str(tmp_path / "bad.npz"))
        assert not sprung.exists()

    @pytest.mark.parametrize("content", [b"", b"no archive"])
    def test_an_unreadable_npz(self, tmp_path, content):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"^Cannot read data .*bad\.npz' as an \.npz file"):
            load_data(str(tmp_path / "bad.npz"))

    def test_missing_or_unknown_data(self):
        with pytest.raises(
            DataError, match=r"^Cannot read data 'nowhere\.npz': no such file\. Nothing was changed\. Check the path\.$"
        ):
            load_data("nowhere.npz")
        with pytest.raises(DataError, match=r"^Cannot read data 'table\.xls': data is 'digits', an \.npz file or"):
            load_data("table.xls")


class TestFit:
    @pytest.mark.parametrize(
        ("sample", "wanted", "model"),
        [
            ((4, 4), (1, 4, 4), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))),
            ((4, 4), (16,), nn.Linear(16, 3)),
            ((1, 4, 4), (16,), nn.Linear(16, 3)),
            ((4, 4), (4, 4), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))),
        ],
    )
    @pytest.mark.parametrize("exported", [False, True])
    def test_a_sample_is_reshaped_only_to_what_the_model_takes(self, tmp_path, sample, wanted, model, exported):
        part = Split((torch.rand(6, *sample),), torch.zeros(6, dtype=torch.int64))
        save_pt2(model, (torch.zeros(2, *wanted),), tmp_path / "model.pt2")
        fitted = fit_data(Data(part, part, part), load_model(tmp_path / "model.pt2") if exported else model)
        assert {tuple(split.inputs[0].shape) for split in fitted.parts().values()} == {(6, *wanted)}
        assert torch.equal(fitted.train.inputs[0].flatten(), part.inputs[0].flatten())

    def test_data_of_the_wrong_shape(self, mlp, mlp_pt2):
        part = Split((torch.rand(6, 5),))
        with pytest.raises(DataError, match=r"^The model cannot run on samples of shape \(5,\) \(RuntimeError: mat1"):
            fit_data(Data(part, part), mlp)
        message = "The model was exported for samples of shape (8,), but the data has (5,)."
        with pytest.raises(DataError, match=re.escape(message)):
            fit_data(Data(part, part), load_model(mlp_pt2))

    def test_double_precision_data_follows_the_model(self, mlp):
        part = Split((torch.rand(6, 8, dtype=torch.float64),))
        assert fit_data(Data(part, part), mlp).train.inputs[0].dtype == torch.float32

    def test_the_model_is_left_as_it_was(self, mlp):
        mlp.train()
        mlp[1].eval()
        part = Split((torch.rand(6, 8),))
        fit_data(Data(part, part), mlp)
        assert mlp.training and not mlp[1].training

    def test_a_value_that_is_not_finite_is_named(self):
        x = torch.zeros(6, 8)
        x[4, 2] = float("nan")
        message = "Sample 4 of the val part has a value that is not finite in input 0 (1 such samples)."
        with pytest.raises(DataError, match=re.escape(message)):
            check_values(Data(Split((torch.zeros(6, 8),)), Split((x,))))

    @given(label=st.integers(-200, 200))
    def test_labels_are_the_model_s_classes_or_ignored(self, label):
        part = Split((torch.zeros(2, 8),), torch.tensor([0, label]))
        if 0 <= label < 3 or label == -100:
            check_labels(Data(part, part), num_classes=3)
        else:
            with pytest.raises(DataError, match=rf"^Label {label} of sample 1 in the train part is out of range: the"):
                check_labels(Data(part, part), num_classes=3)

    def test_a_blob_file_fits_the_model(self, blobs_npz, mlp_pt2, tmp_path):
        fit_data(load_data(str(blobs_npz)), load_model(mlp_pt2))
        save_blobs(tmp_path / "bad.npz", y_test=np.full(60, 3))
        with pytest.raises(DataError, match=r"^Label 3 of sample 0 in the test part is out of range: the model has 3"):
            check_labels(load_data(str(tmp_path / "bad.npz")), num_classes=3)


@pytest.mark.slow
def test_what_hugging_face_models_hand_on_is_known_without_being_asked_for(tmp_path):
    """Saved where transformers is imported, read where it is not yet."""
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Model(nn.Module):
        def forward(self, x):
            return outputs.BaseModelOutput(last_hidden_state=x + 1)

    path = tmp_path / "hands_on.pt2"
    save_pt2(Model(), (torch.zeros(2, 3),), path)
    code = (
        "import sys; from l0compress.loading import load_pt2\n"
        "assert 'transformers' not in sys.modules\n"
        f"print(load_pt2({str(path)!r}).call_spec.out_spec.type.__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "BaseModelOutput", done.stderr
