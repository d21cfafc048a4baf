"""What was asked of a run, what came out, where and when, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from l0compress.measure.page.content import Command, Fact, Tile
from l0compress.measure.report import as_share, in_ms
from l0compress.pipeline import runs
from l0compress.pipeline.config import complete
from l0compress.pipeline.options import OPTIONS
from l0compress.pipeline.report.told import DENSE, SMALL, Told
from l0compress.pipeline.run_result import targets_in
from l0compress.training.schema import Setting
from l0compress.training.targets import told

_CALL = "l0compress.compress(model, data, target=..., output='NEW')"
# What every page names, in this order, whether it was said or left to its default.
_ALWAYS = ("model", "data", "target", "method", "granularity", "epochs")
# What the page says of the environment.
_ELSEWHERE = ("threads", "device", "seed")
_BEGINNINGS = ("began", "resumed")
_COSTS = {"params": "Parameters", "macs": "MACs a sample", "bytes": "Bytes of weights"}


def tiles_of(report: Told) -> tuple[Tile, ...]:
    """Return the few numbers that matter most: the score, what the target is on, time; of a family the smallest's."""
    run = list(report.members.values())[-1]
    result = run.result
    scores = result["test"] or result["val"]
    tiles = [
        Tile(
            _first_upper(report.score_name),
            f"{scores[DENSE]['metric']:.4f}",
            f"{scores[SMALL]['metric']:.4f}",
            f"{scores[SMALL]['num_samples']:,} samples",
        )
    ]
    left = result.get("nonzero") or result[SMALL]
    wanted = [target["unit"] for target in targets_in(result)]
    units = [unit for unit in _COSTS if unit in wanted] + [unit for unit in _COSTS if unit not in wanted]
    for unit in units:
        name = _COSTS[unit] + (" without zeros" if result.get("nonzero") else "")
        before, after = result[DENSE][unit], left[unit]
        tiles.append(Tile(name, f"{before:,}", f"{after:,}", as_share(after, before)))
    tiles += _times(report)
    return tuple(tiles[:5])


def _times(report: Told) -> list[Tile]:
    if report.tradeoff is None:
        return []
    points = {point.name: point for point in report.tradeoff.points}
    name = list(report.members)[-1]
    size = report.tradeoff.axes[0]
    if name not in points or DENSE not in points:
        return []
    before, after = points[DENSE].price(size), points[name].price(size)
    return [Tile(f"Milliseconds, {size}", in_ms(before), in_ms(after), f"{before / after:.1f} times as fast")]


def asked_of(report: Told) -> tuple[Fact, ...]:
    """Return what was asked for: what every page names, and every setting that is not at its default."""
    facts = [Fact(_first_upper(key), _value(report.settings.get(key, OPTIONS[key].default))) for key in _ALWAYS]
    others = (row for row in _changed(report.settings) if row.key not in (*_ALWAYS, *_ELSEWHERE))
    facts += [Fact(row.key.replace("_", " "), _value(report.settings[row.key])) for row in others]
    changes: Mapping[str, Any] = report.about.get("changes", {})
    facts += [Fact(f"{key.replace('_', ' ')}, changed on resuming", _value(value)) for key, value in changes.items()]
    return tuple(facts)


def outcome_of(report: Told) -> tuple[Fact, ...]:
    """Return what came out: every budget and what was used of it, the scores, and how closely the proof agrees."""
    facts: list[Fact] = []
    for name, run in report.members.items():
        prefix = f"{name}: " if report.is_family else ""
        facts += [Fact(f"{prefix}budget" if prefix else "Budget", line) for line in _budgets(run.result)]
    if not report.is_family:
        result = report.first.result
        parts = (("Validation", result["val"]), ("Test", result["test"]))
        facts += [Fact(part, _score(scores)) for part, scores in parts if scores]
    facts.append(Fact("Proof", _proof(report)))
    files = [f"{path.name} ({path.stat().st_size:,} bytes)" for path in sorted(report.folder.glob("model*"))]
    if files:
        facts.append(Fact("Exported files", ", ".join(files)))
    lost = [f"{part['what']} ({part['module']})" for part in report.first.result.get("training_only") or ()]
    if lost:
        facts.append(Fact("Lost in capture", ", ".join(lost)))
    meaning = None if report.reading is None else report.reading.meaning
    return (*facts, *(() if meaning is None else (Fact("The score", meaning),)))


def _budgets(result: Mapping[str, Any]) -> Iterator[str]:
    for target in targets_in(result):
        unit, limit, reached = target["unit"], target["limit"], target["reached"]
        yield f"{told(unit, reached, named=False)} of at most {told(unit, limit)} ({as_share(reached, limit)})"


def _score(scores: Mapping[str, Any]) -> str:
    before, after = scores[DENSE], scores[SMALL]
    name = before["metric_name"]
    text = f"{name} {before['metric']:.4f} → {after['metric']:.4f}"
    loss = "" if name == "loss" else f", loss {before['loss']:.4f} → {after['loss']:.4f}"
    return f"{text}{loss}, {after['num_samples']:,} samples"


def _proof(report: Told) -> str:
    checked = [run.result["equality"] for run in report.members.values()]
    sizes = ", ".join(map(str, dict.fromkeys(size for one in checked for size in one["batch_sizes"])))
    which = "each member" if report.is_family else "the small model"
    largest = max(one["max_relative"] for one in checked)
    return f"{which} equals its masked dense model within {largest:.1e} of the largest output, at batch sizes {sizes}"


def journal_of(report: Told) -> tuple[Fact, ...]:
    """Return when the run began, stopped, went on and finished, what it decided, and how long it was at work."""
    facts = []
    for entry in report.log:
        what = str(entry.get("what", ""))
        if what == "epoch":
            continue
        details = entry.get("message") or entry.get("position") or ""
        cause = f" ({entry['signal']})" if "signal" in entry else ""
        facts.append(Fact(clock(str(entry.get("time", ""))), f"{what}{cause}{': ' if details else ''}{details}"))
    taken = seconds_at_work(report.log)
    return (*facts, Fact("At work", _duration(taken))) if taken else tuple(facts)


def seconds_at_work(log: Sequence[Mapping[str, Any]]) -> float:
    """Return how long a run was at work by its log: from each beginning to the last that it noted before the next.

    >>> log = [("began", 0), ("epoch", 3), ("resumed", 30), ("epoch", 31), ("finished", 34)]
    >>> seconds_at_work([{"what": what, "time": f"2026-01-01T00:00:{second:02}+00:00"} for what, second in log])
    7.0
    """
    taken, before = 0.0, None
    for entry in log:
        try:
            now = datetime.fromisoformat(str(entry.get("time")))
        except ValueError:
            continue
        if before is not None and entry.get("what") not in _BEGINNINGS:
            taken += (now - before).total_seconds()
        before = now
    return taken


def environment_of(report: Told, *, here: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Return versions, processor, threads and seed, as the run noted them; ``here`` is the machine of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in report.about.get("versions", {}).items())
    noted = [entry["machine"] for entry in report.log if "machine" in entry]
    machines = dict.fromkeys(_machine(one) for one in noted)
    facts = [
        Fact("Versions", versions or "not noted"),
        Fact("Processor", "; ".join(machines) or "not noted by this run"),
        Fact("Threads", _value(report.settings.get("threads"))),
        Fact("Device", _value(report.settings.get("device"))),
        Fact("Seed", _value(report.settings.get("seed"))),
    ]
    if _machine(here) not in machines:
        facts.append(Fact("This page was made on", _machine(here)))
    model = str(report.about.get("model", ""))
    if model:
        facts.append(Fact("SHA-256 of the model", model))
    return tuple(facts)


def commands_of(report: Told) -> tuple[Command, ...]:
    """Return what to type to make the run again, and what to do with it next."""
    commands = _again(report)
    folder = shlex.quote(str(report.folder))
    export = f"l0compress export {folder} --format onnx"
    commands.append(Command("The small model as a file:", export))
    if report.bench is None:
        commands.append(Command("Times and int8, which this page then shows too:", f"l0compress bench {folder}"))
    return tuple(commands)


def _again(report: Told) -> list[Command]:
    if runs.GIVEN in report.about:
        what = " and ".join(report.about[runs.GIVEN])
        return [Command(f"It was given its {what} in Python, where the same call makes it again:", _CALL)]
    config = shlex.quote(str(report.folder / runs.CONFIG))
    commands = [
        Command(
            "All settings, to the same checksums on the same machine and versions:",
            f"l0compress finetune --config {config} -o NEW",
        )
    ]
    flags = finetune_command(report.settings)
    return [*commands, *([Command("The same by flags:", f"{flags} -o NEW")] if flags else [])]


def finetune_command(settings: Mapping[str, Any]) -> str:
    """Return the command with every setting that is not at its default; empty where one of them has no flag.

    Example:
        >>> finetune_command({"model": "my net.pt2", "data": "digits", "target": "macs=0.5", "seed": 3})
        "l0compress finetune 'my net.pt2' --data digits --target macs=0.5 --seed 3"
    """
    words = ["l0compress", "finetune"]
    for row in _changed(settings):
        if not row.help:
            return ""
        value, flag = settings[row.key], f"--{row.key.replace('_', '-')}"
        if row.key == "model":
            words.insert(2, str(value))
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            listed = value if isinstance(value, list) else [value]
            words += [word for each in listed for word in (flag, str(each))]
    return shlex.join(words)


def _changed(settings: Mapping[str, Any]) -> Iterator[Setting]:
    defaults = complete({})
    for key, row in OPTIONS.items():
        value = settings.get(key)
        if value is not None and value != defaults[key]:
            yield row


def _value(value: Any) -> str:
    if value is None:
        return "not said"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _machine(noted: Mapping[str, Any]) -> str:
    return f"{noted.get('cpu', '')}, {noted.get('cores', '?')} cores, {noted.get('system', '')}"


def clock(time: str) -> str:
    """A time of a log, for people.

    >>> clock("2026-11-30T07:37:26.556+00:00")
    '2026-11-30 07:37:26 UTC'
    """
    try:
        return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return time


def _duration(seconds: float) -> str:
    """
    >>> _duration(12.34), _duration(75), _duration(3725)
    ('12.3 seconds', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
