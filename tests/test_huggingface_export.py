"""Folders of transformers, there and back: from_pretrained reads what was cut, equal to the masked dense model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cut_folders import (
    DECODERS,
    GROUPED,
    Case,
    bert,
    bloom,
    gemma3,
    generated,
    gpt2,
    gpt_neox,
    is_masked_greedy,
    llama,
    phi,
    phi3,
    tokens,
)
from torch import nn

import l0compress as l0
from l0compress.errors import InputError, ModelError, NotEqualError, RunError
from l0compress.export.huggingface.layouts import narrow_layouts
from l0compress.export.huggingface.record import Small, cut_model
from l0compress.export.huggingface.stock import stock_settings

transformers = pytest.importorskip("transformers")


@pytest.fixture
def case_of(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Case]:
    # transformers copies code that it trusts into a folder of the user's.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda build, **inputs: Case(build(), tmp_path, **inputs)


class TestGenerate:
    """With a cache of keys and values, token by token as the masked dense model."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "count"),
        [(next(iter(DECODERS)), 16), *(pytest.param(name, 256, marks=pytest.mark.slow) for name in DECODERS)],
    )
    def test_where_widths_differ_from_layer_to_layer(self, name: str, count: int, case_of: Callable[..., Case]) -> None:
        case = case_of(DECODERS[name])
        cut = case.cut(case.random(3))
        case.exported(cut)
        model = case.loaded()
        assert model.config.use_cache and type(model).__name__.startswith("Small")
        assert sum(p.numel() for p in model.parameters()) < 1.05 * l0.cost(cut.graph).params
        prompt = tokens(1, 5)
        assert is_masked_greedy(generated(model, prompt, count), cut, prompt, count)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", DECODERS)
    @pytest.mark.parametrize(
        "gone",
        [(r"(layers|h)\.0\.(self_attn|attn)\.[qvc]", r"\.mlp\."), (r"(self_attn|attn)\.[qvc]", r"0\.mlp")],
        ids=["first attention and every MLP", "every attention and first MLP"],
    )
    def test_where_whole_parts_of_layers_are_gone(
        self, name: str, gone: tuple[str, ...], case_of: Callable[..., Case]
    ) -> None:
        case = case_of(DECODERS[name])
        cut = case.cut(case.without(*gone))
        assert not case.exported(cut).how.startswith("transformers loads it by itself")
        prompt = tokens(2, 5)
        assert is_masked_greedy(generated(case.loaded(), prompt, 12), cut, prompt, 12)

    @pytest.mark.slow
    def test_queries_narrower_than_values_and_the_other_way_round(self, case_of: Callable[..., Case]) -> None:
        case = case_of(gpt2)
        widths = [key for key in case.whole() if key.endswith("width")]
        first, second = widths[:2], widths[2:]
        cut = case.cut({**case.whole(), first[0]: [1], first[1]: [0, 2, 3], second[0]: [0, 1, 3], second[1]: [2]})
        case.exported(cut)
        heads = [block.attn.head_dim for block in case.loaded().transformer.h]
        assert heads == [3, 3]
        prompt = tokens(2, 5)
        assert is_masked_greedy(generated(case.loaded(), prompt, 12), cut, prompt, 12)


class TestStockClasses:
    """Where the settings of transformers can say the widths, no code is needed."""

    @pytest.mark.slow
    def test_widths_that_are_the_same_in_all_layers_are_fields_of_the_configuration(
        self, case_of: Callable[..., Case]
    ) -> None:
        case = case_of(llama)
        kept = {
            key: ids[:10] if "gate_proj" in key else ids[:1] if "blocks" in key else ids
            for key, ids in case.whole().items()
        }
        exported = case.exported(case.cut(kept))
        assert exported.how == "transformers loads it by itself"
        model = transformers.AutoModelForCausalLM.from_pretrained(case.folder)
        assert type(model) is transformers.LlamaForCausalLM
        config = model.config
        assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (10, 2, 1)
        assert not (case.folder / "modeling_l0compress.py").exists()

    @pytest.mark.slow
    def test_a_narrower_residual_stream_goes_into_the_epsilon_of_the_norms(self, case_of: Callable[..., Case]) -> None:
        case = case_of(llama)
        kept = {key: ids[:8] if len(ids) == 16 else ids for key, ids in case.whole().items()}
        assert case.exported(case.cut(kept)).how == "transformers loads it by itself"
        config = json.loads((case.folder / "config.json").read_text())
        assert config["hidden_size"] == 8 and config["rms_norm_eps"] == pytest.approx(2e-6)

    @pytest.mark.slow
    def test_widths_by_layer_are_those_of_the_per_layer_configuration(self, case_of: Callable[..., Case]) -> None:
        case = case_of(llama)
        first, second = (key for key in case.whole() if "gate_proj" in key)
        cut = case.cut({**case.whole(), first: [0, 1], second: [0, 1, 2]})
        small = Small(cut.graph.state(), cut.plan.parameter_keeps())
        layouts = narrow_layouts(case.model, small.keeps)
        assert layouts is not None
        settings = stock_settings(
            case.model, {"model_type": "llama", **GROUPED}, cut_model(case.model, small, layouts), layouts
        )
        assert settings is not None
        config = transformers.LlamaConfig(**settings)
        assert [layer.intermediate_size for layer in config.per_layer_config] == [2, 3]
        # No model of transformers builds its layers by it yet, so the folder brings its own class.
        assert "trust_remote_code" in case.exported(cut).how


class TestOtherForwards:
    @pytest.mark.slow
    @pytest.mark.parametrize("build", [gemma3, phi])
    def test_tables_by_kind_of_layer_or_for_a_part_of_each_head(
        self, build: Callable[[], nn.Module], case_of: Callable[..., Case]
    ) -> None:
        case = case_of(build)
        cut = case.cut(case.random(1))
        assert "literals" not in case.exported(cut).how
        prompt = tokens(2, 5)
        assert is_masked_greedy(generated(case.loaded(), prompt, 12), cut, prompt, 12)

    @pytest.mark.slow
    @pytest.mark.parametrize("build", [phi3, bloom, gpt_neox])
    def test_widths_as_literals_in_forward_leave_activations_as_wide_as_they_were(
        self, build: Callable[[], nn.Module], case_of: Callable[..., Case]
    ) -> None:
        case = case_of(build)
        cut = case.cut(case.random(1))
        assert "activations are as wide as before" in case.exported(cut).how
        model = case.loaded()
        assert sum(p.numel() for p in model.parameters()) < 1.1 * l0.cost(cut.graph).params
        prompt = tokens(2, 5)
        assert is_masked_greedy(generated(model, prompt, 8), cut, prompt, 8)

    @pytest.mark.slow
    def test_an_encoder_with_a_mask(self, case_of: Callable[..., Case]) -> None:
        mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
        case = case_of(bert, input_ids=tokens(2, 6), attention_mask=mask)
        cut = case.cut(case.random(1))
        case.exported(cut)
        with torch.no_grad():
            expected = cut.reference()(input_ids=tokens(2, 6), attention_mask=mask)["last_hidden_state"]
            found = case.loaded("AutoModel")(input_ids=tokens(2, 6), attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, expected)

    def test_convolutions(self, case_of: Callable[..., Case]) -> None:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        case = case_of(lambda: transformers.ResNetForImageClassification(config), pixel_values=image)
        assert "literals" not in case.exported(case.cut(case.random(0))).how


class TestTheFolder:
    @pytest.fixture
    def case(self, case_of: Callable[..., Case]) -> Case:
        return case_of(llama)

    @pytest.mark.slow
    def test_needs_no_l0compress(self, case: Case) -> None:
        cut = case.cut(case.random(3))
        case.exported(cut)
        code = (
            "import sys, torch, transformers\n"
            "sys.modules['l0compress'] = None\n"
            f"model = transformers.AutoModelForCausalLM.from_pretrained({str(case.folder)!r}, trust_remote_code=True)\n"
            "print(model(torch.tensor([[3, 1, 4]])).logits[0, -1].tolist())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"HF_MODULES_CACHE": str(case.home / "modules"), "OMP_NUM_THREADS": "1"},
        )
        with torch.no_grad():
            expected = cut.reference()(input_ids=torch.tensor([[3, 1, 4]]))["logits"][0, -1]
        torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_is_trained_on_and_saved_again_as_any_other(self, case: Case) -> None:
        case.exported(case.cut(case.random(3)))
        model = case.loaded()
        loss = model(tokens(2, 6), labels=tokens(2, 6)).loss
        loss.backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "embed" not in name)
        model.save_pretrained(case.home / "again")
        again = transformers.AutoModelForCausalLM.from_pretrained(case.home / "again", trust_remote_code=True)
        with torch.no_grad():
            assert torch.equal(again(tokens(2, 6)).logits, model.eval()(tokens(2, 6)).logits)

    @pytest.mark.slow
    def test_the_base_model_loads_from_it(self, case: Case) -> None:
        cut = case.cut(case.random(3))
        case.exported(cut)
        base, whole = case.loaded("AutoModel"), case.loaded()
        with torch.no_grad():
            assert torch.equal(base(tokens(2, 6)).last_hidden_state, whole.model(tokens(2, 6)).last_hidden_state)

    @pytest.mark.slow
    def test_is_read_and_captured_without_running_its_code(self, case: Case) -> None:
        case.exported(case.cut(case.random(3)))
        (case.folder / "modeling_l0compress.py").write_text("raise SystemExit('ran')\n")
        model = l0.load_model(case.folder)
        graph = l0.capture(model, (), {"input_ids": tokens(2, 6)})
        assert l0.find_groups(graph).num_moves > 0

    @pytest.mark.slow
    def test_has_what_lay_beside_the_weights_and_a_card(self, case: Case) -> None:
        for name, text in {"tokenizer.json": "{}", "vocab.txt": "a", "evil.py": "", "pytorch_model.bin": "x"}.items():
            (case.source / name).write_text(text)
        case.exported(case.cut(case.random(3)))
        names = {file.name for file in case.folder.iterdir()}
        assert {"tokenizer.json", "vocab.txt", "generation_config.json", "README.md"} <= names
        assert not {"evil.py", "pytorch_model.bin"} & names
        card = (case.folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: transformers\ntags:\n- l0compress\n")
        assert "AutoModelForCausalLM.from_pretrained(" in card and "trust_remote_code=True" in card
        assert re.search(r"\| model\.layers\.0\.mlp\.gate_proj \| 24 \| \d+ \|", card)

    @pytest.mark.slow
    def test_an_earlier_export_is_replaced_and_nothing_else_is(self, case: Case) -> None:
        cut = case.cut(case.random(3))
        case.exported(cut)
        (case.folder / "stale.txt").write_text("old")
        case.exported(cut)
        assert not (case.folder / "stale.txt").exists()
        with pytest.raises(
            RunError, match=r"^'.*dense' exists and was not written by l0compress\. Nothing was written\."
        ):
            l0.export_huggingface(cut.graph, case.source, case.source, plan=cut.plan)
        (case.source / "README.md").write_text("# Made with\n\n- l0compress\n")
        with pytest.raises(RunError, match="was not written by l0compress"):
            l0.export_huggingface(cut.graph, case.source, case.source, plan=cut.plan)
        assert (case.source / "model.safetensors").is_file()

    @pytest.mark.slow
    def test_a_graph_alone_does_not_say_what_was_cut(self, case: Case) -> None:
        with pytest.raises(InputError, match=r"^a small graph does not say what was cut\. Nothing was written\."):
            l0.export_huggingface(case.graph, case.source, case.folder)

    @pytest.mark.slow
    def test_another_model_is_refused(self, case: Case) -> None:
        cut = case.cut(case.random(3))
        gpt2().save_pretrained(case.home / "other")
        with pytest.raises(
            InputError, match=r"^the small model has a weight 'lm_head\.weight'|which the folder's model lacks"
        ):
            l0.export_huggingface(cut.graph, case.home / "other", case.folder, plan=cut.plan)
        llama(rms_norm_eps=0.5).save_pretrained(case.home / "same shapes")
        with pytest.raises(NotEqualError, match=r"^no class of transformers computes what the small model computes"):
            l0.export_huggingface(cut.graph, case.home / "same shapes", case.folder, plan=cut.plan)
        assert not case.folder.exists()

    @pytest.mark.slow
    def test_a_second_cut_is_refused(self, case: Case) -> None:
        case.exported(case.cut(case.random(3)))
        again = Case(llama(), case.home / "again")
        cut = again.cut(again.random(3))
        with pytest.raises(
            InputError, match=r"was cut by l0compress before, and its record has no room for a second cut"
        ):
            l0.export_huggingface(cut.graph, case.folder, case.home / "twice", plan=cut.plan)

    @pytest.mark.slow
    def test_a_missing_source_is_an_error_of_the_model(self, case: Case) -> None:
        cut = case.cut(case.random(3))
        with pytest.raises(ModelError, match=r"config\.json is missing"):
            l0.export_huggingface(cut.graph, case.home / "nowhere", case.folder, plan=cut.plan)
