"""Batches of one sample, which a batch norm over one value per channel cannot be trained on."""

from __future__ import annotations

import torch

from l0compress.data import AnySplit, StreamSplit
from l0compress.errors import DataError, InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import op_name
from l0compress.training.randomness import undisturbed
from l0compress.training.settings import FinetuneSettings
from l0compress.verification.calls import example_calls


def takes_one_sample(graph: CapturedGraph) -> bool:
    """Whether the network can run on one sample in training mode.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> norms = {"flat": nn.BatchNorm1d(3), "wide": nn.Sequential(nn.Unflatten(1, (1, 3)), nn.BatchNorm1d(1))}
    >>> {name: takes_one_sample(capture(norm, (torch.zeros(2, 3),))) for name, norm in norms.items()}
    {'flat': False, 'wide': True}
    """
    if all(op_name(node) != "batch_norm" for node in graph.nodes()):
        return True
    network = graph.module().train()
    call = example_calls(graph, (1,))[-1]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            network(*call.args, **call.kwargs)
        except InputError:
            return False
    return True


def check_batches(train: AnySplit, settings: FinetuneSettings) -> None:
    """Refuse a training part that has no batch of two samples.

    Raises:
        DataError: says where the size of the batches is set.
    """
    size = settings.batch_size_for(len(train))
    if not isinstance(train, StreamSplit):
        longest, advice = min(size, len(train)), "Pass --batch-size 2 or more, for at least two training samples."
    else:
        with undisturbed(train):
            longest = next((len(batch) for batch in train.batches(size, seed=0) if len(batch) > 1), 1)
        advice = "Give a loader whose batches have two samples or more."
    if longest < 2:
        raise DataError(
            "Every training batch has one sample, and the model has a batch norm with one value per channel and "
            "sample, so its variance is undefined.",
            fix=f"{advice}",
        )
