"""An artifact is equal to its reference and complete, or it is not there."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from l0compress.errors import InputError, NotEqualError, RunError, SurgeryError
from l0compress.export.bundle import export_bundle
from l0compress.export.bundle_session import BundleSession
from l0compress.export.files import Exported, staged
from l0compress.export.huggingface.folder import staged_folder
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.pt2 import export_pt2, exported_program
from l0compress.export.quantize import annotate_
from l0compress.export.session import TOLERANCE_KEY, OnnxSession
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups, masked, shrink
from l0compress.verification.calls import Call, example_calls

EXPORTERS = pytest.mark.parametrize("export, name", [(export_onnx, "model.onnx"), (export_pt2, "model.pt2")])


class ConvNet(nn.Module):
    """Two convolutions with batch norm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 8, 3), nn.GELU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).mean((2, 3)))


def nearly_zero_for_one_sample() -> CapturedGraph:
    """A regression that returns 2e-6 in the check at batch size 1, from terms of about 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).eval()
    graph = capture(model, (torch.randn(2, 64),))
    (one,) = (call for call in example_calls(graph) if call.batch_size == 1)
    with torch.no_grad():
        model[2].weight *= 10
        model[2].bias += 2e-6 - model(*one.args)[0]
    return capture(model, graph.example_args)


class BiasedAttention(nn.Module):
    """Attention with a bias on its scores that differs by sample, as in T5, BEiT and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 48), nn.Linear(16, 3)
        self.bias = nn.Parameter(torch.randn(4, 5, 5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(tokens).view(-1, 5, 3, 4, 4).permute(2, 0, 3, 1, 4)
        bias = self.bias + tokens[:, None, None, :, 0]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).contiguous().reshape(-1, 5, 16))


class Awkward(nn.Module):
    """Every name clashes: a parameter, an input and an output are called alike; outputs are nested, repeated, None."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.randn(8))
        self.linear = nn.Linear(8, 10)

    def forward(self, image, extra, *, flag=True):
        hidden = torch.relu(self.linear(image * self.image)) if flag else image
        total = hidden + extra["a"] + extra["pair"][1]
        return {
            "image": total,
            "linear": hidden + 1,
            "again": hidden,
            "twice": hidden,
            "input": image,
            "nothing": None,
            "number": 3,
            "nested": (hidden.argmax(-1), [hidden > 0]),
        }


def bytes_of(export: Callable[..., object], graph: CapturedGraph, path: Path) -> bytes:
    export(graph, path)
    return path.read_bytes()


def bytes_while_busy(export: Callable[..., object], graph: CapturedGraph, path: Path) -> bytes:
    """What an exporter writes where notes of something else are in force in the process."""
    with torch.fx.traceback.annotate({"busy": "with another model"}):
        return bytes_of(torch.compiler.disable(export), graph, path)


def masked_graph() -> CapturedGraph:
    graph = convnet_graph()
    plan = KeepPlan.random(find_groups(graph), density=0.5, seed=0)
    return replace(graph, graph_module=masked(graph, plan))


@cache
def convnet_graph() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(ConvNet(), (torch.randn(2, 1, 8, 8),))


@cache
def awkward_graph() -> CapturedGraph:
    torch.manual_seed(0)
    extra = {"a": torch.randn(2, 1), "pair": (torch.randn(2, 1), torch.randn(2, 1))}
    return capture(Awkward(), (torch.randn(2, 8),), {"extra": extra, "flag": True})


class Pyramid(nn.Module):
    """Half and a quarter of an image, added: sides have to be multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.fine(x))
        return self.head(fine + nn.functional.interpolate(self.coarse(fine), scale_factor=2.0))


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["multiples", "any"])
def test_sides_that_are_free_stay_free(tmp_path, sides):
    """Whether they are multiples by name, or whatever the model can take."""
    named = {0: Dim("b"), 2: 4 * Dim("h"), 3: 4 * Dim("w")}
    free = named if sides == "multiples" else dict.fromkeys((0, 2, 3), Dim.AUTO)
    model, x = Pyramid().eval(), torch.randn(3, 3, 64, 48)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(free,))
    dense = capture(program)
    graph = shrink(dense, KeepPlan.random(find_groups(dense), density=0.5, seed=0))
    expected = graph.module()(x).detach().numpy()
    export_pt2(graph, tmp_path / "m.pt2")
    assert torch.export.load(tmp_path / "m.pt2").module()(x).detach().numpy() == pytest.approx(expected, abs=1e-5)
    export_onnx(graph, tmp_path / "m.onnx")
    assert OnnxSession(tmp_path / "m.onnx")(x)["output_0"].numpy() == pytest.approx(expected, abs=1e-5)
    bundle = export_bundle(graph, tmp_path / "m.l0c").path
    assert BundleSession(bundle)(x)["output_0"].numpy() == pytest.approx(expected, abs=1e-5)


class TestEveryFormat:
    @pytest.mark.mostly_slow
    @EXPORTERS
    @pytest.mark.parametrize("density", [0.4, 0.7])
    def test_a_shrunk_model_equals_the_masked_dense_model(self, tmp_path, export, name, density):
        graph = convnet_graph()
        plan = KeepPlan.random(find_groups(graph), density=density, seed=0)
        exported = export(shrink(graph, plan), tmp_path / name, reference=masked(graph, plan))
        assert exported.equality.max_relative < 1e-5
        assert exported.equality.batch_sizes == (2, 1, 11)
        assert exported.size_bytes == (tmp_path / name).stat().st_size

    @EXPORTERS
    def test_a_model_that_is_not_equal_is_refused_and_leaves_nothing(self, tmp_path, export, name):
        graph = convnet_graph()
        plan = KeepPlan.random(find_groups(graph), density=0.5, seed=0)
        with pytest.raises(NotEqualError, match="output 'output_0' differs at index"):
            export(shrink(graph, plan), tmp_path / name, reference=graph)
        assert list(tmp_path.iterdir()) == []

    @EXPORTERS
    def test_a_refused_model_leaves_the_file_that_was_there(self, tmp_path, export, name):
        graph = convnet_graph()
        export(graph, tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(NotEqualError):
            export(graph, tmp_path / name, reference=lambda image: graph.module()(image) + 1)
        assert (tmp_path / name).read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("export, name", [*EXPORTERS.args[1], (export_bundle, "model.l0c")])
    def test_a_module_has_to_be_captured_first(self, tmp_path, export, name):
        with pytest.raises(InputError, match=r"^a ConvNet is not a captured graph\. .* nothing was written\. Capture"):
            export(ConvNet(), tmp_path / name)

    @pytest.mark.parametrize("export, name", [*EXPORTERS.args[1], (export_bundle, "model.l0c")])
    @pytest.mark.parametrize("tolerance", [math.nan, math.inf])
    def test_a_tolerance_that_allows_everything_is_refused(self, tmp_path, export, name, tolerance):
        graph = convnet_graph()
        with pytest.raises(InputError, match=f"the tolerance {tolerance} is not a finite number of at least 0"):
            export(graph, tmp_path / name, reference=lambda image: graph.module()(image) + 1, tolerance=tolerance)
        assert list(tmp_path.iterdir()) == []

    @EXPORTERS
    def test_the_same_graph_gives_the_same_bytes(self, tmp_path, export, name):
        graph = convnet_graph()
        first, second = (export(graph, tmp_path / name) and (tmp_path / name).read_bytes() for _ in range(2))
        assert first == second

    @EXPORTERS
    def test_the_bytes_do_not_depend_on_what_the_process_does(self, tmp_path, export, name):
        graph = convnet_graph()
        small = shrink(graph, KeepPlan.random(find_groups(graph), density=0.5, seed=0))
        assert bytes_while_busy(export, small, tmp_path / name) == bytes_of(export, small, tmp_path / name)

    @EXPORTERS
    def test_nothing_in_the_file_speaks_of_this_machine(self, tmp_path, export, name):
        export(awkward_graph(), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for secret in (str(Path(__file__).parent), str(Path(torch.__file__).parent), "stack_trace", str(tmp_path)):
            assert secret.encode() not in content

    @pytest.mark.mostly_slow
    @EXPORTERS
    def test_names_that_clash(self, tmp_path, export, name):
        exported = export(awkward_graph(), tmp_path / name)
        names = [output.name for output in exported.equality.outputs]
        tensors = ["image", "linear", "again", "twice", "input", "nested_0", "nested_1_0"]
        assert [name for name in names if name != "number"] == tensors

    @EXPORTERS
    def test_a_folder_that_does_not_exist(self, tmp_path, export, name):
        with pytest.raises(RunError, match=r"cannot write .*: No such file or directory .*Create that folder"):
            export(convnet_graph(), tmp_path / "missing" / name)

    @EXPORTERS
    def test_a_destination_that_is_a_folder(self, tmp_path, export, name):
        (tmp_path / name).mkdir()
        with pytest.raises(RunError, match=re.escape(f"{tmp_path / name} is a folder. Nothing was written.")):
            export(convnet_graph(), tmp_path / name)


class TestOnnx:
    def test_onnxruntime_alone_agrees_with_the_eager_model(self, tmp_path):
        torch.manual_seed(0)
        model = ConvNet().eval()
        export_onnx(capture(model, (torch.randn(2, 1, 8, 8),)), tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        for batch_size in (1, 2, 7):
            x = torch.randn(batch_size, 1, 8, 8)
            (got,) = session.run(None, {"image": x.numpy()})
            torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-5, atol=1e-5)

    def test_inputs_and_outputs_bear_the_users_names(self, tmp_path):
        export_onnx(awkward_graph(), tmp_path / "model.onnx")
        graph = onnx.load(tmp_path / "model.onnx").graph
        assert [value.name for value in graph.input] == ["image", "extra_a", "extra_pair_0", "extra_pair_1"]
        assert [value.name for value in graph.output][1:4] == ["linear", "again", "twice"]
        sizes = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
        # Nothing reads the first of the pair, so that nothing ties its size to the others'.
        assert sizes == {"image": "batch", "extra_a": "batch", "extra_pair_0": "batch_2", "extra_pair_1": "batch"}

    def test_the_file_says_what_it_costs(self, tmp_path):
        graph = convnet_graph()
        export_onnx(graph, tmp_path / "model.onnx")
        properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
        assert properties["l0compress.params"] == str(cost(graph).params)
        assert properties["l0compress.macs"] == str(cost(graph).macs)

    def test_a_free_sequence_length(self, tmp_path):
        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(11, 4)

            def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
                return self.embedding(input_ids).mean(1)

        graph = capture(Mean(), (torch.randint(0, 11, (2, 8)),), dynamic="batch+sequence")
        export_onnx(graph, tmp_path / "model.onnx")
        session = OnnxSession(tmp_path / "model.onnx")
        assert session.inputs[0].shape == (None, None)
        assert session(torch.zeros(3, 5, dtype=torch.long))["output_0"].shape == (3, 4)

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_a_length_that_is_read_behind_a_recurrent_layer(self, tmp_path, kind):
        class Tagger(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.recurrent, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                batch, length, _ = x.shape
                return self.head(self.recurrent(x)[0].reshape(batch * length, 8)).view(batch, length, 3)

        free = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
        graph = capture(Tagger().eval(), (torch.randn(3, 5, 6),), dynamic=free)
        export_onnx(graph, tmp_path / "model.onnx")
        (output,) = onnx.load(tmp_path / "model.onnx").graph.output
        named = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        assert named == ["batch", "length", 3]
        x = torch.randn(4, 9, 6)
        torch.testing.assert_close(OnnxSession(tmp_path / "model.onnx")(x)["output_0"], graph.module()(x).detach())

    def test_a_sequence_alone_of_any_length(self, tmp_path):
        lstm = nn.LSTM(6, 8).eval()
        graph = capture(lstm, (torch.randn(7, 6),), dynamic={"input": {0: Dim("time")}})
        export_onnx(graph, tmp_path / "model.onnx")
        x = torch.randn(3, 6)
        made = OnnxSession(tmp_path / "model.onnx")(x)
        torch.testing.assert_close(made["output_0"], lstm(x)[0].detach())

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("density", [1.0, 0.5])
    def test_attention_with_a_bias(self, tmp_path, density):
        torch.manual_seed(0)
        graph = capture(BiasedAttention(), (torch.randn(2, 5, 12),))
        plan = KeepPlan.random(find_groups(graph), density)
        exported = export_onnx(shrink(graph, plan), tmp_path / "model.onnx", reference=masked(graph, plan))
        assert exported.equality.batch_sizes == (2, 1, 11)

    def test_attention_within_windows(self, tmp_path):
        class Windows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.qkv, self.out = nn.Linear(12, 48), nn.Linear(16, 3)

            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                q, k, v = self.qkv(tokens).view(-1, 2, 5, 3, 4, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
                mixed = nn.functional.scaled_dot_product_attention(q, k, v)
                return self.out(mixed.transpose(2, 3).flatten(3))

        torch.manual_seed(0)
        graph = capture(Windows(), (torch.randn(2, 2, 5, 12),))
        plan = KeepPlan.random(find_groups(graph), 0.5)
        exported = export_onnx(shrink(graph, plan), tmp_path / "model.onnx", reference=masked(graph, plan))
        assert exported.equality.batch_sizes == (2, 1, 11)

    def test_weights_beyond_the_limit_go_beside_the_file(self, tmp_path):
        graph = convnet_graph()
        exported = export_onnx(graph, tmp_path / "model.onnx", settings=OnnxSettings(largest_file_bytes=100))
        written = sorted(path.name for path in tmp_path.iterdir())
        assert written == ["model.onnx", "model.onnx.data"]
        assert exported.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        x = torch.randn(3, 1, 8, 8)
        got = OnnxSession(tmp_path / "model.onnx")(x)["output_0"]
        torch.testing.assert_close(got, graph.module()(x).detach(), rtol=1e-5, atol=1e-5)

    def test_an_operator_that_onnx_does_not_have(self, tmp_path):
        class Bessel(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.bessel_j0(x)

        message = r"the graph cannot be converted to ONNX: .*bessel_j0.* Nothing was written\. Export it as pt2"
        with pytest.raises(SurgeryError, match=message):
            export_onnx(capture(Bessel(), (torch.randn(2, 4),)), tmp_path / "model.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_a_dtype_that_onnxruntime_has_no_kernels_for(self, tmp_path):
        message = "ONNX Runtime cannot run the converted graph: Could not find an implementation for Conv"
        with pytest.raises(SurgeryError, match=message):
            export_onnx(convnet_graph().to(torch.float64), tmp_path / "model.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_a_model_that_is_random_is_refused(self, tmp_path):
        class Noise(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + torch.rand(())

        with pytest.raises(NotEqualError):
            export_onnx(capture(Noise(), (torch.randn(2, 4),)), tmp_path / "model.onnx")

    def test_the_converters_print_nothing(self, tmp_path, capfd):
        export_onnx(convnet_graph(), tmp_path / "model.onnx")
        assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export_onnx(convnet_graph(), tmp_path_factory.mktemp("exported") / "model.onnx").path


class TestSession:
    @pytest.fixture
    def session(self, exported, tmp_path) -> OnnxSession:
        return OnnxSession(shutil.copy(exported, tmp_path / "model.onnx"), threads=1)

    def test_positional_and_keyword_inputs(self, session):
        x = torch.randn(3, 1, 8, 8)
        assert torch.equal(session(x)["output_0"], session(image=x)["output_0"])

    @pytest.mark.parametrize("writeable", [True, False])
    def test_arrays_of_numpy_are_inputs(self, session, writeable):
        x = torch.randn(3, 1, 8, 8)
        array = x.numpy().copy()
        array.flags.writeable = writeable
        assert torch.equal(session(array)["output_0"], session(x)["output_0"])
        assert torch.equal(session(image=array)["output_0"], session(x)["output_0"])

    def test_nested_inputs_fill_the_names_of_the_export(self, tmp_path):
        graph = awkward_graph()
        export_onnx(graph, tmp_path / "model.onnx")
        outputs = OnnxSession(tmp_path / "model.onnx")(*graph.example_args, **graph.example_kwargs)
        expected = graph.module()(*graph.example_args, **graph.example_kwargs)
        torch.testing.assert_close(outputs["image"], expected["image"].detach())
        torch.testing.assert_close(outputs["nested_1_0"], expected["nested"][1][0])

    def test_an_example_call_has_the_shapes_of_the_file(self, session):
        assert session.example_call(4).kwargs["image"].shape == (4, 1, 8, 8)
        assert session(**session.example_call(4).kwargs)["output_0"].shape == (4, 10)

    def test_inputs_that_do_not_fit(self, session):
        with pytest.raises(InputError, match=r"takes the inputs image; missing image, unexpected none"):
            session()
        with pytest.raises(InputError, match=r"takes the inputs image; missing none, unexpected positional input 1"):
            session(torch.ones(1), torch.ones(1))
        with pytest.raises(InputError, match=r"It takes image float32 \(any, 1, 8, 8\)\."):
            session(torch.ones(2, 3, 8, 8))
        with pytest.raises(InputError, match=r"Unexpected input data type"):
            session(torch.ones(2, 1, 8, 8, dtype=torch.float64))

    @pytest.mark.parametrize("claimed, tolerance", [("0.03", 0.03), ("inf", None), ("nan", None), ("-1", None)])
    def test_a_file_that_claims_a_tolerance_without_bounds_is_not_believed(self, session, claimed, tolerance):
        annotate_(session.path, {TOLERANCE_KEY: claimed})
        assert OnnxSession(session.path).tolerance == tolerance

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(RunError, match=r"ONNX Runtime cannot load .*File doesn't exist\. Nothing was changed\."):
            OnnxSession(tmp_path / "missing.onnx")

    def test_a_file_that_is_no_model(self, tmp_path):
        (tmp_path / "text.onnx").write_text("no model")
        with pytest.raises(RunError, match=r"ONNX Runtime cannot load .*Protobuf parsing failed"):
            OnnxSession(tmp_path / "text.onnx")


class TestPt2:
    def test_the_bytes_of_a_masked_graph_do_not_depend_on_what_the_process_does(self, tmp_path):
        """The nodes that mask have no notes of their own, and would get those of the tracing."""
        graph, path = masked_graph(), tmp_path / "model.pt2"
        assert bytes_while_busy(export_pt2, graph, path) == bytes_of(export_pt2, graph, path)

    def test_it_can_be_unflattened(self, tmp_path):
        """Which module a node was in is the one note that stays."""
        graph = convnet_graph()
        export_pt2(graph, tmp_path / "model.pt2")
        module, image = torch.export.unflatten(torch.export.load(tmp_path / "model.pt2")), torch.randn(3, 1, 8, 8)
        assert torch.equal(module(image), graph.module()(image))
        assert {"features.0", "head"} <= {name for name, _ in module.named_modules()}

    @pytest.mark.slow
    def test_it_runs_where_the_models_code_is_unknown(self, tmp_path):
        export_pt2(awkward_graph(), tmp_path / "model.pt2")
        program = (
            f"import torch; module = torch.export.load({str(tmp_path / 'model.pt2')!r}).module();"
            "x, e = torch.ones(3, 8), torch.ones(3, 1);"
            "print(tuple(module(x, extra={'a': e, 'pair': (e, e)}, flag=True)['image'].shape))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout.strip() == "(3, 10)"

    def test_output_classes_become_plain_dicts(self, tmp_path):
        modeling_outputs = pytest.importorskip("transformers.modeling_outputs")

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 3)

            def forward(self, x: torch.Tensor):
                return modeling_outputs.SequenceClassifierOutput(logits=self.linear(x))

        graph = capture(Model(), (torch.randn(2, 4),))
        export_pt2(graph, tmp_path / "model.pt2")
        assert type(graph.module()(torch.ones(1, 4))) is modeling_outputs.SequenceClassifierOutput
        assert type(torch.export.load(tmp_path / "model.pt2").module()(torch.ones(1, 4))) is dict

    def test_a_captured_archive_is_the_same_graph(self, tmp_path):
        graph = convnet_graph()
        export_pt2(graph, tmp_path / "model.pt2")
        again = capture(torch.export.load(tmp_path / "model.pt2"))
        assert again.state().keys() == graph.state().keys()
        assert cost(again) == cost(graph)

    def test_another_suffix(self, tmp_path):
        with pytest.raises(RunError, match=re.escape("model.zip does not end in .pt2")):
            export_pt2(convnet_graph(), tmp_path / "model.zip")

    def test_the_batch_stays_free(self):
        assert exported_program(convnet_graph()).module()(torch.ones(9, 1, 8, 8)).shape == (9, 10)


def _entries(folder: Path) -> dict[str, tuple[int, ...]]:
    """What is in a folder; when a link was last read is nobody's concern."""
    found = {entry.name: entry.lstat() for entry in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


class TestStaging:
    def test_an_interrupted_write_leaves_nothing(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "artifact") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("module, name", [(os, "mkdir"), (shutil, "rmtree")])
    @pytest.mark.parametrize("stage", [staged, staged_folder])
    def test_an_interruption_right_after_the_folder_is_made_or_as_it_goes_leaves_nothing(
        self, tmp_path, monkeypatch, module, name, stage
    ):
        real = getattr(module, name)

        def interrupted(*args, **kwargs):
            monkeypatch.setattr(module, name, real)
            if name == "mkdir":
                real(*args, **kwargs)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt), stage(tmp_path / "artifact") as path:
            path.with_name("beside").write_bytes(b"half")
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []

    def test_everything_staged_moves(self, tmp_path):
        with staged(tmp_path / "artifact") as path:
            path.write_bytes(b"one")
            path.with_name("artifact.data").write_bytes(b"two")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["artifact", "artifact.data"]

    def test_a_link_is_followed_and_stays_one(self, tmp_path):
        (tmp_path / "store").mkdir()
        link, file = tmp_path / "artifact", tmp_path / "store" / "file"
        link.symlink_to(Path("store", "file"))
        for content in (b"to a name that is free", b"to a file that is there"):
            with staged(link) as path:
                path.write_bytes(content)
            assert link.is_symlink() and file.read_bytes() == content
        assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["artifact", "file", "store"]

    def test_a_link_to_another_disk(self, tmp_path, monkeypatch):
        (tmp_path / "disk").mkdir()
        (tmp_path / "artifact").symlink_to(tmp_path / "disk" / "file")
        replace = Path.replace

        def within_a_disk(source, target):
            if ("disk" in source.parts) != ("disk" in Path(target).parts):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return replace(source, target)

        monkeypatch.setattr(Path, "replace", within_a_disk)
        with staged(tmp_path / "artifact") as path:
            path.write_bytes(b"content")
        assert [entry.read_bytes() for entry in (tmp_path / "disk").iterdir()] == [b"content"]

    def test_external_data_lie_beside_the_link_where_the_runtime_looks(self, tmp_path):
        (tmp_path / "store").mkdir()
        (tmp_path / "model.onnx").symlink_to(Path("store", "model.onnx"))
        export_onnx(convnet_graph(), tmp_path / "model.onnx", settings=OnnxSettings(largest_file_bytes=100))
        assert (tmp_path / "model.onnx").is_symlink()
        assert OnnxSession(tmp_path / "model.onnx")(torch.ones(3, 1, 8, 8))["output_0"].shape == (3, 10)

    @pytest.mark.parametrize("name", ["pipe", "socket", "device", "link to a pipe", "itself"])
    def test_what_is_no_file_is_refused_before_any_work(self, tmp_path, monkeypatch, name):
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            monkeypatch.chdir(tmp_path)  # The name of a socket may not be long.
            listener.bind("socket")
        (tmp_path / "device").symlink_to(os.devnull)
        (tmp_path / "link to a pipe").symlink_to("pipe")
        (tmp_path / "itself").symlink_to("itself")
        before = _entries(tmp_path)
        message = (
            f"{tmp_path / name} is not a file but a device, a pipe, a socket or a link to itself. Nothing was written."
        )
        with pytest.raises(RunError, match="^" + re.escape(message)), staged(tmp_path / name):
            pytest.fail("work began")
        assert _entries(tmp_path) == before

    @pytest.mark.parametrize("name, reason", [("a" * 300, "File name too long"), ("a\0b", "embedded null byte")])
    def test_a_name_that_no_file_can_have(self, tmp_path, name, reason):
        with pytest.raises(RunError, match=rf"(?s)^cannot write .*: (lstat: )?{reason}"):
            staged(tmp_path / name).__enter__()

    def test_data_that_would_replace_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "model.onnx.data")
        with pytest.raises(RunError, match=r"model\.onnx\.data is not a file but"):
            export_onnx(convnet_graph(), tmp_path / "model.onnx", settings=OnnxSettings(largest_file_bytes=100))
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx.data"]

    def test_a_link_into_a_folder_that_does_not_exist(self, tmp_path):
        (tmp_path / "artifact").symlink_to(Path("missing", "file"))
        with pytest.raises(RunError, match=r"cannot write .*artifact: No such file or directory \(.*missing\)\."):
            staged(tmp_path / "artifact").__enter__()


def test_a_call_is_what_the_model_takes():
    call = Call((torch.ones(3, 2),), {"scale": torch.ones(3)})
    assert call.batch_size == 3


@EXPORTERS
def test_a_regression_that_nearly_vanishes_for_one_sample_is_no_defect(
    export: Callable[..., Exported], name: str, tmp_path: Path
) -> None:
    graph = nearly_zero_for_one_sample()
    smallest = min(float(graph.module()(*call.args).detach().abs().max()) for call in example_calls(graph))
    assert smallest < 1e-5
    assert export(graph, tmp_path / name).equality.max_relative < 1e-5
    with pytest.raises(NotEqualError, match="differs at index"):
        export(graph, tmp_path / f"wrong-{name}", reference=with_bias(graph, 1e-3))


def with_bias(graph: CapturedGraph, more: float) -> CapturedGraph:
    """The same network with a larger bias in its last layer."""
    state = {name: value.clone() for name, value in graph.module().state_dict().items()}
    state["2.bias"] += more
    return graph.with_state(state)
