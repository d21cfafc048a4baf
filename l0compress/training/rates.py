"""The default learning rate: by what a network is made of, how wide its layers are, and how long it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import prod

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.int8 import leads_to_weights, product_of
from l0compress.graph.nodes.network import argument_at, op_name
from l0compress.graph.nodes.shapes import node_shape
from l0compress.training.settings import PLAIN_RATE

ATTENTION_RATE = 5e-4  # of a network of REFERENCE_WIDTH
REFERENCE_WIDTH = 384
FULL_STEPS = 20_000
_ATTENTION_OPS = ("scaled_dot_product_attention", "layer_norm", "rms_norm")


def learning_rate_for(graph: CapturedGraph, num_steps: int) -> float:
    """The highest learning rate of AdamW in a run of ``num_steps`` steps.

    Networks of convolutions and linear layers bear 0.01. Those that attend or normalise layers lose what they know at
    such a rate and get :data:`ATTENTION_RATE`, more where layers are narrower and less where they are wider, by the
    power 1.5 of the width: Adam moves every weight equally far, and a wide layer sums over more of them. A run of fewer
    than :data:`FULL_STEPS` steps has less time to make up for large steps, so its rate is lower by the square root of
    the share: down to a quarter, with attention to a half.

    Source: Yang et al., "Tensor Programs V" (2022), table 3, for the rule about width, there with the power 1 and for
    networks that are trained from the start; docs/recipe.md has the measurements that the power 1.5 rests on.

    >>> from torch import nn, zeros
    >>> from l0compress.graph.capture import capture
    >>> plain = capture(nn.Linear(4, 4), (zeros(2, 4),))
    >>> narrow = capture(nn.Sequential(nn.Linear(96, 4), nn.LayerNorm(4)), (zeros(2, 96),))
    >>> [learning_rate_for(graph, 20_000) for graph in (plain, narrow)]
    [0.01, 0.004]
    >>> [learning_rate_for(graph, 200) for graph in (plain, narrow)]
    [0.0025, 0.002]
    """
    share = math.sqrt(num_steps / FULL_STEPS)
    if all(op_name(node) not in _ATTENTION_OPS for node in graph.nodes()):
        return PLAIN_RATE * min(1.0, max(0.25, share))
    highest = min(PLAIN_RATE, ATTENTION_RATE * (REFERENCE_WIDTH / typical_width(graph)) ** 1.5)
    return highest * min(1.0, max(0.5, share))


def typical_width(graph: CapturedGraph) -> int:
    """How many inputs the weights of products sum over: half of all their elements are in weights of at most so many.

    >>> from torch import nn, zeros
    >>> from l0compress.graph.capture import capture
    >>> typical_width(capture(nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 2)), (zeros(2, 8),)))
    8
    """
    found = sorted(_products(graph))
    half, seen = sum(numel for _, numel in found) / 2, 0
    for width, numel in found:
        seen += numel
        if seen >= half:
            return width
    return REFERENCE_WIDTH


def _products(graph: CapturedGraph) -> Iterator[tuple[int, int]]:
    """The inputs of each product with a weight, and the elements of that weight."""
    for node in graph.nodes():
        product = product_of(node)
        if product is not None and leads_to_weights(argument_at(node, product.place)):
            shape = node_shape(argument_at(node, product.place))
            yield prod(shape) // shape[product.axis], prod(shape)
