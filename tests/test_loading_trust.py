"""Files from strangers: nothing in them runs, fills the memory or leaves its folder; honest ones are read."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import hostile_files
import hostile_programs
import pytest
import torch
from conftest import save_pt2, tiny_mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import l0compress as l0
from l0compress.errors import CaptureError, ModelError
from l0compress.loading import load_pt2
from l0compress.loading.expressions import is_arithmetic
from l0compress.loading.foreign_archives import open_archive
from l0compress.loading.programs import fault_of_program, is_safe_operator, without_notes

REPOSITORY = Path(__file__).resolve().parent.parent


def program_of(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(next(n for n in archive.namelist() if n.endswith("models/model.json"))))


def rewritten(source: Path, target: Path, ending: str, change) -> Path:
    hostile_files.rewrite_archive(source, target, ending, change)
    return target


@pytest.mark.slow
class TestFuzz:
    def test_damaged_and_hostile_files_of_every_kind(self):
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "tests/fuzz_files.py", "--mutations", "150", "--seed", "7"],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


class TestEveryCheckIsNeeded:
    """torch alone runs what these files hold; here they are refused, and honest ones read."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        yield
        sys.modules.pop(hostile_programs.BAIT, None)

    @pytest.mark.parametrize("attack", hostile_programs.ATTACKS)
    def test_torch_alone_runs_it(self, attack, tmp_path):
        path, sprung = hostile_programs.save_attack(attack, tmp_path), tmp_path / hostile_files.SPRUNG
        with suppress(Exception):
            program = torch.export.load(path)
            args, kwargs = program.example_inputs or ((), {})
            program.module()(*args, **kwargs)
        assert sprung.exists()

    @pytest.mark.parametrize("attack", hostile_programs.ATTACKS)
    def test_nothing_of_it_runs_here(self, attack, tmp_path):
        path, sprung = hostile_programs.save_attack(attack, tmp_path), tmp_path / hostile_files.SPRUNG
        try:
            loaded = load_pt2(path)
        except ModelError as refusal:
            assert "has parts that would run code" in str(refusal)
            assert attack != "a_guard"
        else:
            assert loaded._guards_code == [] and attack == "a_guard"  # left out
            l0.capture(loaded)
        assert not sprung.exists()

    def test_the_honest_program_is_read(self, tmp_path):
        hostile_programs.save_seed(tmp_path / "seed.pt2")
        assert l0.capture(load_pt2(tmp_path / "seed.pt2")).module()(torch.ones(3, 8), scale=torch.ones(6)).shape == (
            3,
            6,
        )

    def test_a_weight_that_takes_the_place_of_a_method(self, mlp_pt2, tmp_path):
        bad = rewritten(mlp_pt2, tmp_path / "bad.pt2", ".json", lambda c: c.replace(b'"0.weight"', b'"0.forward"'))
        with pytest.raises(CaptureError, match="the exported program cannot be put together"):
            l0.capture(load_pt2(bad))

    def test_a_weight_that_takes_the_place_of_an_attribute_of_the_class(self, mlp_pt2, tmp_path):
        name = b'"0.__class__.dump_patches"'
        bad = rewritten(mlp_pt2, tmp_path / "bad.pt2", ".json", lambda c: c.replace(b'"0.weight"', name))
        with pytest.raises(ModelError, match="has parts that would run code"):
            load_pt2(bad)


class TestSizes:
    @pytest.mark.parametrize(
        "text",
        ["s77", "2*s0", "Max(1, s0 - 3)", "Symbol('s77', positive=True, integer=True)", "s0**2", "-s0//4", "Mod(u0, 2)",
         "Piecewise((1, s0 < 3), (2, True))", "Eq(s0, 4)", "1.5", "s0 & s1",
         "Mul(Integer(4), Pow(Symbol('s27', positive=True, integer=True), Integer(2)))", "Pow(s0, 3)"],
    )  # fmt: skip
    def test_arithmetic_is_let_through(self, text):
        assert is_arithmetic(text)

    @pytest.mark.parametrize(
        "text",
        ["__import__('os')", "().__class__", "open('x')", "lambda: 0", "[s0 for s0 in range(3)]", "9**9**9", "s0**s1",
         "Symbol('x y')", "Symbol('s0', cls=print)", "exec('1')", "s0; s1", "'text'", "S.Infinity", "f'{s0}'", "(s0)()",
         "", "s0" + "+s0" * 2000, "1" * 60, "evaluate(s0)", "s0.func(1)", "print", "Symbol", "s0[0]", "oo.func",
         "Pow(9, Pow(9, 9))", "Pow(Pow(9, 8), 8)", "((9**8)**8)**8", "Pow(9**8, 8)", "Pow(s0, 9)",
         "Pow(s0, Integer(99))", "Pow(s0)", "Pow(s0, s1)", "Pow(s0, 2, evaluate=True)", "Pow(s0, Integer('2'))",
         "Pow(s0, True)"],
    )  # fmt: skip
    def test_everything_else_is_not(self, text):
        assert not is_arithmetic(text) or text in ("print", "Symbol")

    @given(st.text(alphabet="s0(_.)[]'{,:=+ *a", max_size=30))
    def test_what_is_let_through_has_no_attributes_items_or_private_names(self, text):
        if is_arithmetic(text):
            nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
            assert not any(
                isinstance(node, ast.Attribute | ast.Subscript | ast.Lambda | ast.JoinedStr) for node in nodes
            )
            assert not any(isinstance(node, ast.Name) and node.id.startswith("_") for node in nodes)


class TestOperators:
    @pytest.mark.parametrize(
        "overload", ["relu.default", "add.Tensor", "__and__.Tensor", "sym_size.int", "linear.default"]
    )
    def test_functions_are_let_through(self, overload):
        assert is_safe_operator(f"torch.ops.aten.{overload}")

    @pytest.mark.parametrize(
        "name",
        ["torch.os.system", "torch.hub.load", "torch.load", "torch.ops.load_library",
         "torch.ops.aten.from_file.default", "torch.ops.aten.relu",
         "torch.ops.aten.relu.default.__class__", "torch.ops.aten.__class__.__init__",
         "torch.ops.higher_order.call_torchbind", "torch.ops.debugprims.load_tensor.default", "_operator.attrgetter",
         "_operator.call", "math.factorial", "#inductor:x", "builtins.eval", "torch.ops.no_such.op.default", ""],
    )  # fmt: skip
    def test_everything_else_is_not(self, name):
        assert not is_safe_operator(name)

    def test_an_operator_of_one_s_own_is_known_once_it_is_registered(self):
        library = torch.library.Library("loading_test", "FRAGMENT")
        library.define("twice(Tensor x) -> Tensor")
        assert is_safe_operator("torch.ops.loading_test.twice.default")


class TestPrograms:
    @pytest.mark.parametrize(
        "part",
        [
            {"inputs": [{"as_tensor": {"name": "x=open('f')"}}]},
            {"as_string": "'); print('"},
            {"config": {"a'); print('": {}}},
            {"in_spec": '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'},
            {"in_spec": '[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": true}", "children_spec": []}]'},
            {"in_spec": '[1, {"type": "builtins.dict", "context": "[\\"a\'b\\"]", "children_spec": []}]'},
            {"sizes": [{"as_int": 10**6}, {"as_int": 10**6}]},
            {"parameter_name": "weight.__class__"},
            {"name": "size", "arg": {"as_ints": [10**6, 10**6]}},
        ],
    )
    def test_texts_that_would_become_code_are_found(self, part):
        assert fault_of_program({"graph": [part]}) is not None

    def test_guards_and_notes_are_left_out_and_source_lines_stay(self, mlp_pt2):
        program = program_of(mlp_pt2)
        program["guards_code"] = ["open('sprung')"]
        cleaned = without_notes(program)
        nodes = cleaned["graph_module"]["graph"]["nodes"]
        assert cleaned["guards_code"] == [] and all(set(node["metadata"]) <= {"stack_trace"} for node in nodes)
        assert any(node["metadata"].get("stack_trace") for node in nodes)

    def test_two_readers_cannot_see_two_programs(self, mlp_pt2, tmp_path):
        """Bytes after a zip archive's end, or a second member of one name, never reach torch."""
        content, other = mlp_pt2.read_bytes(), tmp_path / "other.pt2"
        save_pt2(nn.Linear(3, 2), (torch.zeros(2, 3),), other)
        (tmp_path / "both.pt2").write_bytes(other.read_bytes() + content)
        try:
            loaded = load_pt2(tmp_path / "both.pt2")
        except ModelError:
            return
        assert torch.equal(loaded.module()(torch.ones(2, 8)), tiny_mlp()(torch.ones(2, 8)))

    def test_an_expanded_weight_cannot_fill_the_memory(self, mlp_pt2, tmp_path):
        def expanded(content: bytes) -> bytes:
            config = json.loads(content)
            meta = config["config"]["0.weight"]["tensor_meta"]
            meta["sizes"], meta["strides"] = [{"as_int": 40_000}, {"as_int": 40_000}], [{"as_int": 0}, {"as_int": 0}]
            return json.dumps(config).encode()

        bad = rewritten(mlp_pt2, tmp_path / "bad.pt2", "weights_config.json", expanded)
        with pytest.raises(
            ModelError, match=r"its tensor '0\.weight' claims shape \(40000, 40000\), which is more than"
        ):
            load_pt2(bad)

    def test_what_is_trusted_is_read_as_it_is(self, mlp_pt2, tmp_path):
        def renamed(content: bytes) -> bytes:
            return content.replace(b'"guards_code": []', b'"guards_code": ["1 == 1"]')

        loaded = load_pt2(rewritten(mlp_pt2, tmp_path / "own.pt2", "model.json", renamed), trust_pickle=True)
        assert loaded._guards_code == ["1 == 1"]


class Branching(nn.Module):
    """Regions, symbolic sizes, keyword arguments and a dictionary: what honest programs may contain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.weights = nn.ParameterDict({"a b-c": nn.Parameter(torch.ones(6))})
        self.register_buffer("positions", torch.arange(6).expand(1, -1))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            shift = x.mean(0, keepdim=True)
        y = self.drop(self.norm(self.layer(x - shift))) * self.weights["a b-c"]
        rows = torch.arange(x.shape[0] * 2)[: x.shape[0]].float()
        return {"y": torch.einsum("bi,i->b", y, scale) + rows, "z": y + self.positions}


@pytest.mark.slow
def test_honest_programs_with_all_that_they_may_contain(tmp_path):
    model, x, scale = Branching().eval(), torch.randn(2, 8), torch.randn(6)
    free = {"x": {0: torch.export.Dim.DYNAMIC}, "scale": None}
    program = torch.export.export(model, (x,), {"scale": scale}, dynamic_shapes=free, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded, wide = load_pt2(tmp_path / "model.pt2"), torch.randn(5, 8)
    for name, value in model(wide, scale=scale).items():
        assert torch.equal(loaded.module()(wide, scale=scale)[name], value)
    # The einsum becomes a product, which may add up in another order.
    captured = l0.capture(loaded).module()(wide, scale=scale)
    torch.testing.assert_close(captured["y"], model(wide, scale=scale)["y"], rtol=1e-6, atol=1e-6)


class TestArchives:
    def archive(self, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return buffer.getvalue()

    @pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:/x", "a\\..\\..\\x", "a\nb"])
    def test_members_that_leave_the_folder(self, name):
        with pytest.raises(ModelError, match="leaves the archive's folder"):
            open_archive(self.archive((name, b"1")), "model 'x'", error=ModelError)

    def test_two_members_of_one_name(self):
        with pytest.raises(ModelError, match=r"it has two parts 'A/b'"):
            open_archive(self.archive(("a/b", b"1"), ("A/b", b"2")), "model 'x'", error=ModelError)

    @pytest.mark.parametrize(("mebibytes", "refused"), [(10, False), (100, True)])
    def test_a_bomb_is_refused_and_what_compresses_well_is_not(self, mebibytes, refused):
        content = self.archive(("a", bytes(mebibytes * 2**20)), compression=zipfile.ZIP_DEFLATED)
        if not refused:
            assert open_archive(content, "data 'x'").size("a") == mebibytes * 2**20
            return
        with pytest.raises(ModelError, match=r"it would unpack to 104,857,600 bytes"):
            open_archive(content, "data 'x'", error=ModelError)

    def test_members_that_overlap(self):
        """One megabyte that the directory lists a hundred times."""
        content = bytearray(self.archive(*((f"{i:02}", bytes(2**20) if i == 0 else b"") for i in range(100))))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = archive.start_dir
        first = bytes(content[start : start + 48])
        listed = b"".join(first[:46] + f"{i:02}".encode() for i in range(100))
        content[start : start + len(listed)] = listed
        with pytest.raises(ModelError, match=r"its parts add up to 104,857,600 bytes in a file of"):
            open_archive(bytes(content), "data 'x'", error=ModelError)
