"""Archives of programs that harm whoever lets ``torch.export.load`` read them: one for each check of ``load_pt2``.

Every attack creates a file in the working directory. What cannot be shown so (memory that is filled, a size that takes
forever to evaluate) is in ``hostile_files.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_files import SPRUNG, rewrite_archive
from torch import nn

# A module that springs the trap when it is imported, for containers that name modules.
BAIT, BAIT_SOURCE = "l0_bait", f"import enum\nopen({SPRUNG!r}, 'w').close()\nclass Colour(enum.Enum):\n    RED = 1\n"
# Without a dot, at which names of weights are split.
SPRING = f"getattr(open('{SPRUNG}','w'),'close')()"
Program = dict[str, Any]


class Scaled(nn.Module):
    """A weight, a constant made by an operator, a free batch and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * scale + torch.ones(6)


def save_seed(path: Path) -> None:
    """The honest program that the attacks change."""
    torch.manual_seed(0)
    free = {"x": {0: torch.export.Dim.DYNAMIC}, "scale": None}
    example = {"scale": torch.ones(6)}
    torch.export.save(torch.export.export(Scaled().eval(), (torch.ones(2, 8),), example, dynamic_shapes=free), path)


def a_name_of_a_value(program: str) -> str:
    return program.replace("scale", f"scale={SPRING}")


def a_size(program: str) -> str:
    return program.replace("Symbol('", f"{SPRING} or Symbol('")


def a_guard(program: str) -> str:
    changed: Program = json.loads(program)
    changed["guards_code"] = [f"{SPRING} is None"]
    return json.dumps(changed)


def an_operator(program: str) -> str:
    changed: Program = json.loads(program)
    (node,) = (n for n in changed["graph_module"]["graph"]["nodes"] if "ones" in n["target"])
    node["target"] = "torch.ops.aten.from_file.default"
    arguments = {"filename": {"as_string": SPRUNG}, "shared": {"as_bool": True}, "size": {"as_int": 6}}
    node["inputs"] = [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments.items()]
    return json.dumps(changed)


def _keywords(program: str, change: Callable[[Program], None]) -> str:
    """Change the description of the keywords among the inputs."""
    changed: Program = json.loads(program)
    signature = changed["graph_module"]["module_call_graph"][0]["signature"]
    version, spec = json.loads(signature["in_spec"])
    change(spec["children_spec"][1])
    signature["in_spec"] = json.dumps([version, spec])
    return json.dumps(changed)


def an_enum_among_keys(program: str) -> str:
    key = {"__enum__": True, "fqn": f"{BAIT}:Colour", "name": "RED"}
    return _keywords(program, lambda keywords: keywords.update(context=json.dumps([key])))


def a_default_factory(program: str) -> str:
    context = {"default_factory_module": BAIT, "default_factory_name": "Colour", "dict_context": ["scale"]}
    return _keywords(program, lambda keywords: keywords.update(type="collections.defaultdict", context=context))


def a_name_of_a_weight(program: str) -> str:
    name = f'layer.training"), {SPRING}, getattr(self, "x'
    return program.replace('"layer.weight"', json.dumps(name))


ATTACKS: dict[str, Callable[[str], str]] = {
    attack.__name__: attack
    for attack in (
        a_name_of_a_value, a_size, a_guard, an_operator, an_enum_among_keys, a_default_factory, a_name_of_a_weight
    )
}  # fmt: skip


def save_attack(name: str, folder: Path) -> Path:
    """The file of one attack, with the module that some of them name beside it."""
    (folder / f"{BAIT}.py").write_text(BAIT_SOURCE)
    save_seed(folder / "seed.pt2")
    attack = ATTACKS[name]
    # The names of weights stand in a second table as well.
    ending = ".json" if attack is a_name_of_a_weight else "models/model.json"
    rewrite_archive(folder / "seed.pt2", folder / "hostile.pt2", ending, lambda c: attack(c.decode()).encode())
    return folder / "hostile.pt2"
