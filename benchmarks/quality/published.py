"""What has been published about compressed LeNets on MNIST.

Sources: Sparse VD, Molchanov et al. 2017; BC-GNJ and BC-GHS, Louizos et al. 2017; L0, Louizos et al. 2018; VIB, Dai et
al. 2018; SBP, Neklyudov et al. 2017; GL, Wen et al. 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

LENET_300_100_WEIGHTS, LENET_300_100_BIASES = 266_200, 410
LENET_5_WEIGHTS, LENET_5_BIASES = 430_500, 580


@dataclass(frozen=True)
class Published:
    """A row of a paper: what is left, and the error in percent; ``params`` is the budget that we take from it."""

    method: str
    left: str
    error: float
    params: int


def lenet_300_100(method: str, error: float, *units: int) -> Published:
    """Inputs and hidden units that are left: ``params`` are its weights alone.

    >>> lenet_300_100("VIB", 1.6, 97, 71, 33).params
    9560
    """
    inputs, first, second = units
    return Published(method, "-".join(map(str, units)), error, inputs * first + first * second + second * 10)


def lenet_5(method: str, error: float, *units: int) -> Published:
    """Channels of both convolutions, inputs of the linear layer and its units that are left.

    >>> lenet_5("BC-GHS", 1.0, 5, 10, 76, 16).params
    2751
    """
    first, second, inputs, hidden = units
    return Published(
        method, "-".join(map(str, units)), error, 25 * first + 25 * first * second + inputs * hidden + hidden * 10
    )


def sparse(method: str, error: float, times: int, *, weights: int, biases: int) -> Published:
    """So many times fewer weights; biases are neither removed nor counted in the paper, and all there in ours."""
    return Published(method, f"1/{times} of the weights", error, weights // times + biases)


LENET_300_100 = (
    lenet_300_100("L0", 1.4, 219, 214, 100),
    lenet_300_100("Sparse VD", 1.8, 512, 114, 72),
    lenet_300_100("BC-GNJ", 1.8, 278, 98, 13),
    lenet_300_100("BC-GHS", 1.8, 311, 86, 14),
    lenet_300_100("L0", 1.6, 266, 88, 33),
    lenet_300_100("VIB", 1.6, 97, 71, 33),
)
LENET_5 = (
    lenet_5("GL", 1.0, 3, 12, 192, 500),
    lenet_5("SBP", 0.9, 3, 18, 284, 283),
    lenet_5("L0", 0.9, 20, 25, 45, 462),
    lenet_5("L0", 1.0, 9, 18, 65, 25),
    lenet_5("BC-GNJ", 1.0, 8, 13, 88, 13),
    lenet_5("BC-GHS", 1.0, 5, 10, 76, 16),
)
SPARSE_LENET_300_100 = (sparse("Sparse VD", 1.92, 68, weights=LENET_300_100_WEIGHTS, biases=LENET_300_100_BIASES),)
SPARSE_LENET_5 = (sparse("Sparse VD", 0.75, 280, weights=LENET_5_WEIGHTS, biases=LENET_5_BIASES),)

# By task and budget.
PUBLISHED: dict[tuple[str, float], Published] = {
    (task, row.params): row
    for task, rows in (
        ("lenet300", (*LENET_300_100, *SPARSE_LENET_300_100)),
        ("lenet5", (*LENET_5, *SPARSE_LENET_5)),
    )
    for row in rows
}
