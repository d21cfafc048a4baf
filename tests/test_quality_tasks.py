"""The tasks of the benchmark of quality: published rows, augmentation, docstrings and the small Llama."""

from __future__ import annotations

import re
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from quality import text
from quality.images import SIDE, LeNet5, shifted
from quality.llama import BEGIN, Sizes, read_checkpoint, read_tokens, turned
from quality.published import LENET_5_BIASES, LENET_5_WEIGHTS, lenet_5, lenet_300_100, sparse
from torch import nn

from l0compress.data import Batch


class TestPublished:
    def test_weights_are_those_of_the_networks_that_are_left(self):
        left = nn.Sequential(nn.Linear(97, 71), nn.Linear(71, 33), nn.Linear(33, 10))
        assert lenet_300_100("VIB", 1.6, 97, 71, 33).params == sum(layer.weight.numel() for layer in left)
        convolutions = (nn.Conv2d(1, 5, 5), nn.Conv2d(5, 10, 5), nn.Linear(76, 16), nn.Linear(16, 10))
        assert lenet_5("BC-GHS", 1.0, 5, 10, 76, 16).params == sum(layer.weight.numel() for layer in convolutions)

    def test_biases_come_on_top_of_single_weights(self):
        assert sum(p.numel() for p in LeNet5().parameters()) == LENET_5_WEIGHTS + LENET_5_BIASES
        assert sparse("x", 0.75, 280, weights=LENET_5_WEIGHTS, biases=LENET_5_BIASES).params == 1_537 + 580


class TestImages:
    @pytest.mark.parametrize("shape", [(64, SIDE * SIDE), (64, 1, SIDE, SIDE)])
    def test_images_move_by_at_most_a_pixel_each_on_its_own(self, shape):
        pixels = torch.zeros(64, SIDE, SIDE)
        pixels[:, 10, 20] = 1
        moved = shifted(Batch((pixels.view(shape),), {}, torch.arange(64)), torch.Generator().manual_seed(0))
        assert moved.args[0].shape == shape and torch.equal(moved.targets, torch.arange(64))
        places = {tuple(place) for place in moved.args[0].view(64, SIDE, SIDE).nonzero()[:, 1:].tolist()}
        assert places == set(product((9, 10, 11), (19, 20, 21)))

    def test_what_leaves_the_image_is_gone(self):
        ones = Batch((torch.ones(32, SIDE * SIDE),), {}, torch.zeros(32))
        (moved,) = shifted(ones, torch.Generator().manual_seed(0)).args
        assert {int(x) for x in moved.sum(1)} == {SIDE * SIDE, SIDE * (SIDE - 1), (SIDE - 1) ** 2}


class TestDocstrings:
    def test_names_of_packages_are_blanked_out(self):
        assert text.first_paragraph("Like `np.sum` of\nNumPy, not torch's.\n\nMore.") == "Like `_.sum` of _, not _'s."

    def test_docstrings_come_from_classes_and_functions_but_not_from_tests(self, tmp_path: Path, monkeypatch):
        package = tmp_path / "a_package"
        (package / "tests").mkdir(parents=True)
        (package / "__init__.py").write_text('"""Not this one, of the module itself."""\n')
        (package / "tests" / "a.py").write_text('def f():\n    """Not this one, of a test."""\n')
        (package / "b.py").write_text(
            'class B:\n    """Holds all the values there are."""\n    def f(self):\n        """Short."""\n'
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert list(text.docstrings("a_package")) == [("b.py", "Holds all the values there are.")]

    def test_a_file_is_in_one_part(self):
        parts = [text.part_of(f"package/file{number}.py") for number in range(2000)]
        assert [text.part_of(f"package/file{number}.py") for number in range(2000)] == parts
        assert [round(parts.count(part) / 2000, 1) for part in ("train", "val", "test")] == [0.7, 0.1, 0.2]


class TestLlama:
    SIZES = Sizes(dim=16, hidden=24, layers=2, heads=4, kv_heads=2, vocabulary=11, length=12)

    def checkpoint(self, path: Path) -> tuple[Path, list[np.ndarray]]:
        s, rng = self.SIZES, np.random.default_rng(0)
        keys = s.kv_heads * s.head
        angles = np.outer(np.arange(s.length), 1e4 ** (-np.arange(0, s.head, 2) / s.head))
        shapes = [
            (s.vocabulary, s.dim), (s.layers, s.dim), (s.layers, s.dim, s.dim), (s.layers, keys, s.dim),
            (s.layers, keys, s.dim), (s.layers, s.dim, s.dim), (s.layers, s.dim), (s.layers, s.hidden, s.dim),
            (s.layers, s.dim, s.hidden), (s.layers, s.hidden, s.dim), (s.dim,),
        ]  # fmt: skip
        tensors = [*(rng.normal(size=shape) for shape in shapes), np.cos(angles), np.sin(angles)]
        header = struct.pack("<7i", s.dim, s.hidden, s.layers, s.heads, s.kv_heads, s.vocabulary, s.length)
        path.write_bytes(header + b"".join(tensor.astype("<f4").tobytes() for tensor in tensors))
        return path, tensors

    def test_a_checkpoint_is_read_in_its_order(self, tmp_path: Path):
        path, tensors = self.checkpoint(tmp_path / "model.bin")
        model = read_checkpoint(path)
        read = [model.embedding.weight]
        for name in ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"):
            read.append(torch.stack([getattr(layer, name).weight for layer in model.layers]))
        for ours, theirs in zip([*read, model.norm.weight, model.cos, model.sin], tensors, strict=True):
            assert np.array_equal(ours.detach().numpy(), theirs.astype(np.float32))

    def test_a_checkpoint_of_another_size_is_refused(self, tmp_path: Path):
        path, tensors = self.checkpoint(tmp_path / "model.bin")
        path.write_bytes(path.read_bytes() + b"\0" * 4)
        count = sum(tensor.size for tensor in tensors)
        message = f"{path} holds {count + 1:,} numbers, and its header speaks of {count:,}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_checkpoint(path)

    def test_positions_turn_neighbouring_pairs_like_complex_numbers(self):
        x, angles = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
        expected = torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.polar(torch.ones_like(angles), angles)
        torch.testing.assert_close(turned(x, angles.cos(), angles.sin()), torch.view_as_real(expected).flatten(-2))

    def test_stories_are_drawn_from_what_the_whole_model_says(self, tmp_path: Path):
        model = read_checkpoint(self.checkpoint(tmp_path / "model.bin")[0])
        generator = torch.Generator().manual_seed(5)
        tokens = torch.full((3, 1), BEGIN)
        with torch.no_grad():
            for _ in range(9):
                chances = model(tokens)[:, -1].softmax(-1)
                tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=generator)), dim=1)
        assert torch.equal(model.write(3, 10, seed=5), tokens)

    def test_tokens_are_read_with_their_lengths(self, tmp_path: Path):
        path = tmp_path / "tokenizer.bin"
        pieces = [b"a", b" story", b""]
        body = b"".join(struct.pack("<fi", 0.5, len(piece)) + piece for piece in pieces)
        path.write_bytes(struct.pack("<i", 6) + body)
        assert read_tokens(path, 3) == pieces
