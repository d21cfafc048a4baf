"""Causal language models in onnxruntime with their cache: token by token what the masked dense model says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import printed_json, run_cli
from cut_folders import DECODERS, NARROW, Case, bert, bloom, gemma3, generated, is_masked_greedy, llama, tokens
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import InputError, NotEqualError
from l0compress.export.huggingface.decoder import check_decoder
from l0compress.export.past import TokenByToken, logits_alone, past_of
from l0compress.export.session import OnnxSession
from l0compress.measure.bench import bench
from l0compress.verification.calls import Call

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
        yield importlib.import_module("generate_onnx")


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # transformers copies code that it trusts into a folder of the user's.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


class Exported:
    """A case that was cut with widths that differ from layer to layer, and its file."""

    def __init__(self, build: Callable[[], nn.Module], home: Path, seed: int = 3) -> None:
        self.case = Case(build(), home)
        self.cut = self.case.cut(self.case.random(seed))
        graph, plan = self.cut.graph, self.cut.plan
        self.path = l0.export_onnx_with_past(graph, self.case.source, home / "small.onnx", plan=plan).path


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(llama, tmp_path_factory.mktemp("llama"))


class TestTheFile:
    @pytest.mark.slow
    def test_has_the_names_that_optimum_and_genai_use(self, small_llama: Exported) -> None:
        session = onnxruntime.InferenceSession(str(small_llama.path))
        shapes = {entry.name: entry.shape for entry in session.get_inputs()}
        past = [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
        assert list(shapes) == ["input_ids", "attention_mask", "position_ids", *past]
        assert shapes["input_ids"] == ["batch", "sequence_length"]
        assert shapes["attention_mask"] == ["batch", "total_sequence_length"]
        assert shapes[past[0]][::2] == ["batch", "past_sequence_length"]
        outputs = [entry.name for entry in session.get_outputs()]
        assert outputs == ["logits", *(name.replace("past_key_values", "present") for name in past)]

    def test_has_the_heads_and_widths_of_each_layer(self, small_llama: Exported) -> None:
        session = onnxruntime.InferenceSession(str(small_llama.path))
        found = {entry.name: entry.shape[1::2] for entry in session.get_inputs() if "past" in entry.name}
        with torch.no_grad():
            cache = l0.load_model(small_llama.case.source)(tokens(1, 3), use_cache=True).past_key_values
        dense = {f"past_key_values.{layer}.key": [*part.keys.shape[1::2]] for layer, part in enumerate(cache.layers)}
        assert any(found[name] != shape for name, shape in dense.items())

    def test_called_without_a_past_is_the_model(self, small_llama: Exported) -> None:
        loaded = l0.load(small_llama.path)
        with torch.no_grad():
            expected = small_llama.cut.reference()(input_ids=tokens(3, 7))["logits"]
        torch.testing.assert_close(loaded(tokens(3, 7))["logits"], expected)

    def test_reads_what_follows_on_top_of_what_it_returned(self, small_llama: Exported) -> None:
        loaded, ids = l0.load(small_llama.path), tokens(2, 6)
        first = loaded(input_ids=ids[:, :4])
        second = loaded(input_ids=ids[:, 4:], **past_of(first))
        torch.testing.assert_close(second["logits"], loaded(input_ids=ids)["logits"][:, 4:])


def padded(session: OnnxSession, prompt: Tensor, padding: int, count: int) -> Tensor:
    """The prompt behind padding, and what follows, by positions and a mask that leave the padding out."""
    ids = torch.cat([torch.zeros(1, padding, dtype=torch.long), prompt], 1)
    mask = (torch.arange(ids.shape[1]) >= padding).long()[None]
    past: dict[str, Tensor] = {}
    new = ids
    for _ in range(count):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        outputs = session(input_ids=new, attention_mask=mask, position_ids=positions, **past)
        assert not torch.isnan(outputs["logits"]).any()
        past, new = past_of(outputs), outputs["logits"][:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    return ids[:, padding:]


class TestGenerate:
    def test_as_generate_of_the_folder_and_the_masked_dense_model_say(
        self, small_llama: Exported, example: Any
    ) -> None:
        prompt = tokens(2, 5)
        said = torch.from_numpy(example.greedy(small_llama.path, prompt.numpy(), 64))
        assert is_masked_greedy(said, small_llama.cut, prompt, 64)
        small_llama.case.exported(small_llama.cut)
        assert torch.equal(said, generated(small_llama.case.loaded(), prompt, 64))

    def test_behind_padding_as_without(self, small_llama: Exported, example: Any) -> None:
        alone = example.greedy(small_llama.path, tokens(1, 5).numpy(), 8)
        assert np.array_equal(padded(OnnxSession(small_llama.path), tokens(1, 5), 3, 8).numpy(), alone)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", DECODERS)
    def test_for_256_tokens(self, name: str, example: Any, tmp_path: Path) -> None:
        exported = Exported(DECODERS[name], tmp_path)
        prompt = tokens(1, 5)
        said = torch.from_numpy(example.greedy(exported.path, prompt.numpy(), 256))
        assert is_masked_greedy(said, exported.cut, prompt, 256)
        exported.case.exported(exported.cut)
        assert torch.equal(said, generated(exported.case.loaded(), prompt, 256))

    @pytest.mark.slow
    @pytest.mark.parametrize("build", [gemma3, bloom])
    def test_with_windows_and_where_a_model_takes_no_positions(
        self, build: Callable[[], nn.Module], example: Any, tmp_path: Path
    ) -> None:
        exported = Exported(build, tmp_path, seed=1)
        said = example.greedy(exported.path, tokens(2, 5).numpy(), 12)
        assert is_masked_greedy(torch.from_numpy(said), exported.cut, tokens(2, 5), 12)

    @pytest.mark.slow
    def test_where_a_whole_attention_is_gone(self, example: Any, tmp_path: Path) -> None:
        case = Case(llama(), tmp_path)
        cut = case.cut(case.without(r"layers\.0\.self_attn\.[qv]", r"1\.mlp"))
        exported = l0.export_onnx_with_past(cut.graph, case.source, tmp_path / "small.onnx", plan=cut.plan)
        said = example.greedy(exported.path, tokens(2, 5).numpy(), 12)
        assert is_masked_greedy(torch.from_numpy(said), cut, tokens(2, 5), 12)

    @pytest.mark.slow
    def test_the_example_says_so_itself(self, example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert example.main(tmp_path).shape == (1, 69)
        assert "64 tokens, as generate() says them" in capsys.readouterr().out


class TestTheCheck:
    @pytest.mark.parametrize("fault", [torch.zeros_like, lambda past: past.roll(1, 0)])
    def test_sees_what_a_wrong_cache_does(self, fault: Callable[[Tensor], Tensor], small_llama: Exported) -> None:
        class Forgetful(OnnxSession):
            def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
                outputs = super().__call__(*args, **kwargs)
                return {name: value if name == "logits" else fault(value) for name, value in outputs.items()}

        reference = logits_alone(small_llama.cut.reference())
        how = {"inputs": [Call(kwargs={"input_ids": tokens(3, 9)})]}
        assert l0.verify(TokenByToken(OnnxSession(small_llama.path)), reference, **how).max_relative < 1e-5
        with pytest.raises(NotEqualError, match="logits"):
            l0.verify(TokenByToken(Forgetful(small_llama.path)), reference, **how)


class TestRefused:
    def test_what_is_no_causal_language_model(self, tmp_path: Path) -> None:
        bert().save_pretrained(tmp_path / "dense")
        graph = l0.capture(nn.Linear(4, 2), (torch.zeros(2, 4),))
        plan = l0.KeepPlan.everything(l0.find_groups(graph))
        message = (
            rf"^'{tmp_path}/dense' holds a BertModel, which is no causal language model: it has no past key values\. "
            r"Nothing was written\. Omit --with-past \(in Python call export_onnx\)\.$"
        )
        with pytest.raises(InputError, match=message):
            l0.export_onnx_with_past(graph, tmp_path / "dense", tmp_path / "small.onnx", plan=plan)
        assert not (tmp_path / "small.onnx").exists()

    def test_what_keeps_another_state_than_keys_and_values(self) -> None:
        config = transformers.MambaConfig(vocab_size=9, hidden_size=8, state_size=4, num_hidden_layers=1)
        model = transformers.MambaForCausalLM(config).eval()
        with pytest.raises(
            InputError, match=r"^MambaForCausalLM has no past key values: from token to token it keeps another state\."
        ):
            check_decoder(model, "the folder")

    def test_an_encoder_that_could_be_a_decoder(self) -> None:
        model = transformers.BertLMHeadModel(transformers.BertConfig(**{**NARROW, "num_hidden_layers": 1})).eval()
        with pytest.raises(
            InputError, match=r"^BertLMHeadModel has no past key values: from token to token it keeps nothing\."
        ):
            check_decoder(model, "the folder")

    @pytest.mark.slow
    def test_a_graph_of_something_else_than_tokens_and_logits(self, small_llama: Exported, tmp_path: Path) -> None:
        case = small_llama.case
        graph = l0.capture(case.model.model, (), {"input_ids": tokens(2, 6)})
        plan = l0.KeepPlan.everything(l0.find_groups(graph))
        with pytest.raises(InputError, match=r"it takes input_ids and returns last_hidden_state\."):
            l0.export_onnx_with_past(l0.shrink(graph, plan), case.source, tmp_path / "small.onnx", plan=plan)

    def test_a_graph_without_its_plan(self, small_llama: Exported, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"Pass the plan that made it: export_onnx_with_past\("):
            l0.export_onnx_with_past(small_llama.cut.graph, small_llama.case.source, tmp_path / "small.onnx")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--format", "pt2"), "Only ONNX files are given past key values, but the format is 'pt2'."),
            (("--sparse-weights",), "A file with past key values is not stored sparsely."),
            (("--quantize", "int8"), "A file with past key values is not quantized."),
            ((), "mlp.pt2', which is no folder of transformers."),
        ],
    )
    def test_on_the_command_line(
        self, more: tuple[str, ...], message: str, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(finished)
        outcome = run_cli("export", "run", "--with-past", *more)
        assert outcome.exit_code == 2
        assert message in " ".join(outcome.stderr.split())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data, and a run, to which each test only adds files."""
    home = tmp_path_factory.mktemp("home")
    # A norm behind all layers is the first of the residual stream in dense.pt2, and the last in the model.
    case = Case(llama(), home)
    ids = tokens(48, 6).numpy()
    np.savez(home / "data.npz", x=ids, y=np.roll(ids, -1, 1))
    settings = ("--data", "data.npz", "--target", "macs=0.6", "--epochs", "0", "-o", "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        outcome = run_cli("finetune", case.source.name, *settings)
    assert outcome.exit_code == 0, outcome.stderr
    return home


@pytest.mark.slow
class TestARun:
    """From a folder to a run, and what is exported from it, on the command line."""

    @pytest.fixture
    def run(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(home)
        return Path("run")

    def test_every_export_is_verified_timed_and_written_again(self, run: Path) -> None:
        for flags, name in ((("--with-past",), "model.with_past.onnx"), (("--format", "huggingface"), "huggingface")):
            for _ in range(2):
                written = printed_json("export", run, *flags)
                assert written["path"] == str(run / name)
            found = printed_json("verify", run / name, "--against", run)
            assert found["equal"] and [output["name"] for output in found["outputs"]] == ["logits"]
            timed = bench({name: run / name}, batch_sizes=(1, 2), threads=1, rounds=1, max_seconds=0.1)
            assert timed.file_bytes == {name: written["size_bytes"]}
        against = printed_json("bench", run / "huggingface", "--against", run, "--batch", "1", "--threads", "1")
        assert {row["name"] for row in against["bench"]["timings"]} == {"dense", "small"}
        assert printed_json("inspect", run / "huggingface", "--data", "data.npz")["moves"] > 0

    def test_a_folder_of_another_model_is_not_equal(self, run: Path) -> None:
        outcome = run_cli("verify", "dense", "--against", run)
        assert outcome.exit_code == 1 and "The two models are not equal" in outcome.stderr


def test_a_folder_of_images_of_any_size_is_timed_against_its_run_alone(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(tmp_path / "images")
    with pytest.raises(InputError, match=r"does not say what its input 'pixel_values' looks like\. .*--against RUN"):
        bench({"images": tmp_path / "images"}, batch_sizes=(1,))
