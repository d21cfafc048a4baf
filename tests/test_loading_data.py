"""Data as people have them: arrays, pictures, tables and sentences become tensors that can be made again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli, save_pt2
from torch import nn

from l0compress.data import Data, Split, StreamSplit
from l0compress.errors import DataError
from l0compress.loading import DataSource, images, load_data
from l0compress.loading.tables import transform


def sizes(data: Data) -> dict[str, int]:
    return {name: len(split) for name, split in data.parts().items()}


def inputs_of(split) -> torch.Tensor:
    return split.take(slice(None)).args[0]


class TestArrays:
    def test_an_npy_has_inputs_alone(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(100, dtype=np.float32).reshape(50, 2))
        data = load_data(str(tmp_path / "x.npy"))
        assert sizes(data) == {"train": 30, "val": 10, "test": 10} and data.train.targets is None

    def test_a_folder_of_npy_files_is_read_like_an_npz(self, tmp_path):
        arrays = {"x_train": np.arange(48.0).reshape(24, 2), "y_train": np.arange(24) % 3, "x_test": np.ones((3, 2))}
        np.savez(tmp_path / "all.npz", **arrays)
        (tmp_path / "all").mkdir()
        for name, array in arrays.items():
            np.save(tmp_path / "all" / f"{name}.npy", array)
        one, other = load_data(str(tmp_path / "all.npz")), load_data(str(tmp_path / "all"))
        assert all(torch.equal(inputs_of(one.parts()[part]), inputs_of(other.parts()[part])) for part in one.parts())

    @pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">i2", "<u2", "<u4", "<i8", "|b1", "|u1"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_every_type_and_order_of_numbers(self, tmp_path, dtype, order):
        array = np.asarray(np.arange(24).reshape(12, 2) % 2, dtype=dtype, order=order)
        np.savez(tmp_path / "a.npz", x_train=array)
        data = load_data(str(tmp_path / "a.npz"))
        whole = torch.cat([inputs_of(data.train), inputs_of(data.val)]).double() * (255 if dtype == "|u1" else 1)
        assert sorted(whole.flatten().round().tolist()) == sorted(array.astype(float).flatten().tolist())

    @pytest.mark.parametrize(("shares", "counts"), [((0.5, 0.25, 0.25), [50, 25, 25]), ((0.9, 0.1, 0.0), [90, 10])])
    def test_shares_and_seed(self, tmp_path, shares, counts):
        np.save(tmp_path / "x.npy", np.arange(100.0)[:, None])
        one, again, other = (load_data(DataSource(str(tmp_path / "x.npy"), seed, shares)) for seed in (1, 1, 2))
        assert list(sizes(one).values()) == counts
        assert torch.equal(inputs_of(one.train), inputs_of(again.train))
        assert not torch.equal(inputs_of(one.train), inputs_of(other.train))

    def test_labels_can_be_left_out(self, blobs_npz):
        data = load_data(DataSource(str(blobs_npz), with_labels=False))
        assert all(split.targets is None for split in data.parts().values())


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two classes, twelve grey pictures each of one brightness: the class is whether it is above 100."""
    pillow = pytest.importorskip("PIL.Image")
    for value in range(0, 240, 10):
        path = tmp_path / "pictures" / ("bright" if value > 100 else "dark") / f"{value}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pillow.new("L", (6, 4), value).save(path)
    return tmp_path / "pictures"


class TestImages:
    def test_a_folder_a_class(self, pictures):
        data = load_data(str(pictures))
        assert sizes(data) == {"train": 14, "val": 4, "test": 6}
        for split in data.parts().values():
            pixels = inputs_of(split)
            assert pixels.shape[1:] == (1, 4, 6) and pixels.dtype == torch.float32
            # "bright" comes before "dark" in the alphabet.
            assert torch.equal(split.targets, (pixels[:, 0, 0, 0] * 255 <= 100).long())
        assert data.preprocessing is not None and data.preprocessing["classes"] == ["bright", "dark"]

    def test_parts_have_folders_of_their_own(self, pictures, tmp_path):
        for part in ("train", "valid", "test"):
            (tmp_path / "parts" / part).mkdir(parents=True)
            for folder in pictures.iterdir():
                (tmp_path / "parts" / part / folder.name).symlink_to(folder)
        assert sizes(load_data(str(tmp_path / "parts"))) == {"train": 24, "val": 24, "test": 24}

    def test_normalised_and_resized(self, pictures):
        source = DataSource(str(pictures), image_size=3, normalize=((0.5,), (0.25,)))
        plain, changed = load_data(str(pictures)), load_data(source)
        expected = (inputs_of(plain.train)[:, :, :1, :1].expand(-1, 1, 3, 3) - 0.5) / 0.25
        torch.testing.assert_close(inputs_of(changed.train), expected)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_change_nothing(self, pictures, workers):
        data = load_data(DataSource(str(pictures), workers=workers))
        assert torch.equal(inputs_of(data.train), inputs_of(load_data(str(pictures)).train))

    def test_what_does_not_fit_in_memory_is_streamed(self, pictures, monkeypatch):
        whole = load_data(str(pictures))
        monkeypatch.setattr(images, "IN_MEMORY_BYTES", 100)
        data = load_data(DataSource(str(pictures), batch_size=4))
        assert isinstance(data.train, StreamSplit) and len(data.train) == 14
        for part, split in whole.parts().items():
            batches = list(data.parts()[part].batches(4, seed=1))
            seen = torch.cat([batch.args[0] for batch in batches])[:, 0, 0, 0]
            labels = torch.cat([batch.targets for batch in batches])
            assert sorted(seen.tolist()) == sorted(inputs_of(split)[:, 0, 0, 0].tolist())
            assert torch.equal(labels, (seen * 255 <= 100).long())

    def test_a_class_that_training_lacks(self, pictures, tmp_path):
        for part in ("train", "val"):
            (tmp_path / "parts" / part).mkdir(parents=True)
            (tmp_path / "parts" / part / "dark").symlink_to(pictures / "dark")
        (tmp_path / "parts" / "val" / "odd").symlink_to(pictures / "bright")
        with pytest.raises(DataError, match=r"has a class 'odd', which the training part lacks \(dark\)"):
            load_data(str(tmp_path / "parts"))

    def test_a_picture_that_claims_to_be_huge(self, pictures):
        path = pictures / "bright" / "110.png"
        content = bytearray(path.read_bytes())
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        path.write_bytes(bytes(content))
        with pytest.raises(DataError, match=r"Image '.*110\.png' (is damaged|cannot be read)"):
            load_data(str(pictures))


ROWS = 40


@pytest.fixture
def houses(tmp_path) -> Path:
    """Sizes with gaps, colours with gaps, a price with decimals, and whether it is sold."""
    lines = ["size,colour,price,sold"]
    for i in range(ROWS):
        size = "" if i % 7 == 0 else i
        lines.append(
            f"{size},{'' if i % 5 == 0 else ('red', 'blue', 'green')[i % 3]},{i * 1.5},{'yes' if i % 2 else 'no'}"
        )
    (tmp_path / "houses.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "houses.csv"


class TestTables:
    def test_the_target_s_type_says_what_is_predicted(self, houses):
        values = load_data(DataSource(str(houses), target_column="price"))
        classes = load_data(DataSource(str(houses), target_column="sold"))
        assert values.train.targets.dtype == torch.float32 and classes.train.targets.dtype == torch.int64
        assert classes.preprocessing["target"] == {"column": "sold", "kind": "class", "classes": ["no", "yes"]}
        assert sizes(values) == {"train": 24, "val": 8, "test": 8}

    def test_scikit_learn_makes_the_same_columns(self, houses):
        pandas = pytest.importorskip("pandas")
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        data = load_data(DataSource(str(houses), target_column="price"))
        frame = pandas.read_csv(houses)
        rows = {part: (split.targets / 1.5).round().int().numpy() for part, split in data.parts().items()}
        numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
        filled = SimpleImputer(strategy="constant", fill_value="(missing)")
        texts = make_pipeline(filled, OneHotEncoder(handle_unknown="ignore", sparse_output=False))
        columns = ColumnTransformer([("n", numbers, ["size"]), ("c", texts, ["colour", "sold"])])
        columns.fit(frame.iloc[rows["train"]])
        for part, split in data.parts().items():
            expected = columns.transform(frame.iloc[rows[part]]).astype(np.float32)
            np.testing.assert_allclose(inputs_of(split).numpy(), expected, rtol=1e-6)

    def test_what_is_saved_repeats_it_with_numpy_alone(self, houses, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 1))
        save_pt2(model, (torch.zeros(2, 7),), tmp_path / "net.pt2")
        told = ["--data", str(houses), "--target-column", "price", "--target", "params=0.6", "--epochs", "2"]
        outcome = run_cli("finetune", tmp_path / "net.pt2", *told, "-o", "run")
        assert outcome.exit_code == 0, outcome.stderr
        saved = json.loads(Path("run/preprocessing.json").read_text())
        assert 'target-column = "price"' in Path("run/config.toml").read_text().replace("_", "-")
        raw = {
            "size": np.array([np.nan, 3.0]),
            "colour": np.array([None, "pink"], object),
            "sold": np.array(["no", "yes"]),
        }
        size = saved["features"][0]
        expected = [(size["fill"] - size["mean"]) / size["scale"], *[1, 0, 0, 0], *[1, 0]]
        other = [(3 - size["mean"]) / size["scale"], *[0, 0, 0, 0], *[0, 1]]
        np.testing.assert_allclose(transform(raw, saved["features"]), [expected, other], rtol=1e-6)

    def test_test_rows_do_not_decide_how_values_are_filled(self, houses):
        before = load_data(DataSource(str(houses), target_column="price"))
        last = int((before.test.targets / 1.5).round()[-1])
        lines = houses.read_text().splitlines()
        lines[last + 1] = "1000000," + lines[last + 1].split(",", 1)[1]
        houses.write_text("\n".join(lines) + "\n")
        after = load_data(DataSource(str(houses), target_column="price"))
        assert after.preprocessing == before.preprocessing and torch.equal(
            inputs_of(after.train), inputs_of(before.train)
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "as a table (EmptyDataError"),
            ("a,y\n" + "1,0.5\ninf,0.5\n" * 9, "column 'a' has"),
            ("a,y\n" + ",0.5\n" * 9, "is empty"),
            ("y\n" + "0.5\n" * 9, "has no column besides the target 'y'"),
            ("a,y\n" + "".join(f"t{i},0.5\n" for i in range(3000)), "too many for a category"),
        ],
    )
    def test_what_cannot_be_used(self, tmp_path, content, message):
        (tmp_path / "t.csv").write_text(content)
        with pytest.raises(DataError, match=re.escape(message)):
            load_data(DataSource(str(tmp_path / "t.csv"), target_column="y"))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dull", "fine", "film"]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """A tokenizer of four words."""
    library = pytest.importorskip("tokenizers")
    model = library.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    made = library.Tokenizer(model)
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    (tmp_path / "tok").mkdir()
    made.save(str(tmp_path / "tok" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "tok" / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "tok"


class TestTexts:
    def load(self, tokenizer: Path, name: str, content: str | bytes, **options) -> Data:
        path = tokenizer.parent / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_data(DataSource(str(path), tokenizer=tokenizer, **options))

    @pytest.mark.parametrize(
        "content", ["1 a fine film\n0 a dull film\n", "sentence\tlabel\na fine film\t1\na dull film\t0\n"]
    )
    def test_labels_before_sentences_or_named_columns(self, tokenizer, content):
        header, rows = (content[:15], content[15:]) if content.startswith("s") else ("", content)
        data = self.load(tokenizer, "films.tsv", header + rows * 10)
        assert sizes(data) == {"train": 12, "val": 4, "test": 4}
        ids, targets = data.train.inputs["input_ids"], data.train.targets
        assert {tuple(row) for row in ids[targets == 1].tolist()} == {(5, 7, 8)}
        assert {tuple(row) for row in ids[targets == 0].tolist()} == {(5, 6, 8)}

    def test_short_ones_are_padded_and_long_ones_cut(self, tokenizer):
        data = self.load(tokenizer, "films.txt", "1 fine\n0 a dull dull dull film\n" * 10, max_length=3)
        rows = {tuple(row) for row in data.train.inputs["input_ids"].tolist()}
        assert rows == {(7, 0, 0), (5, 6, 6)}
        masks = {tuple(row) for row in data.train.inputs["attention_mask"].tolist()}
        assert masks == {(1, 0, 0), (1, 1, 1)}

    def test_a_folder_with_a_file_a_part(self, tokenizer, tmp_path):
        (tmp_path / "sst").mkdir()
        for part, count in {"train": 8, "dev": 4, "test": 2}.items():
            (tmp_path / "sst" / f"stsa.binary.{part}").write_bytes(
                "1 caf\xe9 film\n0 a film\n".encode("latin-1") * (count // 2)
            )
        data = load_data(DataSource(str(tmp_path / "sst"), tokenizer=tokenizer))
        assert sizes(data) == {"train": 8, "val": 4, "test": 2}

    def test_a_label_that_training_lacks(self, tokenizer, tmp_path):
        (tmp_path / "sst").mkdir()
        for part, label in {"train": "good", "dev": "odd"}.items():
            (tmp_path / "sst" / f"{part}.tsv").write_text(f"{label} a film\n" * 4)
        with pytest.raises(DataError, match=r"dev\.tsv' has a label 'odd', which the training part lacks \(good\)"):
            load_data(DataSource(str(tmp_path / "sst"), tokenizer=tokenizer))


def test_a_split_of_tensors_carries_no_preprocessing():
    part = Split((torch.zeros(2, 1),))
    assert Data(part, part).preprocessing is None
