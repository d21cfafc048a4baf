"""Free sizes: the batch wherever it lies, the length of sequences by default, and what a model's own code fixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from l0compress.errors import CaptureError
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.groups.cost import cost
from l0compress.verification.calls import example_calls, free_dims


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """Tokens and a mask of any length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids) * mask.unsqueeze(-1))


class Flat(nn.Module):
    """Tokens of one length only: every position has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 2), nn.Linear(10, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids).flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer with the state that it begins with, in PyTorch's own arrangement."""

    def __init__(self, *, batch_first: bool, layers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTM(4, 6, layers, batch_first=batch_first)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(self.cell(x, state)[0])


def free(graph: CapturedGraph) -> list[list[int]]:
    """The free dimensions of each input."""
    return [list(dims) for dims in free_dims(graph)]


def assert_same(graph: CapturedGraph, model: nn.Module, *args: Any) -> None:
    torch.testing.assert_close(graph.module()(*args), model.eval()(*args))


class TestLengths:
    def test_tokens_and_their_mask_are_of_any_length(self) -> None:
        model = Tagger()
        graph = capture(model, (ids(2, 5), torch.ones(2, 5)))
        assert free(graph) == [[0, 1], [0, 1]]
        assert_same(graph, model, ids(3, 9), torch.rand(3, 9))
        assert {call.args[0].shape[1] for call in example_calls(graph)} == {5, 3}

    def test_only_the_batch_is_free_where_that_is_asked_for(self) -> None:
        assert free(capture(Tagger(), (ids(2, 5), torch.ones(2, 5)), dynamic="batch")) == [[0], [0]]

    def test_a_length_that_the_model_fixes_stays_fixed(self) -> None:
        graph = capture(Flat(), (ids(2, 5),))
        assert free(graph) == [[0]]
        assert graph.dynamic_shapes == {"input_ids": {0: Dim.AUTO}}
        with pytest.raises(CaptureError, match="fixes dimension 1 of input 'input_ids' to 5"):
            capture(Flat(), (ids(2, 5),), dynamic="batch+sequence")

    def test_what_cannot_be_captured_for_any_length_is_captured_for_one(self) -> None:
        class Limited(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                if isinstance(x.shape[1], torch.SymInt):
                    raise NotImplementedError("a length that is a number")
                return x.sum(1)

        assert free(capture(Limited(), (torch.randn(2, 5, 3),))) == [[0]]
        with pytest.raises(CaptureError, match="a length that is a number"):
            capture(Limited(), (torch.randn(2, 5, 3),), dynamic={"x": {0: Dim.AUTO, 1: Dim.AUTO}})

    def test_images_keep_their_size(self) -> None:
        graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), (torch.randn(2, 3, 8, 8),))
        assert free(graph) == [[0]]

    def test_features_by_time_are_of_any_length(self) -> None:
        model = nn.GRU(4, 6, batch_first=True)
        graph = capture(model, (torch.randn(2, 5, 4),))
        assert free(graph) == [[0, 1]]
        assert_same(graph, model, torch.randn(3, 11, 4))

    def test_a_mask_of_all_pairs_goes_with_the_sequence(self) -> None:
        class Attention(nn.Module):
            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

        graph = capture(Attention(), (torch.randn(2, 5, 4), torch.zeros(2, 5, 5)))
        assert free(graph) == [[0, 1], [0, 1, 2]]
        assert_same(graph, Attention(), torch.randn(3, 7, 4), torch.randn(3, 7, 7))

    def test_a_length_with_a_least_value_is_lengthened_in_checks(self) -> None:
        """A table of columns reads column 4, so fewer than five there cannot be."""

        class Columns(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x[:, 4] + x.sum(1)

        graph = capture(Columns(), (ids(2, 5),))
        assert [call.args[0].shape[1] for call in example_calls(graph, (1,))] == [5, 6]

    def test_cost_is_counted_at_the_length_of_the_example(self) -> None:
        graph = capture(Tagger(), (ids(2, 5), torch.ones(2, 5)))
        assert cost(graph).macs == 5 * 6 * 3


class TestWhereTheBatchIs:
    def test_time_first(self) -> None:
        model = nn.LSTM(4, 6)
        graph = capture(model, (torch.randn(5, 2, 4),), dynamic={"input": 1})
        assert (graph.batch_dims, graph.batch_size, free(graph)) == ((1,), 2, [[0, 1]])
        assert_same(graph, model, torch.randn(7, 3, 4))
        # Four blocks of six rows read four features and six units, five times.
        assert cost(graph).macs == 5 * 24 * (4 + 6)

    def test_a_named_size_is_the_batch(self) -> None:
        sizes = {"input": {0: Dim("length"), 1: Dim("batch")}}
        graph = capture(nn.LSTM(4, 6), (torch.randn(5, 2, 4),), dynamic=sizes)
        assert (graph.batch_dims, graph.batch_size) == ((1,), 2)

    @pytest.mark.parametrize("layers", [1, 2, 3])
    def test_states_of_recurrent_layers_in_a_tuple(self, layers: int) -> None:
        """Two layers and a batch of two are told apart by what the model does with them."""
        model = Recurrent(batch_first=True, layers=layers)
        state = torch.randn(layers, 2, 6), torch.randn(layers, 2, 6)
        graph = capture(model, (torch.randn(2, 5, 4), state))
        assert (graph.batch_dims, free(graph)) == ((0, 1, 1), [[0, 1], [1], [1]])
        wider = torch.randn(layers, 3, 6), torch.randn(layers, 3, 6)
        assert_same(graph, model, torch.randn(3, 7, 4), wider)
        assert [call.batch_size for call in example_calls(graph, (1, 4))] == [2, 1, 4]

    def test_the_batch_is_said_of_every_tensor_in_an_input(self) -> None:
        model = Recurrent(batch_first=False)
        state = torch.randn(1, 1, 6), torch.randn(1, 1, 6)
        graph = capture(model, (torch.randn(5, 1, 4), state), dynamic={"x": 1, "state": 1})
        assert (graph.batch_dims, graph.batch_size) == ((1, 1, 1), 2)
        assert_same(graph, model, torch.randn(4, 3, 4), (torch.randn(1, 3, 6), torch.randn(1, 3, 6)))

    def test_inputs_in_dicts_within_dicts_and_scalars(self) -> None:
        class Nested(nn.Module):
            def forward(self, parts: dict[str, Any], scale: Tensor, power: int) -> Tensor:
                return (parts["a"] + parts["more"]["b"].sum(0)) * scale**power

        parts = {"a": torch.randn(2, 3), "more": {"b": torch.randn(4, 2, 3)}}
        graph = capture(Nested(), (parts, torch.tensor(3.0), 2))
        assert graph.batch_dims == (0, 1, None, None)
        wider = {"a": torch.randn(5, 3), "more": {"b": torch.randn(4, 5, 3)}}
        assert_same(graph, Nested(), wider, torch.tensor(0.5), 2)

    @pytest.mark.parametrize(
        ("dynamic", "said"),
        [
            ({"x": 3}, r"\{'x': 3\}, where the input has 3 dimensions: expected"),
            ({"state": (1,)}, r"\{'state': \(1,\)\}, where the input has the form of a tuple: expected"),
            ({"state": {0: Dim.AUTO}}, r"where the input has the form of a tuple: expected"),
            ({"hx": 1}, r"names the input 'hx', but the model is called with 'x', 'state'"),
        ],
    )
    def test_a_batch_that_is_nowhere_is_refused(self, dynamic: Any, said: str) -> None:
        state = torch.randn(1, 2, 6), torch.randn(1, 2, 6)
        with pytest.raises(CaptureError, match=said):
            capture(Recurrent(batch_first=True), (torch.randn(2, 5, 4), state), dynamic=dynamic)


class TestCaches:
    """Models of transformers return caches of keys and values unless they are told not to."""

    @pytest.fixture
    def transformers(self) -> Any:
        pytest.importorskip("torchvision_without_ops")  # transformers imports torchvision where it is installed
        return pytest.importorskip("transformers")

    @staticmethod
    def sizes() -> dict[str, int]:
        return {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}

    @pytest.mark.slow
    def test_a_decoder_that_caches(self, transformers: Any) -> None:
        config = transformers.LlamaConfig(**self.sizes(), vocab_size=11, max_position_embeddings=16)
        model = transformers.LlamaForCausalLM(config).eval()
        graph = capture(model, (), {"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)})
        assert config.use_cache
        inputs = {"input_ids": ids(3, 7), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
        made, expected = graph.module()(**inputs), model(**inputs)
        assert (type(made), list(made)) == (type(expected), ["logits"])
        torch.testing.assert_close(made.logits, expected.logits)

    @pytest.mark.slow
    def test_an_encoder_and_a_decoder_have_lengths_of_their_own(self, transformers: Any) -> None:
        config = transformers.T5Config(
            d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=11, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(config).eval()
        graph = capture(model, (), {"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 4)})
        inputs = {"input_ids": ids(3, 5), "decoder_input_ids": ids(3, 7)}
        made, expected = graph.module()(**inputs), model(**inputs)
        assert list(made) == ["logits", "encoder_last_hidden_state"]
        torch.testing.assert_close(made.logits, expected.logits)

    def test_a_cache_that_a_call_asks_for_is_refused(self, transformers: Any) -> None:
        config = transformers.LlamaConfig(**self.sizes(), vocab_size=11, max_position_embeddings=16)
        with pytest.raises(CaptureError, match=r"it returns a DynamicCache, which is neither a tensor nor"):
            capture(transformers.LlamaForCausalLM(config), (), {"input_ids": ids(2, 5), "use_cache": True})
