"""Hybrid: learned gates whose loss also has the L2 and the L1 norm of the weights, in expectation over the gates.

``L + multiplier * L0 + l2 / 2 * sum_j P(z_j != 0) theta_j^2 + l1 * sum_j P(z_j != 0) |theta_j|``. Source: Louizos,
Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, section 2.3, for L0 and L2;
the L1 term is put together in the same way. Nearly useless weights are small by the time when their gates are decided
on, and large ones cost more than to keep them. See :mod:`~l0compress.training.expected_norms`.
"""

from __future__ import annotations

from l0compress.training.methods.learned import LearnedGates


class Hybrid(LearnedGates):
    """Learn gates under a budget, with both norms of the weights in the loss.

    The strengths are those of the settings, see
    :attr:`~l0compress.training.settings.FinetuneSettings.norm_strengths`; the norms themselves belong to the phase in
    which gates are trained, since ``--l2`` adds one of them to plain learned gates.
    """
