"""Files that are built to harm a reader: to run code, fill the memory, or reach outside their folder."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from conftest import save_pt2, tiny_mlp
from onnx import TensorProto, helper, numpy_helper

SPRUNG = "sprung"
# Guards are left out when an archive is packed anew, so this one may be read.
HARMLESS = ("guard.pt2",)


class Trap:
    """Unpickling an instance of this runs code: it creates a file in the working directory."""

    def __reduce__(self):
        return Path.touch, (Path(SPRUNG),)


def save_array(path: Path) -> None:
    """Forty samples of eight numbers."""
    np.save(path, np.arange(320, dtype=np.float32).reshape(40, 8))


def onnx_mlp() -> onnx.ModelProto:
    """Eight inputs, six hidden units, three outputs, in ONNX."""
    weights = [tensor.numpy() for tensor in tiny_mlp().state_dict().values()]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    initializers = [numpy_helper.from_array(w, name) for w, name in zip(weights, ("w0", "b0", "w1", "b1"), strict=True)]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_onnx(path: Path) -> None:
    """The ONNX model in one file."""
    path.write_bytes(onnx_mlp().SerializeToString())


def change_member(content: bytes, rng: random.Random) -> bytes:
    """A mutation within one member of a zip archive, whose checksums are then right; other files get flipped bits."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        at = rng.randrange(len(content))
        return content[:at] + rng.randbytes(4) + content[at + 4 :]
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            member = old.read(name)
            if name == chosen and member:
                member = _digits_changed(member, rng) if rng.random() < 0.5 else flip_bits(member, rng, most=4)
            if name != chosen or rng.random() < 0.97:
                new.writestr(name, member)
    return buffer.getvalue()


def flip_bits(content: bytes, rng: random.Random, *, most: int = 8) -> bytes:
    """One to ``most`` bits, anywhere."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _digits_changed(member: bytes, rng: random.Random) -> bytes:
    """A number in text becomes another: sizes, offsets and types of a program's JSON."""
    places = [at for at, byte in enumerate(member) if 48 <= byte < 58]
    if not places:
        return flip_bits(member, rng, most=4)
    at = rng.choice(places)
    number = rng.choice([b"0", b"-1", b"7", b"99999", b"2147483648", b"99999999999999", b"9" * 40])
    return member[:at] + number + member[at + 1 :]


def build(folder: Path) -> list[Path]:
    """Write one file of every attack."""
    folder.mkdir()
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), folder / "seed.pt2")
    seed = folder / "seed.pt2"
    program = {
        "operator": ("torch.ops.aten.relu.default", "torch.os.system"),
        "hub": ("torch.ops.aten.relu.default", "torch.hub.load"),
        "file": ("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
        "library": ("torch.ops.aten.relu.default", "torch.ops.load_library"),
        "print": ("torch.ops.aten.relu.default", "torch.ops.higher_order.call_torchbind"),
        "size": ("Symbol('", f"open('{SPRUNG}', 'w') or Symbol('"),
        "power": ("Symbol('", "9**9**9**9 + Symbol('"),
        "name": ('"name": "relu"', '"name": "relu=open(chr(115)+chr(112))"'),
        "placeholder": ('"name": "input"', f'"name": "input=open(\'{SPRUNG}\',\'w\')"'),
        "guard": ('"guards_code": []', f'"guards_code": ["open(\'{SPRUNG}\', \'w\') is None"]'),
        "dictionary": ("builtins.tuple", "collections.defaultdict"),
    }  # fmt: skip
    for name, (old, new) in program.items():
        rewrite_archive(
            seed, folder / f"{name}.pt2", ".json", lambda c, old=old, new=new: c.replace(old.encode(), new.encode())
        )
    rewrite_archive(seed, folder / "inputs.pt2", "sample_inputs/model.pt", lambda _: pickle.dumps(Trap()))
    config = {
        "weights": (b'"use_pickle": false', b'"use_pickle": true'),
        "huge": (b'"as_int": 6', b'"as_int": 9999999999'),
    }
    for name, (before, after) in config.items():
        ending = "weights_config.json"
        rewrite_archive(
            seed, folder / f"{name}.pt2", ending, lambda c, before=before, after=after: c.replace(before, after)
        )
    rewrite_archive(seed, folder / "deep.pt2", "model.json", lambda _: b"[" * 100_000 + b"]" * 100_000)
    _write_pickles(folder)
    _write_bombs(folder)
    _write_onnx(folder)
    seed.unlink()
    return sorted(path for path in folder.iterdir() if path.suffix != ".data")


def _write_pickles(folder: Path) -> None:
    torch.save({"weights": Trap()}, folder / "trap.pt")
    torch.save(Trap(), folder / "trap_legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "bare.pt").write_bytes(pickle.dumps(Trap()))
    np.savez(folder / "objects.npz", x_train=np.array([Trap()], dtype=object))
    np.save(folder / "objects.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (folder / "ten_terabytes.pt").write_bytes(
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R."
    )


def _write_bombs(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(300 * 2**20))
    with zipfile.ZipFile(folder / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/models/model.json", bytes(300 * 2**20))
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(300 * 2**20))
    with zipfile.ZipFile(folder / "outside.npz", "w") as archive:
        archive.writestr("../../x_train.npy", b"x")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    (folder / "absurd.npy").write_bytes(header.getvalue())
    text = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "absurd.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def _write_onnx(folder: Path) -> None:
    places = {"passwd": "../../../../../../etc/passwd", "absolute": "/etc/passwd", "longer": "longer.data"}
    for name, place in places.items():
        model = onnx_mlp()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", place),
            ("offset", "0"),
            ("length", "192" if name != "longer" else str(10**12)),
        ):
            tensor.external_data.add(key=key, value=value)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    (folder / "longer.data").write_bytes(bytes(10))
    model = onnx_mlp()
    model.graph.initializer[0].dims[0] = 10**12
    (folder / "dims.onnx").write_bytes(model.SerializeToString())


def rewrite_archive(source: Path, target: Path, ending: str, change: Callable[[bytes], bytes]) -> None:
    """Copy a zip archive, changing the members whose names end so."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(ending) else content)
