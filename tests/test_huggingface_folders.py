"""Folders of sentence-transformers and of datasets: in and out on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import printed_json, run_cli
from torch import nn

from l0compress.errors import DataError
from l0compress.loading import DataSource, as_data, load_data

WORDS = ["[PAD]", "[UNK]", "good", "bad", "fine", "dull", "film", "plot", "cast", "song"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A folder of sentence-transformers: a small BERT of random weights, mean pooling, unit length."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1)
    folder = tmp_path / "encoder"
    model.save_pretrained(folder)
    table = tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]")
    words = tokenizers.Tokenizer(table)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A folder of save_to_disk with two parts of texts and labels."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name, count in (("train", 40), ("validation", 16)):
        labels = [at % 2 for at in range(count)]
        rests = torch.randint(6, len(WORDS), (count, 3), generator=generator).tolist()
        texts = [
            " ".join([WORDS[2 + label], *(WORDS[word] for word in rest)])
            for label, rest in zip(labels, rests, strict=True)
        ]
        parts[name] = datasets.Dataset.from_dict({"text": texts, "label": labels, "idx": list(range(count))})
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "sentences"))
    return tmp_path / "sentences"


class TestSentenceTransformers:
    @pytest.mark.slow
    def test_a_folder_goes_in_and_comes_out(
        self,
        encoder: Path,
        sentences: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        library = pytest.importorskip("sentence_transformers")
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", [*sys.path])
        run = tmp_path / "run"
        flags = ("--target", "macs=0.6", "--epochs", "0", "--no-labels", "--max-length", "6", "-o", str(run))
        done = run_cli("finetune", str(encoder), "--data", str(sentences), *flags)
        assert done.exit_code == 0, done.output
        assert printed_json("export", run, "--format", "huggingface")["equality"]["equal"]
        folder = run / "huggingface"
        card = (folder / "README.md").read_text()
        assert "library_name: sentence-transformers" in card and "SentenceTransformer(" in card
        small = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        inner = small[0].auto_model
        assert type(inner).__name__ == "SmallBertModel"
        ids = torch.tensor([[2, 6, 7], [3, 8, 0]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        with torch.no_grad():
            states = inner(input_ids=ids, attention_mask=mask).last_hidden_state
        means = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        found = torch.tensor(small.encode(["good film plot", "bad cast"]))
        torch.testing.assert_close(found, nn.functional.normalize(means), rtol=1e-4, atol=1e-5)


class TestDatasets:
    def test_columns_of_numbers_are_inputs_and_texts_are_left_out(self) -> None:
        datasets = pytest.importorskip("datasets")
        rows = {"input_ids": [[1, 2], [3, 4]] * 15, "text": ["a", "b"] * 15, "label": [0, 1] * 15}
        data = as_data(datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)), name="data")
        batch = next(iter(data.train.batches(2)))
        assert batch.args == () and list(batch.kwargs) == ["input_ids"]
        assert batch.kwargs["input_ids"].tolist() == [[1, 2], [3, 4]] and batch.targets.tolist() == [0, 1]

    def test_texts_alone_are_to_be_tokenized(self) -> None:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
        with pytest.raises(
            DataError, match=r"A Dataset with the columns text, label has none of numbers besides the labels\."
        ):
            as_data(rows, name="data")

    def test_a_saved_folder_of_texts_is_tokenized(self, sentences: Path, encoder: Path) -> None:
        data = load_data(DataSource(str(sentences), tokenizer=encoder, max_length=4))
        assert {name: len(part) for name, part in data.parts().items()} == {"train": 40, "val": 16}
        batch = next(iter(data.val.batches(2)))
        assert batch.kwargs["input_ids"][:, 0].tolist() == [2, 3] and batch.targets.tolist() == [0, 1]
        with pytest.raises(DataError, match=r"^Data '.*sentences' is text\. Nothing was changed\. Name its tokenizer"):
            load_data(sentences)

    def test_a_saved_table_has_a_target_column(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        pytest.importorskip("pandas")
        rows = {"size": [float(at) for at in range(20)], "price": [at * 2.0 for at in range(20)]}
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "table"))
        data = load_data(DataSource(str(tmp_path / "table"), target_column="price"))
        assert len(data.train) == 12 and next(iter(data.train.batches(4))).args[0].shape == (4, 1)

    def test_a_part_that_no_training_part_is_beside(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_dict({"x": [[1.0]] * 4, "label": [0, 1] * 2})
        datasets.DatasetDict(holdout=rows).save_to_disk(str(tmp_path / "parts"))
        with pytest.raises(DataError, match=r"has the parts holdout, none of which is for training\."):
            load_data(tmp_path / "parts")
