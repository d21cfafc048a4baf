"""Is it the same model, and are these the same data? Only then does a run go on as it would have."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from l0compress.data import Data, Split
from l0compress.errors import RunError
from l0compress.graph.capture import CapturedGraph


def graph_fingerprint(graph: CapturedGraph) -> str:
    """The SHA-256 of a graph's nodes and weights.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> net = nn.Linear(2, 1)
    >>> one, same = (graph_fingerprint(capture(net, (torch.zeros(2, 2),))) for _ in range(2))
    >>> _ = net.bias.data.add_(1.0)
    >>> one == same, one == graph_fingerprint(capture(net, (torch.zeros(2, 2),)))
    (True, False)
    """
    digest = hashlib.sha256(str(graph.graph_module.graph).encode())
    for name, tensor in sorted(graph.state().items()):
        digest.update(name.encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def data_fingerprint(data: Data) -> dict[str, Any]:
    """For every part the number of samples, and the SHA-256 of what is in memory.

    >>> part = Split((torch.zeros(3, 2),))
    >>> data_fingerprint(Data(part, part))["train"]["samples"]
    3
    """
    return {name: _part(split) for name, split in data.parts().items()}


def _part(split: Any) -> dict[str, Any]:
    if not isinstance(split, Split):
        return {"samples": len(split)}
    digest = hashlib.sha256()
    for name, leaf in (*split.places().items(), ("targets", split.targets)):
        digest.update(f"{name}".encode())
        digest.update(_content(leaf) if isinstance(leaf, Tensor) else b"" if leaf is None else repr(leaf).encode())
    return {"samples": len(split), "sha256": digest.hexdigest()}


def _content(tensor: Tensor) -> bytes:
    shape = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return shape + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check_same(then: dict[str, Any], now: dict[str, Any], folder: str) -> None:
    """Compare what a run began with to what is there now; both as ``{"model": ..., "data": ...}``.

    Raises:
        RunError: they differ; the message says in what.
    """
    if then["model"] != now["model"]:
        raise RunError(
            f"The model is not the one that run {folder!r} started with.",
            fix="Restore that model, or start a new run.",
        )
    for part in sorted(then["data"].keys() | now["data"].keys()):
        before, after = then["data"].get(part), now["data"].get(part)
        if before != after:
            counts = [0 if found is None else found["samples"] for found in (before, after)]
            what = f"{counts[1]:,} samples instead of {counts[0]:,}" if counts[0] != counts[1] else "other values"
            raise RunError(
                f"The {part} part of the data is not the one that run {folder!r} began with: {what}.",
                fix="Restore those data, or start a new run.",
            )
