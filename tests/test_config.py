"""Configuration files: every flag is in them, flags win, and what is wrong is named with its line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import operator
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import run_cli

from l0compress.cli.commands.finetune import finetune
from l0compress.errors import InputError, TargetError
from l0compress.loading.splits import SHARES, parse_shares
from l0compress.pipeline.config import complete, config_schema, config_text, parse_config, read_config
from l0compress.pipeline.options import CHANGEABLE, OPTIONS
from l0compress.pipeline.readers import READERS
from l0compress.pipeline.requests import request_of
from l0compress.training.settings import FinetuneSettings, GateSettings

NOT_SETTINGS = {"output", "resume", "config", "print_config", "config_schema", "as_json"}
NEEDED = {"model": "net.pt2", "data": "digits", "target": "macs=0.5"}
OTHER = {
    "factory": "nets:lenet", "trust_pickle": True, "seed": 9, "device": "cuda", "threads": 3, "checkpoint_every": 17,
    "epochs": 5, "batch_size": 12, "lr": 0.25, "optimizer": "sgd", "clip": 2.5, "loss": "mse", "bf16": True,
    "quantization_aware": True, "ternary": True, "dropout": 0.125, "drop_connect": 0.375,
    "activation_l1": 0.0625,
    "weight_decay": 0.5, "distill": False, "distill_temperature": 3.0, "final_temperature": 4.0, "task_share": 0.75,
    "input_dropout": 0.25,
}  # fmt: skip


def test_every_flag_has_a_key_of_its_name() -> None:
    assert set(inspect.signature(finetune).parameters) - NOT_SETTINGS <= set(OPTIONS)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_flag_takes_what_its_setting_is(name: str) -> None:
    found = inspect.signature(finetune).parameters.get(name)
    assert (found is not None) == bool(OPTIONS[name].help)
    kind = list[OPTIONS[name].kind] if OPTIONS[name].many else OPTIONS[name].kind
    assert found is None or get_args(found.annotation)[0] == kind | None


def test_defaults_that_are_written_out_are_those_of_what_reads_them() -> None:
    assert parse_shares(OPTIONS["split"].default) == SHARES


def test_every_setting_that_names_a_reader_has_one() -> None:
    assert {row.format for row in OPTIONS.values()} - {""} == set(READERS)


class TestSchema:
    """Against a reading of JSON Schema that knows only the words that are used."""

    @staticmethod
    def fits(value: object, schema: dict[str, Any]) -> bool:
        kinds = {"object": dict, "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
        if "anyOf" in schema:
            return any(TestSchema.fits(value, one) for one in schema["anyOf"])
        if isinstance(schema["type"], list):
            return any(TestSchema.fits(value, {**schema, "type": one}) for one in schema["type"])
        if isinstance(value, list) and schema["type"] == "array":
            return len(value) >= schema["minItems"] and all(TestSchema.fits(one, schema["items"]) for one in value)
        if not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
            return False
        if isinstance(value, dict):
            known = schema["properties"]
            return all(name in known and TestSchema.fits(one, known[name]) for name, one in value.items())
        limits = {"minimum": operator.ge, "maximum": operator.le, "exclusiveMinimum": operator.gt}
        limits |= {"exclusiveMaximum": operator.lt, "enum": lambda one, names: one in names}
        limits |= {"pattern": lambda one, pattern: re.search(pattern, one)}
        return all(holds(value, schema[word]) for word, holds in limits.items() if word in schema)

    def test_what_is_printed_as_the_configuration_fits(self) -> None:
        schema = json.loads(run_cli("finetune", "--config-schema").stdout)
        assert schema == config_schema()
        several = {"target": ["macs=0.5", "params=0.5"], "keep": "stem.*", "min_density": [0.1, "head=0.5"]}
        for given in ({}, {**NEEDED, **OTHER}, {**NEEDED, "clip": 0.0}, {**NEEDED, **several}):
            assert self.fits(tomllib.loads(config_text(complete(given))), schema)

    @pytest.mark.parametrize("case", ["a negative clip", "an unknown optimizer", "a share above 1", "an unknown key",
                                      "a gate's rate of 0", "text for a number", "a number for true",
                                      "true for a count", "a key in the wrong table"])  # fmt: skip
    def test_what_the_reader_refuses_does_not(self, case: str) -> None:
        assert not self.fits(tomllib.loads(WRONG[case][0]), config_schema())

    def test_every_setting_is_in_it_with_its_default(self) -> None:
        properties = config_schema()["properties"]
        sections = [part["properties"] for part in properties.values() if part.get("type") == "object"]
        flat = {name: one for part in (properties, *sections) for name, one in part.items()}
        assert {name: flat[name].get("default") for name in OPTIONS} == complete({})


def test_every_constant_of_a_run_has_a_key() -> None:
    fields = {option.field for option in OPTIONS.values() if option.field}
    constants = {field.name for kind in (FinetuneSettings, GateSettings) for field in dataclasses.fields(kind)}
    assert constants - {"gates"} == fields


def test_defaults_are_those_of_the_settings() -> None:
    settings = request_of(NEEDED).finetune_settings()
    assert settings == FinetuneSettings()


def test_every_value_arrives_where_it_belongs() -> None:
    gates = {field.name: getattr(GateSettings(), field.name) / 2 for field in dataclasses.fields(GateSettings)}
    gates |= {
        "full_steps": 7,
        "full_multiplier_steps": 8,
        "many_steps": 9,
        "compact_every": 10,
        "few_steps": 11,
        "fewest_steps": 12,
    }
    request = request_of({**NEEDED, **OTHER, **gates})
    assert (request.source.factory, request.source.trust_pickle) == ("nets:lenet", True)
    assert (request.threads, request.checkpoint_every, request.loss) == (3, 17, "mse")
    settings = request.finetune_settings()
    assert dataclasses.asdict(settings.gates) == gates
    named = {"learning_rate": OTHER["lr"]}
    for name in (
        "seed",
        "device",
        "epochs",
        "batch_size",
        "optimizer",
        "clip",
        "bf16",
        "weight_decay",
        "distill",
        "quantization_aware",
        "ternary",
        "dropout",
        "drop_connect",
        "activation_l1",
    ):
        named[name] = OTHER[name]
    assert {name: getattr(settings, name) for name in named} == named


@pytest.mark.slow
def test_what_is_written_is_read_back() -> None:
    for given in (NEEDED, {**NEEDED, **OTHER}, {**NEEDED, "data": 'a "quoted"\\path'}, {**NEEDED, "lr": 1e-7}):
        values = complete(given)
        text = config_text(values)
        assert {**dict.fromkeys(OPTIONS), **parse_config(text, name="c.toml")} == values
        assert request_of(tomllib.loads(text) and parse_config(text, name="")).values() == request_of(values).values()


def test_a_request_is_what_its_values_say() -> None:
    for given in (NEEDED, {**NEEDED, **OTHER}, {**NEEDED, "clip": 0.0}):
        request = request_of(given)
        assert request_of(request.values()) == request


WRONG = {
    "a syntax error": ("seed = \n", r"c\.toml is not valid TOML: .*line 1.*"),
    "an unknown key": ("seed = 1\n\nsede = 2\n", r"c\.toml, line 3: there is no setting sede\..* Did you mean seed\?"),
    "a key in the wrong table": (
        "epochs = 3\n",
        r"c\.toml, line 1: there is no setting epochs\..* Did you mean \[training\] epochs\?",
    ),
    "an unknown table": ("[train]\nlr = 1\n", r"c\.toml, line 1: there is no setting train\."),
    "a table that is a value": ("training = 3\n", r"c\.toml, line 1: there is no setting training\."),
    "text for a number": (
        '[training]\n\nlr = "fast"\n',
        r"c\.toml, line 3: \[training\] lr = 'fast': expected a number\.",
    ),
    "a fraction for a count": ("seed = 0.5\n", r"c\.toml, line 1: seed = 0\.5: expected an integer\."),
    "true for a count": ("seed = true\n", r"c\.toml, line 1: seed = True: expected an integer\."),
    "a number for true": (
        "[training]\nbf16 = 1\n",
        r"c\.toml, line 2: \[training\] bf16 = 1: expected true or false\.",
    ),
    "a number for text": ("data = 3\n", r"c\.toml, line 1: data = 3: expected text\."),
    "too few epochs": ("[training]\nepochs = -1\n", r"line 2: \[training\] epochs = -1: expected at least 0\."),
    "a rate of nan": ("[training]\nlr = nan\n", r"line 2: \[training\] lr = nan: expected a finite number above 0\."),
    "a negative clip": ("[training]\nclip = -1\n", r"line 2: \[training\] clip = -1: expected at least 0\."),
    "an unknown optimizer": (
        '[training]\noptimizer = "lion"\n',
        r"line 2: .*= 'lion': expected one of adamw, sgd, or PACKAGE",
    ),
    "an unknown loss": ('[training]\nloss = "hinge"\n', r"c\.toml, line 2: Unknown loss 'hinge': expected one of"),
    "a share above 1": ("[gates]\nshare = 1.5\n", r"line 2: \[gates\] share = 1\.5: expected between 0 and 1\."),
    "a gate's rate of 0": ("[gates]\nlearning_rate = 0\n", r"line 2: \[gates\] learning_rate = 0: expected a finite"),
    "a malformed target": ('seed = 1\ntarget = "macs:0.5"\n', r"c\.toml, line 2: Target 'macs:0\.5' has no '='\."),
    "in an inline table": ("training = {lr = 1, epoch = 3}\n", r"line 1: there is no setting \[training\] epoch\."),
    "by a dotted key": ("seed = 3\ntraining.epoch = 3\n", r"line 2: there is no setting \[training\] epoch\."),
    "after text of many lines": (
        'data = """\n[training]\nepoch = 1\n"""\n[gates]\n# none\nepoch = 3\n',
        r"line 7: there is no setting \[gates\] epoch\.",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_config(text, name="c.toml")
    assert "Nothing was changed." in str(error.value) or isinstance(error.value, TargetError)


def test_whole_numbers_serve_as_fractions() -> None:
    assert parse_config("[training]\nlr = 1\nclip = 0\n", name="") == {"lr": 1.0, "clip": 0.0}


class TestCommand:
    def test_the_defaults_are_printed(self) -> None:
        outcome = run_cli("finetune", "--print-config")
        assert outcome.exit_code == 0 and outcome.stdout == config_text(complete({}))
        assert tomllib.loads(outcome.stdout)["training"]["epochs"] == 48
        assert "# lr =   (chosen by the network and the length of the run)" in outcome.stdout

    def test_flags_win_over_the_file_and_the_file_over_defaults(self, tmp_path: Path) -> None:
        file = tmp_path / "c.toml"
        file.write_text('model = "a.pt2"\nseed = 4\n[training]\nepochs = 7\nbf16 = true\n')
        flags = ("--epochs", "9", "--no-bf16", "--clip", "0")
        printed = run_cli("finetune", "b.pt2", "--config", file, *flags, "--print-config").stdout
        (tmp_path / "printed.toml").write_text(printed)
        found = read_config(tmp_path / "printed.toml")
        assert found == {
            name: value
            for name, value in complete({"model": "b.pt2", "seed": 4, "epochs": 9, "bf16": False, "clip": 0.0}).items()
            if value is not None
        }

    @pytest.mark.parametrize(("flag", "value"), [("--epochs", "-1"), ("--workers", "-1"), ("--seed", "-1")])
    def test_a_flag_is_checked_as_the_file_is_and_in_the_same_words(self, flag: str, value: str) -> None:
        outcome = run_cli("finetune", flag, value, "--print-config")
        assert outcome.exit_code == 2
        assert outcome.stderr == (
            f"Error: {flag} = {value}: expected at least 0. Nothing was changed. Change the value.\n"
        )

    def test_what_is_missing_is_named_together(self) -> None:
        outcome = run_cli("finetune", "--data", "digits")
        assert outcome.exit_code == 2
        assert outcome.stderr == (
            "Error: MODEL and --target must be given. Nothing was changed. Pass it as a flag, or in the file of "
            "--config.\n"
        )

    def test_what_may_change_on_resuming_are_settings(self) -> None:
        assert set(CHANGEABLE) <= set(OPTIONS)
