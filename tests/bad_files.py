"""A working directory with a model, data that fits it, and the ways in which both can be wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from conftest import save_blobs, save_pt2, tiny_mlp
from safetensors.torch import save_file
from torch import nn


class Trap:
    """Unpickling an instance of this runs code: it creates a file."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


class Wanderer(nn.Module):
    """Its path depends on the data, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x - 1


def wanderer() -> nn.Module:
    """A factory of a module that cannot be captured."""
    return nn.Sequential(nn.Linear(8, 3), Wanderer())


def build(folder: Path) -> None:
    """Fill a working directory with a model, data that fits it, and the ways in which both can be wrong."""
    os.chdir(folder)
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), Path("mlp.pt2"))
    save_pt2(nn.LayerNorm(8), (torch.zeros(2, 8),), Path("norm.pt2"))
    save_blobs(Path("blobs.npz"))
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("typo.toml").write_text("seed = 1\n[training]\nepoch = 3\n")
    _build_models()
    _build_archives()
    _build_folders()
    _build_arrays()
    _build_tables()


def _build_models() -> None:
    torch.save(tiny_mlp().state_dict(), "weights.pt")
    torch.save(wanderer().state_dict(), "wanderer.pt")
    torch.save(tiny_mlp(), "pickled.pt")
    torch.save({"weights": Trap()}, "trap.pt")
    torch.save({"epoch": 3}, "empty.pt")
    torch.save(nn.Linear(8, 3).state_dict(), "other.pt")
    torch.save(nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).state_dict(), "wide.pt")
    save_file(tiny_mlp().state_dict(), "whole.safetensors")
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:100])
    Path("cut.pt").write_bytes(Path("weights.pt").read_bytes()[:900])
    Path("cut.pt2").write_bytes(Path("mlp.pt2").read_bytes()[:9000])
    Path("noise.pt2").write_bytes(b"no archive")
    Path("noise.pt").write_bytes(b"no model at all")
    Path("noise.onnx").write_bytes(b"no graph at all")
    Path("model.h5").write_bytes(b"x")
    with zipfile.ZipFile("script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"\x80\x02).")


def _build_archives() -> None:
    """Archives that were tampered with: each would run code, or fill the memory, in a reader that trusts it."""
    tampered = {
        "operator.pt2": (".json", "torch.ops.aten.linear.default", "torch.os.system"),
        "file.pt2": (".json", "torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
        "size.pt2": (".json", "Symbol('", "__import__('os').system('touch sprung') or Symbol('"),
        "name.pt2": (".json", '"name": "relu"', '"name": "relu=print(1)"'),
        "huge.pt2": ("weights_config.json", '[{"as_int": 6}, {"as_int": 8}]', '[{"as_int": 99999999999}]'),
        "enum.pt2": (".json", "builtins.tuple", "collections.defaultdict"),
        "basket.pt2": (".json", "builtins.tuple", "shop.Basket"),
    }  # fmt: skip
    for name, (ending, old, new) in tampered.items():
        rewrite("mlp.pt2", name, ending, lambda content, old=old, new=new: content.replace(old.encode(), new.encode()))
    rewrite("mlp.pt2", "inputs.pt2", "sample_inputs/model.pt", lambda _: pickle.dumps(Trap()))
    rewrite("mlp.pt2", "extra.pt2", "", lambda content: content, extra={"mlp/../../outside": b"x"})
    rewrite("mlp.pt2", "twice.pt2", "", lambda content: content, extra={"MLP/MODELS/MODEL.JSON": b"{}"})
    rewrite("weights.pt", "moved.pt", "", lambda content: content, extra={"/etc/outside": b"x"})
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(100 * 2**20))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    Path("absurd.npy").write_bytes(buffer.getvalue())


def rewrite(source: str, target: str, ending: str, change, extra: dict[str, bytes] | None = None) -> None:
    """Copy a zip archive, changing the members whose names end so, and adding others."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if ending and name.endswith(ending) else content)
        for name, content in (extra or {}).items():
            new.writestr(name, content)


def _build_folders() -> None:
    configs = {
        "hf_code": {"architectures": ["OwnNet"], "auto_map": {"AutoModel": "own.OwnNet"}, "model_type": "bert"},
        "hf_bare": {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1},
        "hf_shards": {"architectures": ["BertModel"], "model_type": "bert"},
    }
    for name, config in configs.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config))
    Path("hf_code/own.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    Path("hf_shards/model.safetensors.index.json").write_text('{"weight_map": {"a": "../weights.pt"}}')
    Path("hf_json").mkdir()
    Path("hf_json/config.json").write_text("{")
    Path("hf_json/model.safetensors").write_bytes(b"")


def _build_arrays() -> None:
    save_blobs(Path("labels.npz"), y_train=np.full(120, 3))
    save_blobs(Path("shape.npz"), x_train=np.zeros((120, 5), np.float32))
    save_blobs(Path("nan.npz"), x_test=np.full((60, 8), np.nan, np.float32))
    save_blobs(Path("floating.npz"), y_train=np.zeros(120, np.float32))
    np.savez("objects.npz", x_train=np.array([Trap()], dtype=object))
    np.savez("letters.npz", x_train=np.array(["a"]), y_train=np.zeros(1))
    np.savez("uneven.npz", x_train=np.zeros((9, 2)), y_train=np.zeros(8))
    np.savez("few.npz", x_train=np.zeros((5, 8)), y_train=np.zeros(5))
    np.savez("nameless.npz", z=np.zeros(3))
    Path("noise.npz").write_bytes(b"no archive")
    Path("cut.npz").write_bytes(Path("blobs.npz").read_bytes()[:5000])


def _build_tables() -> None:
    from PIL import Image

    rows = [f"{i},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(30)]
    Path("table.csv").write_text("size,hue,sold\n" + "\n".join(rows) + "\n")
    Path("gap.csv").write_text("size,hue,sold\n" + "\n".join([*rows[:5], "5,red,", *rows[5:]]) + "\n")
    Path("ragged.csv").write_text("size,hue\n1,red\n2,red,extra,fields\n")
    Path("header.csv").write_text("size,sold\n")
    Path("sentences.tsv").write_text("0 a dull film\n1 a fine film\n" * 10)
    Path("labelless.tsv").write_text("0 a dull film\nfine\n")
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        Path("pictures", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4) if name != "cats/2.png" else (5, 4)).save(Path("pictures", name))
    Path("broken/cats").mkdir(parents=True)
    for number in range(10):
        Path(f"broken/cats/{number}.png").write_bytes(b"no picture")
    Path("nothing").mkdir()
