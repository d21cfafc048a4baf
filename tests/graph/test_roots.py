"""Why something stays whole is told by what stopped its channels, and by nothing that merely stands upstream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0compress.graph import capture, find_groups


class RecurrentBehindConvolution(nn.Module):
    """The states meet the model's input, which has no channels; the convolution has no part in that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(4, 6, 3, padding=1), nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        states = self.lstm(torch.relu(self.conv(x)).transpose(1, 2))[0]
        return self.head(states[:, -1] + skip)


def reasons(model: nn.Module, *args: Tensor) -> dict[str, str]:
    groups = find_groups(capture(model, args))
    return {f"{place.where}:{place.dim}": place.reason for place in groups.frozen}


def test_a_recurrent_layer_behind_a_convolution_names_what_stopped_it() -> None:
    found = reasons(RecurrentBehindConvolution(), torch.randn(2, 4, 10), torch.randn(2, 8))
    met = "the tensor that it is combined with here stays whole: it comes from the input skip"
    assert {name: found[name] for name in ("lstm.weight_hh_l0:1", "lstm.bias_ih_l0:0", "head.weight:1")} == {
        "lstm.weight_hh_l0:1": met,
        "lstm.bias_ih_l0:0": met,
        "head.weight:1": "the tensor that it is combined with here stays whole: it comes from the input skip",
    }
    assert not any("kernel positions" in reason for reason in found.values())


class FilledKernel(RecurrentBehindConvolution):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        kernel = nn.functional.pad(self.conv.weight, (1, 1))
        states = self.lstm(torch.relu(nn.functional.conv1d(x, kernel, padding=2)).transpose(1, 2))[0]
        return self.head(states[:, -1] + skip)


def test_the_positions_of_a_kernel_are_no_reason_for_what_comes_after_it() -> None:
    found = reasons(FilledKernel(), torch.randn(2, 4, 10), torch.randn(2, 8))
    assert found["conv.weight:2"] == "kernel positions are not channels"
    assert (
        found["head.weight:1"] == "the tensor that it is combined with here stays whole: it comes from the input skip"
    )


class HalfOfEachHead(nn.Module):
    """Rotary embeddings of half of a head's width: what meets the table is a part of a plane, with gaps in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        heads = self.queries(x).unflatten(-1, (4, 4))
        turned = torch.cat([heads[..., :2] * table, heads[..., 2:]], -1)
        return self.head(turned.flatten(-2))


def test_what_meets_a_part_of_each_head_is_found() -> None:
    found = reasons(HalfOfEachHead(), torch.randn(3, 8), torch.randn(3, 4, 2))
    assert found["queries.weight:0"].endswith("it comes from the input table")
