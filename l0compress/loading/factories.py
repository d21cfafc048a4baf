"""Modules from the user's own code, filled with the weights of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from l0compress.errors import ModelError
from l0compress.loading.references import call_reference

NAMED = 3
COUNTER = "num_batches_tracked"


def parse_factory_args(text: str | None) -> dict[str, Any]:
    """Parse a factory's keyword arguments from the command line: a JSON object.

    Example:
        >>> parse_factory_args('{"width": 64, "act": "relu"}'), parse_factory_args(None)
        ({'width': 64, 'act': 'relu'}, {})

    Raises:
        ModelError: the text is not a JSON object whose keys can be keywords.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise ModelError(
            f"--factory-args {text!r} is not JSON ({reason}).",
            fix="Write for example --factory-args '{\"width\": 64}'.",
        ) from reason
    if not isinstance(value, dict) or not all(key.isidentifier() for key in value):
        raise ModelError(
            f"--factory-args {text!r} is not a JSON object of keyword arguments.",
            fix="Write for example --factory-args '{\"width\": 64}'.",
        )
    return value


def build(factory: str, arguments: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Return the module that a factory builds, in evaluation mode, with the weights of a file.

    Raises:
        ModelError: the factory fails or does not return a module, or the weights do not fit; the message names the
            first few.
    """
    module = call_reference(factory, flag="--factory", error=ModelError, arguments=arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"--factory {factory!r} returned a {type(module).__name__}, not a torch.nn.Module.",
            fix="Name a function that returns the module.",
        )
    return fill(module, weights, f"the module of --factory {factory!r}", path)


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str, path: Path) -> nn.Module:
    """Load weights into a module, by the module's names or by names without a first part that they all share.

    Raises:
        ModelError: names or shapes differ.
    """
    wanted = module.state_dict()
    given = dict(_renamed(weights, set(wanted)))
    # A counter that torch added to batch norms in 2018; files from before that lack it.
    given |= {name: count for name, count in wanted.items() if name.endswith(COUNTER) and name not in given}
    faults = _name_faults(set(wanted), set(given)) + _shape_faults(wanted, given)
    if faults:
        raise ModelError(
            f"The weights in {str(path)!r} do not fit {what}: {'; '.join(faults)}.",
            fix="Build the module as it was built for training (--factory-args), or name the right file.",
        )
    module.load_state_dict(given)
    return module.eval()


def _renamed(weights: Mapping[str, Tensor], wanted: set[str]) -> Mapping[str, Tensor]:
    # A LightningModule keeps the network as an attribute, whose name precedes every other.
    first = next(iter(weights)).partition(".")[0] + "."
    if set(weights) == wanted or not all(name.startswith(first) for name in weights):
        return weights
    shorter = {name.removeprefix(first): value for name, value in weights.items()}
    return shorter if len(set(shorter) & wanted) > len(set(weights) & wanted) else weights


def _name_faults(wanted: set[str], given: set[str]) -> list[str]:
    labels = (("the file lacks", wanted - given), ("the module lacks", given - wanted))
    return [f"{label} {_some(sorted(names))}" for label, names in labels if names]


def _shape_faults(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    wrong = [
        f"{name!r} is {tuple(given[name].shape)} in the file and {tuple(wanted[name].shape)} in the module"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    return [*wrong[:NAMED], f"{len(wrong) - NAMED} more shapes differ"] if len(wrong) > NAMED else wrong


def _some(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:NAMED]))} ({len(names)} in all)"
