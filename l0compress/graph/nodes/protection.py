"""What the user wants to keep of a model: layers that are not cut, and the least that stays of others, by glob.

A glob stands for a parameter if it matches the parameter's name or that of a module which it is in: ``stem``,
``stem.*`` and ``stem.conv.weight`` all speak of ``stem.conv.weight``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from l0compress.errors import InputError

EVERYTHING = "*"


@dataclass(frozen=True)
class Protection:
    """Limits on what is removed, beside those on what is left.

    Attributes:
        keep: globs of layers of which nothing is removed.
        min_density: globs and shares: of every group that one of them stands for at least that share of its moves
            stays. The last one that matches counts.
    """

    keep: tuple[str, ...] = ()
    min_density: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(
        cls, keep: str | Sequence[str] | None = None, min_density: float | str | Sequence[float | str] | None = None
    ) -> Protection:
        """Read limits as users write them: globs, and shares, ``0.1`` or ``"layer1.*=0.5"``, one or several of each.

        >>> Protection.of("stem.*", ["layer1.*=0.5", 0.1])
        Protection(keep=('stem.*',), min_density=(('*', 0.1), ('layer1.*', 0.5)))

        Raises:
            InputError: a share is none.
        """
        shares = [_share(each) for each in _listed(min_density)]
        # A number by itself is for what nothing else is said of, wherever it stands.
        return cls(tuple(_listed(keep)), tuple(sorted(shares, key=lambda share: share[0] != EVERYTHING)))

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return bool(self.keep or self.min_density)

    def keeps(self, name: str) -> bool:
        """Whether a parameter is one of a layer of which nothing is removed."""
        return any(stands_for(glob, name) for glob in self.keep)

    def density_of(self, names: Iterable[str]) -> float:
        """The least share that has to stay of what these parameters share.

        >>> Protection.of(min_density=[0.1, "a=0.5"]).density_of(["b.weight"])
        0.1
        """
        named = list(names)
        shares = [share for glob, share in self.min_density if any(stands_for(glob, name) for name in named)]
        return shares[-1] if shares else 0.0

    def least_of(self, name: str, elements: int) -> int:
        """How many elements of a parameter have to stay, at least one."""
        return max(1, least(self.density_of([name]), elements))

    def without(self, limit: str) -> Protection:
        """The others of :meth:`limits`."""
        return Protection(
            tuple(glob for glob in self.keep if _keep_text(glob) != limit),
            tuple(pair for pair in self.min_density if _density_text(*pair) != limit),
        )

    def limits(self) -> tuple[str, ...]:
        """All limits for people, each as text."""
        return (*map(_keep_text, self.keep), *(_density_text(*pair) for pair in self.min_density))

    def check_matches(self, names: Sequence[str]) -> None:
        """Refuse a glob that stands for none of the parameters ``names``.

        Raises:
            InputError: there is one; the message has the nearest names.
        """
        check_globs("keep", self.keep, names)
        check_globs("min_density", [glob for glob, _ in self.min_density], names)


UNPROTECTED = Protection()


def check_globs(option: str, globs: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a glob of an option that stands for none of the parameters ``names``.

    Raises:
        InputError: there is one; the message has the nearest names.
    """
    for glob in globs:
        if not any(stands_for(glob, name) for name in names):
            raise InputError(
                f"{option} {glob!r} matches no layer of the model.",
                fix=f"The nearest names are {_nearest(glob, names)}; l0compress inspect lists all groups.",
            )


def least(share: float, count: int) -> int:
    """A share of a count, rounded up; shares are decimal numbers, so rounding of binary ones does not count.

    >>> least(0.1, 30), least(0.5, 5), least(0.0, 5)
    (3, 3, 0)
    """
    return math.ceil(share * count - 1e-9)


def stands_for(glob: str, name: str) -> bool:
    """Whether a glob matches a parameter's name, or that of a module which it is in.

    >>> [stands_for(glob, "stem.conv.weight") for glob in ("stem", "stem.*", "*.conv", "conv")]
    [True, True, True, False]
    """
    return any(fnmatchcase(path, glob) for path in _paths(name))


def _paths(name: str) -> list[str]:
    """A parameter's name and the modules around it, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _listed(given: float | str | Sequence[float | str] | None) -> list:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _share(given: float | str) -> tuple[str, float]:
    glob, equals, number = given.rpartition("=") if isinstance(given, str) else ("", "", given)
    try:
        share = float(number)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1 or (equals and not glob.strip()):
        raise InputError(
            f"min_density {given!r}: expected a share between 0 and 1, or GLOB=SHARE.",
            fix="Write for example 0.1, or layer1.*=0.5.",
        )
    return glob.strip() or EVERYTHING, share


def _keep_text(glob: str) -> str:
    return f"keep {glob!r}"


def _density_text(glob: str, share: float) -> str:
    return f"min_density {share:g}" if glob == EVERYTHING else f"min_density {f'{glob}={share:g}'!r}"


def _nearest(glob: str, names: Sequence[str]) -> str:
    known = list(dict.fromkeys(path for name in names for path in _paths(name)))
    plain = glob.strip("*.?")
    found = difflib.get_close_matches(plain, known, n=3, cutoff=0.0)
    return ", ".join(repr(name) for name in found) or "none"
