"""Two models are equal, or the message says where not."""

from __future__ import annotations

import json
import math
import re
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from l0compress.errors import InputError, NotEqualError
from l0compress.graph import capture
from l0compress.verification.calls import Call, example_calls, named_leaves, resized
from l0compress.verification.comparison import TOLERANCES, compare
from l0compress.verification.equality import verify

REFUSED = "The result is refused and nothing was written."


def linear(*, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def refusal(message: str) -> str:
    return "^" + re.escape(f"The two models are not equal: {message}")


class Tokens(nn.Module):
    """Token ids and a mask by keyword; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        return {"logits": self.head(hidden.mean(1)), "hidden": hidden}


VANISHING = tuple(Call((torch.tensor([pair], dtype=torch.float64),)) for pair in ((1.0, -0.999998), (1.0, 2.0)))


def total(x: torch.Tensor) -> torch.Tensor:
    """(n, 2) to (n, 1), in float32."""
    return x.sum(1, keepdim=True).float()


def off_by(difference: float):
    """The same sum, off where it nearly vanishes."""
    return lambda x: (x.sum(1, keepdim=True) + (difference if x[0, 1] < 0 else 0.0)).float()


class TestEqual:
    def test_a_graph_agrees_with_its_model_at_three_batch_sizes(self):
        model = linear().eval()
        equality = verify(capture(model, (torch.randn(2, 4),)), model)
        assert equality.batch_sizes == (2, 1, 11)
        assert [output.name for output in equality.outputs] == ["output_0"]
        assert equality.max_relative < 1e-6

    def test_the_differences_are_those_that_numpy_finds(self):
        dense, small = linear().eval(), linear().eval()
        with torch.no_grad():
            small.bias[1] += 1e-6
        x = torch.randn(6, 4)
        equality = verify(small, dense, inputs=[Call((x,))])
        with torch.no_grad():
            expected, got = (model(x).double().numpy() for model in (dense, small))
        assert equality.max_absolute == pytest.approx(np.abs(got - expected).max())
        assert equality.max_relative == pytest.approx(np.abs(got - expected).max() / np.abs(expected).max())

    def test_rounding_is_measured_by_all_calls_where_the_output_of_one_nearly_vanishes(self):
        """1 - 0.999998: rounding of the sum is large beside the result, but not beside its terms."""
        equality = verify(off_by(3e-7), total, inputs=VANISHING)
        assert equality.max_absolute == pytest.approx(3e-7)
        assert equality.max_relative == pytest.approx(1e-7)

    def test_keyword_inputs_and_dict_outputs(self):
        ids, mask = torch.randint(0, 11, (2, 5)), torch.ones(2, 5)
        model = Tokens().eval()
        graph = capture(model, (), {"input_ids": ids, "attention_mask": mask})
        assert [output.name for output in verify(graph, model).outputs] == ["logits", "hidden"]

    def test_a_number_among_the_outputs_is_compared_with_a_scalar(self):
        assert verify(
            lambda x: {"y": x, "n": torch.tensor(3)}, lambda x: {"y": x, "n": 3}, inputs=[Call((torch.ones(2),))]
        )

    def test_infinities_and_nans_in_the_same_places(self):
        values = torch.tensor([1.0, math.inf, -math.inf, math.nan])
        assert compare({"y": values}, {"y": values.clone()}, 4)[0].max_absolute == 0

    def test_a_zero_output_is_reported(self):
        equality = verify(torch.relu, torch.relu, inputs=[Call((-torch.ones(2, 3),))])
        assert equality.zero_outputs == ("output_0",)

    def test_complex_outputs(self):
        values = torch.tensor([1 + 2j, 3 - 1j])
        assert compare({"y": values}, {"y": values}, 2)[0].tolerance == 1e-5

    def test_a_model_that_writes_into_its_inputs(self):
        def doubling(x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2)

        x = torch.ones(2)
        verify(doubling, doubling, inputs=[Call((x,))])
        assert torch.equal(x, torch.ones(2))

    def test_the_report_is_json(self):
        written = json.loads(json.dumps(verify(linear().eval(), capture(linear(), (torch.randn(2, 4),))).to_json()))
        assert written["equal"] is True and written["batch_sizes"] == [2, 1, 11]
        assert written["outputs"][0]["name"] == "output_0" and written["outputs"][0]["tolerance"] == 1e-5


class TestNotEqual:
    def test_one_wrong_value_is_located(self):
        expected = torch.arange(6.0).reshape(2, 3)
        got = expected.clone()
        got[1, 2] = 4.0
        message = (
            "output 'y' differs at index (1, 2) for batch size 2: 4, expected 5; that is 2.00e-01 of the output's "
            f"largest magnitude 5, the limit is 1e-05. {REFUSED} Repeat the check in float64 to tell rounding from a "
            "real difference."
        )
        with pytest.raises(NotEqualError, match=refusal(message) + "$"):
            compare({"y": got}, {"y": expected}, 2)

    def test_a_planted_bug_is_found_whatever_the_batch_size(self):
        def first_row_only(x: torch.Tensor) -> torch.Tensor:
            return x[:1].expand_as(x)

        graph = capture(nn.Identity(), (torch.randn(2, 4),))
        with pytest.raises(NotEqualError, match="output 'output_0' differs at index"):
            verify(first_row_only, graph)

    def test_a_real_difference_is_found_where_the_output_nearly_vanishes(self):
        message = (
            "output 'output_0' differs at index (0, 0) for batch size 1: 0.000102, expected 2e-06; that is 3.33e-05 of "
            "the output's largest magnitude 3, the limit is 1e-05."
        )
        with pytest.raises(NotEqualError, match=refusal(message)):
            verify(off_by(1e-4), total, inputs=VANISHING, tolerance=1e-5)

    def test_there_are_no_other_calls_to_measure_by(self):
        with pytest.raises(NotEqualError, match=r"that is 1\.50e-01 of the output's largest magnitude 2e-06"):
            verify(off_by(3e-7), total, inputs=VANISHING[:1], tolerance=1e-5)

    @pytest.mark.parametrize("dtype", list(TOLERANCES))
    def test_each_dtype_has_its_tolerance(self, dtype):
        expected = torch.ones(3, dtype=torch.float64)
        for factor, equal in ((0.4, True), (2.5, False)):
            shifted = expected * (1 + factor * TOLERANCES[dtype])
            wide = {"y": shifted}, {"y": expected}
            if equal:
                compare(*wide, 3, TOLERANCES[dtype])
            else:
                with pytest.raises(NotEqualError):
                    compare(*wide, 3, TOLERANCES[dtype])

    def test_float64_is_held_to_its_own_tolerance(self):
        expected = torch.ones(3, dtype=torch.float64)
        with pytest.raises(NotEqualError, match=re.escape("the limit is 1e-10")):
            compare({"y": expected + 1e-9}, {"y": expected}, 3)

    def test_integers_must_be_the_same(self):
        with pytest.raises(NotEqualError, match=refusal("output 'y' differs at index (1,) for batch size 3: 1001,")):
            compare({"y": torch.tensor([1, 1001, 3])}, {"y": torch.tensor([1, 1000, 3])}, 3)

    @pytest.mark.parametrize("value, what", [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "-infinity")])
    def test_a_value_that_is_not_finite_in_one_of_them(self, value, what):
        finite, broken = torch.ones(4), torch.tensor([1.0, 1.0, value, 1.0])
        message = f"output 'y' has {what} in different places from the reference, first at index (2,) for batch size 4"
        for pair in ((finite, broken), (broken, finite)):
            with pytest.raises(NotEqualError, match=refusal(message)):
                compare({"y": pair[0]}, {"y": pair[1]}, 4)

    def test_nothing_finite_is_vacuous(self):
        message = (
            "output 'y' of the reference holds no finite value at batch size 2, so that equality would mean nothing"
        )
        with pytest.raises(NotEqualError, match=refusal(message)):
            compare({"y": torch.full((2,), math.nan)}, {"y": torch.full((2,), math.nan)}, 2)

    def test_another_shape(self):
        message = "output 'y' has shape (2, 1), expected (2,), at batch size 2"
        with pytest.raises(NotEqualError, match=refusal(message)):
            compare({"y": torch.ones(2, 1)}, {"y": torch.ones(2)}, 2)

    def test_another_dtype(self):
        message = "output 'y' has dtype torch.float32, expected torch.float64, at batch size 2"
        with pytest.raises(NotEqualError, match=refusal(message)):
            compare({"y": torch.ones(2)}, {"y": torch.ones(2, dtype=torch.float64)}, 2)

    def test_other_names(self):
        message = "the outputs have different names: missing b, unexpected c"
        with pytest.raises(NotEqualError, match=refusal(message)):
            compare({"a": torch.ones(1), "c": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}, 1)

    def test_another_constant(self):
        with pytest.raises(NotEqualError, match=refusal("output 'kind' is 'b', expected 'a'")):
            compare({"y": torch.ones(1), "kind": "b"}, {"y": torch.ones(1), "kind": "a"}, 1)

    def test_no_tensor_at_all(self):
        with pytest.raises(NotEqualError, match="the reference returns no tensor, so there is nothing to compare"):
            compare({"n": 3}, {"n": 3}, 1)

    @given(
        rows=st.integers(1, 4),
        columns=st.integers(1, 4),
        scale=st.floats(1e-3, 1e3),
        error=st.floats(1e-4, 1e2),
        data=st.data(),
    )
    @settings(max_examples=50, deadline=None)
    def test_any_single_wrong_element_is_refused_and_named(self, rows, columns, scale, error, data):
        place = (data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1)))
        expected = torch.full((rows, columns), scale, dtype=torch.float64)
        got = expected.clone()
        got[place] += error * scale
        with pytest.raises(NotEqualError, match=re.escape(f"at index {place}")):
            compare({"y": got}, {"y": expected}, rows)


class TestBadInput:
    def test_a_module_in_training_mode(self):
        with pytest.raises(InputError, match=re.escape("the dense model (Linear) is in training mode")):
            verify(linear().eval(), linear(), inputs=[Call((torch.ones(2, 4),))])

    def test_no_inputs(self):
        with pytest.raises(InputError, match="neither model is a captured graph"):
            verify(linear().eval(), linear().eval())
        with pytest.raises(InputError, match="there are no inputs to compare the models on"):
            verify(linear().eval(), linear().eval(), inputs=())


class TestNames:
    def test_nested_outputs_have_flat_names(self):
        pair = namedtuple("pair", "left right")
        value = {"a": (torch.ones(1), None, [torch.ones(1)]), "b": pair(torch.ones(1), {"c": torch.ones(1)})}
        assert list(named_leaves(value)) == ["a_0", "a_2_0", "b_0", "b_1_c"]


class Skipped(nn.Module):
    """Half and a quarter of an image, added."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.fine(x))
        return fine + nn.functional.interpolate(self.coarse(fine), scale_factor=2.0)


class TestCalls:
    def test_the_rows_of_all_inputs_stay_together(self):
        ids = torch.tensor([[1, 1, 1, 1], [7, 7, 7, 7]])
        mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
        graph = capture(Tokens(), (), {"input_ids": ids, "attention_mask": mask})
        for call in example_calls(graph, (1, 3, 8)):
            assert torch.equal(call.kwargs["input_ids"] == 1, call.kwargs["attention_mask"] == 1)

    def test_a_free_sequence_is_shortened_in_every_input(self):
        inputs = {"input_ids": torch.randint(0, 11, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
        graph = capture(Tokens(), (), inputs, dynamic="batch+sequence")
        shapes = [{tuple(tensor.shape) for tensor in call.kwargs.values()} for call in example_calls(graph, (1, 5))]
        assert shapes == [{(2, 8)}, {(1, 4)}, {(5, 4)}]

    def test_a_free_image_is_halved_so_that_strides_divide_it_as_before(self):
        """Two strides of 2 and back: the half of 32 works, and a little more does not."""
        graph = capture(Skipped(), (torch.randn(2, 3, 32, 16),), dynamic={"x": dict.fromkeys((0, 2, 3), Dim.AUTO)})
        for call in example_calls(graph, (1, 5)):
            assert graph.module()(*call.args).shape[0] == call.batch_size
        assert [tuple(call.args[0].shape) for call in example_calls(graph, (5,))] == [(2, 3, 32, 16), (5, 3, 16, 8)]

    def test_a_fixed_batch_stays_as_it_is(self):
        graph = capture(linear(), (torch.randn(3, 4),), dynamic=None)
        assert [call.batch_size for call in example_calls(graph, (1, 5))] == [3, 3, 3]

    def test_integers_come_from_the_example_and_floats_do_not_repeat_it(self):
        call = Call((torch.tensor([3, 9]), torch.tensor([1.0, 2.0])))
        ids, values = resized(call, 50).args
        assert set(ids.tolist()) == {3, 9}
        assert len(set(values.tolist())) == 50

    def test_a_constant_example_does_not_make_a_vacuous_check(self):
        graph = capture(linear(), (torch.zeros(2, 4),))
        assert example_calls(graph, (5,))[1].args[0].std() > 0.5


class TestTolerance:
    """A tolerance that allows everything would switch the proof off without a word."""

    @pytest.mark.parametrize("tolerance", [math.nan, math.inf, -math.inf, -1e-5, True, "1e-5"])
    def test_what_is_no_finite_number_of_at_least_0_is_refused(self, tolerance):
        model = linear()
        message = f"the tolerance {tolerance!r} is not a finite number of at least 0. Nothing was changed"
        with pytest.raises(InputError, match="^" + re.escape(message)):
            verify(model.eval(), linear(seed=1).eval(), inputs=[Call((torch.randn(2, 4),))], tolerance=tolerance)
        with pytest.raises(InputError, match="^" + re.escape(message)):
            compare({"y": torch.ones(2)}, {"y": torch.zeros(2)}, 2, tolerance)

    @pytest.mark.parametrize("tolerance", [0, 0.0, np.float64(1e-3), np.float32(1e-3)])
    def test_any_other_number_will_do(self, tolerance):
        assert compare({"y": torch.ones(2)}, {"y": torch.ones(2)}, 2, tolerance)[0].tolerance == tolerance
