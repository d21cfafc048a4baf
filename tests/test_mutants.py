"""Faults to plant: each has its place in the source of today, found by name and by syntax."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutant import Fault, NotPlantedError
from mutant_list import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_mutants.py", "")
SOURCE = '''"""A module."""
LIMITS = {"low": 1, "high": 9}

class Tank:
    # Litres.
    def fill(self, litres):
        """Fill it.

        Twice as much is wasted.
        """
        level = (self.level +
                 litres)
        self.note(level)
        return level

def level(tank):
    def inner(): return tank.level + 1
    return inner()
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "water" / "deep").mkdir(parents=True)
    (tmp_path / "water" / "deep" / "tank.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_every_fault_has_one_place(number: int) -> None:
    file, faulty = MUTANTS[number].planted(ROOT)
    assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(file.read_text()))


@pytest.mark.parametrize(
    ("where", "old", "new", "text", "fault"),
    [
        ("water.deep.tank:Tank.fill", "self.level + litres", "0", "(self.level +\n                 litres)", "0"),
        ("water:Tank.fill", "self.note(level)", "pass", "self.note(level)", "pass"),
        ("water:Tank.fill", "self.note(level)\nreturn level", "return level", "self.note(level)", "pass"),
        ("water:Tank.fill", "self.note", "self.drop", "self.note", "self.drop"),
        ("water:level.inner", "1", "2", "level + 1", "level + 2"),
        ("water:level", "", "return 0", "    def inner(): return tank.level + 1\n    return inner()", "    return 0"),
        ("water:LIMITS", "9", "8", "9", "8"),
    ],
)  # fmt: skip
def test_a_fault_is_what_the_same_change_of_the_text_is(root: Path, where, old, new, text, fault) -> None:
    file, faulty = Fault(where, old, new, TESTS).planted(root)
    assert file == root / "water/deep/tank.py"
    changed = SOURCE.replace(text, fault)
    if fault == "pass" and "return" in old:
        changed = SOURCE.replace("        self.note(level)\n", "")
    assert ast.dump(ast.parse(faulty)) == ast.dump(ast.parse(changed))


@pytest.mark.parametrize(
    ("where", "old", "message"),
    [
        ("water:Tank.empty", "1", "water:Tank.empty is defined 0 times"),
        ("water:Tank.fill", "self.level - litres", "'self.level - litres' occurs 0 times"),
        ("water:Tank.fill", "level", "'level' occurs 2 times"),
        ("water:LIMITS", "", "only a function has a body to replace"),
    ],
)
def test_a_fault_without_one_place_is_refused(root: Path, where: str, old: str, message: str) -> None:
    with pytest.raises(NotPlantedError) as error:
        Fault(where, old, "0", TESTS).planted(root)
    assert str(error.value) == message


def test_a_name_that_is_defined_in_two_modules_is_refused(root: Path) -> None:
    (root / "water" / "level.py").write_text("def level(): return 1\n")
    with pytest.raises(NotPlantedError, match=r"^water:level is defined 2 times$"):
        Fault("water:level", "1", "2", TESTS).planted(root)
