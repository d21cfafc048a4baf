"""Models as people have them: each kind of file gives the function that it held, and runs no code."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import hostile_files
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import run_cli, save_blobs, tiny_mlp
from safetensors.torch import load_file, save_file
from torch import nn

import l0compress as l0
from l0compress.data import Data, Split
from l0compress.errors import ModelError
from l0compress.loading import load_model, parse_factory_args
from l0compress.loading.references import without_broken
from l0compress.pipeline.sources import prepare

FACTORY = "conftest:tiny_mlp"


def wide_mlp(width: int = 6, act: str = "relu") -> nn.Module:
    """A factory with arguments."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU() if act == "relu" else nn.GELU(), nn.Linear(width, 3))


def samples(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def same_function(left: nn.Module, right: nn.Module) -> bool:
    return torch.equal(left(samples()), right(samples()))


class TestCheckpoints:
    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net."])
    @pytest.mark.parametrize("key", ["state_dict", "net", None])
    def test_names_lose_what_wrappers_put_in_front(self, tmp_path, prefix, key):
        trained = wide_mlp()
        weights = {prefix + name: value for name, value in trained.state_dict().items()}
        torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "checkpoint.pt")
        assert same_function(load_model(tmp_path / "checkpoint.pt", factory=FACTORY), trained)

    def test_a_checkpoint_of_lightning(self, tmp_path):
        trained = wide_mlp()
        weights = {f"model.{name}": value for name, value in trained.state_dict().items()}
        saved = {"pytorch-lightning_version": "2.0", "state_dict": weights, "hyper_parameters": {"lr": 0.1}}
        torch.save(saved, tmp_path / "last.ckpt")
        assert same_function(load_model(tmp_path / "last.ckpt", factory=FACTORY), trained)

    def test_a_name_of_the_module_itself_is_kept(self, tmp_path):
        trained = nn.Sequential(tiny_mlp())
        torch.save(trained.state_dict(), tmp_path / "weights.pt")
        loaded = load_model(tmp_path / "weights.pt", factory="test_loading_formats:nested")
        assert list(loaded.state_dict()) == list(trained.state_dict())

    def test_a_file_from_before_batch_norms_counted(self, tmp_path):
        trained = normed()
        weights = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
        torch.save(weights, tmp_path / "old.th")
        loaded = load_model(tmp_path / "old.th", factory="test_loading_formats:normed")
        assert same_function(loaded, trained)

    def test_factory_arguments(self, tmp_path):
        trained = wide_mlp(11, "gelu")
        save_file(trained.state_dict(), tmp_path / "weights.safetensors")
        arguments = parse_factory_args('{"width": 11, "act": "gelu"}')
        loaded = load_model(
            tmp_path / "weights.safetensors", factory="test_loading_formats:wide_mlp", factory_args=arguments
        )
        assert same_function(loaded, trained)


def nested() -> nn.Module:
    return nn.Sequential(tiny_mlp())


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()


class TestTorchScript:
    @pytest.fixture(params=["script.pt", "trace.pt", "script.jit"])
    def archive(self, request, tmp_path) -> Path:
        path = tmp_path / request.param
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.jit.script(normed()) if path.stem == "script" else torch.jit.trace(normed(), samples())
            torch.jit.save(made, path)
        return path

    def test_it_is_not_read_unless_it_is_trusted(self, archive):
        with pytest.raises(ModelError, match=r"is a TorchScript archive, which runs code .* pass --trust-pickle"):
            load_model(archive)

    def test_a_jit_file_that_is_none_is_refused(self, tmp_path):
        path = tmp_path / "model.jit"
        torch.save(normed().state_dict(), path)
        with pytest.raises(
            ModelError, match=r"^Cannot read model '.*model\.jit' as a TorchScript archive \(.*\)\. Nothing"
        ):
            load_model(path, trust_pickle=True)

    @pytest.mark.filterwarnings("ignore")
    def test_a_trusted_one_is_captured_with_its_parameters(self, archive):
        part = Split((samples(20),), torch.arange(20) % 3)
        graph = prepare(load_model(archive, trust_pickle=True), Data(part, part)).graph
        assert {name for name, _ in graph.module().named_parameters()} == {n for n, _ in normed().named_parameters()}
        assert torch.equal(graph.module()(samples()), normed()(samples()))
        assert l0.find_groups(graph).num_moves > 0


@pytest.fixture
def bert_folder(tmp_path) -> Path:
    """A small BERT with a classification head, as save_pretrained writes it, and a tokenizer of whole words."""
    with without_broken("torchvision"):
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16}
        config = transformers.BertConfig(vocab_size=12, num_hidden_layers=1, num_labels=2, **sizes)
        torch.manual_seed(0)
        folder = tmp_path / "bert"
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dull", "fine", "film", "one", "good", "bad"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


TOKENS = {"input_ids": torch.arange(10).view(2, 5), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}


@pytest.mark.slow
class TestHuggingFace:
    def reference(self, folder: Path) -> torch.Tensor:
        with without_broken("torchvision"):
            transformers = pytest.importorskip("transformers")
            model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
        return model(**TOKENS).logits

    def test_the_head_is_that_of_the_config(self, bert_folder):
        loaded = load_model(bert_folder)
        assert type(loaded).__name__ == "BertForSequenceClassification" and not loaded.training
        assert torch.equal(loaded(**TOKENS).logits, self.reference(bert_folder))

    @pytest.mark.parametrize("kind", ["bin", "shards"])
    def test_other_ways_to_keep_the_weights(self, bert_folder, kind):
        expected, whole = self.reference(bert_folder), bert_folder / "model.safetensors"
        weights = load_file(whole)
        whole.unlink()
        if kind == "bin":
            torch.save(weights, bert_folder / "pytorch_model.bin")
        else:
            halves = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
            for name, keys in halves.items():
                save_file({key: weights[key] for key in keys}, bert_folder / name)
            index = {key: name for name, keys in halves.items() for key in keys}
            (bert_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        assert torch.equal(load_model(bert_folder)(**TOKENS).logits, expected)

    def test_a_pickle_in_a_folder_is_not_run(self, bert_folder, monkeypatch):
        monkeypatch.chdir(bert_folder)
        (bert_folder / "model.safetensors").unlink()
        torch.save({"weight": hostile_files.Trap()}, bert_folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match="is a pickled object; loading it would run code"):
            load_model(bert_folder)
        assert not (bert_folder / hostile_files.SPRUNG).exists()

    def test_code_in_a_folder_is_not_run(self, bert_folder):
        (bert_folder / "own.py").write_text("from pathlib import Path\nPath(__file__).with_name('sprung').touch()\n")
        edit_config(bert_folder, auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
        assert type(load_model(bert_folder)).__name__ == "BertForSequenceClassification"
        assert not (bert_folder / "sprung").exists()

    def test_a_head_that_the_weights_lack_is_refused(self, bert_folder):
        edit_config(bert_folder, architectures=["BertForMaskedLM"])
        with pytest.raises(
            ModelError, match=r"BertForMaskedLM needs 'cls\.predictions.* which are missing from the weights"
        ):
            load_model(bert_folder)

    @pytest.mark.parametrize("name", ["BertConfig", "AutoModel", "pipeline", "logging", "", None])
    def test_only_models_of_the_library_are_built(self, bert_folder, name):
        edit_config(bert_folder, architectures=[name])
        with pytest.raises(ModelError, match="which is not a model of transformers"):
            load_model(bert_folder)

    def test_through_every_command(self, bert_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        lines = [f"{i % 2} a {'fine' if i % 2 else 'dull'} film\n" for i in range(24)]
        Path("films.tsv").write_text("".join(lines))
        through_every_command([str(bert_folder), "--data", "films.tsv"])
        described = json.loads(Path("run/preprocessing.json").read_text())
        assert described["classes"] == ["0", "1"] and described["max_length"] == 5


def through_every_command(model: list[str]) -> None:
    """inspect, finetune, export, verify; each has to exit with 0."""
    inspected = run_cli("inspect", *model, "--json")
    assert inspected.exit_code == 0 and json.loads(inspected.stdout)["moves"] > 0, inspected.stderr
    finished = run_cli("finetune", *model, "--target", "params=0.9", "--epochs", "2", "-o", "run", "--json")
    assert finished.exit_code == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["small"]["params"] <= 0.9 * result["dense"]["params"]
    for command in (["export", "run", "--format", "onnx"], ["verify", "run/model.onnx", "--against", "run"]):
        outcome = run_cli(*command)
        assert outcome.exit_code == 0, outcome.stderr


class TestOnnx:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        hostile_files.save_onnx(tmp_path / "mlp.onnx")
        return tmp_path / "mlp.onnx"

    def expected(self, path: Path, x: torch.Tensor) -> np.ndarray:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[-1]

    def test_it_computes_what_onnx_runtime_computes(self, path):
        loaded = load_model(path)
        np.testing.assert_allclose(loaded(samples()).detach().numpy(), self.expected(path, samples()), atol=1e-6)
        assert len(list(loaded.parameters())) == 4

    @pytest.mark.slow
    def test_through_every_command(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_blobs(Path("blobs.npz"))
        through_every_command([str(path), "--data", "blobs.npz"])

    def test_external_data_beside_the_file(self, path):
        expected = self.expected(path, samples())
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="mlp.data", size_threshold=0)
        assert path.with_name("mlp.data").exists()
        np.testing.assert_allclose(load_model(path)(samples()).detach().numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("location", ["../mlp.data", "/etc/passwd", "folder/../../mlp.data"])
    def test_external_data_elsewhere_is_refused(self, path, location):
        model = onnx.load(path)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"its weight 'w0' points to .* outside the folder of the model"):
            load_model(path)

    def test_a_newer_version_of_the_operators(self, path):
        model = onnx.version_converter.convert_version(onnx.load(path), 21)
        onnx.save(model, path)
        np.testing.assert_allclose(
            load_model(path)(samples()).detach().numpy(), self.expected(path, samples()), atol=1e-6
        )

    def test_a_flattening_as_pytorch_writes_it(self, path):
        """With allowzero=1, and without a zero."""
        layers = (nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
        x = torch.randn(5, 1, 8)
        l0.export_onnx(l0.capture(nn.Sequential(*layers).eval(), (x,)), path)
        reshapes = [node for node in onnx.load(path).graph.node if node.op_type == "Reshape"]
        assert [given.name for node in reshapes for given in node.attribute] == ["allowzero"]
        loaded = load_model(path)
        np.testing.assert_allclose(loaded(x).detach().numpy(), self.expected(path, x), atol=1e-6)
        assert loaded(x[:2]).shape == (2, 3)

    @pytest.mark.parametrize("approximate", ["none", "tanh"])
    def test_a_gelu(self, path, approximate):
        x = torch.randn(5, 8) * 3
        model = nn.Sequential(nn.Linear(8, 6), nn.GELU(approximate), nn.Linear(6, 3), nn.GELU()).eval()
        l0.export_onnx(l0.capture(model, (x,)), path)
        assert [node.op_type for node in onnx.load(path).graph.node].count("Gelu") == 2
        loaded = load_model(path)
        np.testing.assert_allclose(loaded(x).detach().numpy(), self.expected(path, x), atol=1e-6)

    def test_an_operator_that_is_not_known(self, path):
        model = onnx.load(path)
        model.graph.node[1].op_type, model.graph.node[1].name = "MaxUnpool", "undo"
        model.graph.node[1].input.append("w0")
        model.graph.node[1].attribute.add(name="kernel_shape", type=onnx.AttributeProto.INTS, ints=[1])
        onnx.save(model, path)
        message = (
            f"Model '{path}' cannot be converted: node 'undo' (MaxUnpool): this operator is not supported. Nothing "
            "was changed. Export it without that, or give the original PyTorch module as .pt2."
        )
        with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
            load_model(path)

    @pytest.mark.parametrize("regression", [False, True])
    @pytest.mark.filterwarnings("ignore")
    def test_a_model_of_scikit_learn(self, path, tmp_path, regression):
        skl2onnx = pytest.importorskip("skl2onnx")
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        x, y = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3
        kind = MLPRegressor if regression else MLPClassifier
        trained = kind(hidden_layer_sizes=(5,), max_iter=5, random_state=0).fit(x, y)
        options = None if regression else {"zipmap": False}
        path = tmp_path / "sk.onnx"
        path.write_bytes(skl2onnx.to_onnx(trained, x[:1], options=options).SerializeToString())
        loaded = load_model(path)
        np.testing.assert_allclose(loaded(samples()).detach().numpy(), self.expected(path, samples()), atol=1e-6)
        part = Split((torch.from_numpy(x),))
        assert l0.find_groups(prepare(loaded, Data(part, part)).graph).num_moves == 5
