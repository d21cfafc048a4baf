"""Read an untrusted manifest: every value has the required type and range, and the parts fit together."""

from __future__ import annotations

import json

from l0compress_runtime.archive import FormatError
from l0compress_runtime.coding import DTYPES, FLOAT_STORAGES, TensorSpec
from l0compress_runtime.fields import Fields
from l0compress_runtime.layers import ACTIVATIONS, DIRECTIONS, GATES
from l0compress_runtime.manifest import (
    FORMAT,
    OLDEST,
    VERSION,
    LayerTiming,
    Manifest,
    PlanTiming,
    Port,
    Recurrence,
    Segment,
    SparseStep,
    Step,
)
from l0compress_runtime.sessions import SLOW_FUSIONS
from l0compress_runtime.ternary import TERNARY

LAYER_KINDS = ("linear", "conv", "embedding", "recurrent")
MOST_DIMS = 16


def parse(text: bytes) -> Manifest:
    """Read a manifest and check that its parts fit together.

    Raises:
        FormatError: something is missing or has the wrong type.
    """
    try:
        root = Fields(json.loads(text.decode("utf-8")), "")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {str(error)[:200]}") from error
    root.text("format", (FORMAT,))
    version = root.integer("version", 1)
    if not OLDEST <= version <= VERSION:
        raise FormatError(f"is of format version {version}; this is a reader of versions {OLDEST} to {VERSION}")
    manifest = Manifest(
        root.each("inputs", _port),
        root.each("outputs", _port),
        root.mapped("tensors", _tensor),
        root.mapped("segments", _segment),
        root.mapped("layers", _layer),
        _plans(root),
        _choices(root),
        root.each("layer_timings", _layer_timing),
        root.each(
            "plan_timings",
            lambda entry: PlanTiming(
                entry.integer("batch_size", 1), entry.number("dense_ms"), entry.number("chosen_ms")
            ),
        ),
        _texts(root, "whys"),
        _texts(root, "about"),
        _texts(root, "hashes"),
        _disabled(root),
    )
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Check that everything named exists, and that every plan produces each value before it is read.

    Raises:
        FormatError: it is inconsistent.
    """
    for name, layer in manifest.layers.items():
        for tensor in layer.tensors:
            if tensor not in manifest.tensors:
                raise FormatError(f"layers.{name} reads a tensor {tensor!r} that does not exist")
        dense = manifest.segments.get(layer.dense)
        if dense is None or dense.inputs != layer.inputs or dense.outputs != layer.outputs:
            raise FormatError(f"layers.{name} has no segment that computes the same")
    for name, segment in manifest.segments.items():
        absent = sorted(set(segment.tensors.values()) - manifest.tensors.keys())
        if absent:
            raise FormatError(f"segments.{name} reads a tensor {absent[0]!r} that does not exist")
    members = [*(t.member for t in manifest.tensors.values()), *(s.member for s in manifest.segments.values())]
    for member in members:
        if member not in manifest.hashes:
            raise FormatError(f"there is no hash of {member!r}")
    for name, plan in manifest.plans.items():
        _check_plan(manifest, name, plan)
    if not manifest.choices or any(plan not in manifest.plans for _, plan in manifest.choices):
        raise FormatError("choices name no plan, or one that does not exist")


def _check_plan(manifest: Manifest, name: str, plan: tuple[Step, ...]) -> None:
    made = {port.name for port in manifest.inputs}
    for step in plan:
        part = manifest.segments.get(step.part) if step.engine is None else manifest.layers.get(step.part)
        if part is None:
            raise FormatError(f"plans.{name} has a step {step.part!r} that does not exist")
        if not made.issuperset(part.inputs):
            raise FormatError(f"plans.{name} reads {sorted(set(part.inputs) - made)[0]!r} before it is made")
        if not made.isdisjoint(part.outputs) or len(set(part.outputs)) != len(part.outputs):
            raise FormatError(f"plans.{name} makes a value twice")
        made.update(part.outputs)
    missing = [port.name for port in manifest.outputs if port.name not in made]
    if missing:
        raise FormatError(f"plans.{name} does not make the output {missing[0]!r}")


def _port(entry: Fields) -> Port:
    shape = entry.items("shape")
    if len(shape) > MOST_DIMS or any(isinstance(size, bool) or not isinstance(size, int | str) for size in shape):
        raise entry.wrong("shape", "a list of sizes and names")
    if any(isinstance(size, int) and not 0 <= size < 2**31 for size in shape):
        raise entry.wrong("shape", "sizes from 0 to 2147483647")
    example = entry.integers("example") if "example" in entry.raw() else ()
    if len(example) not in (0, len(shape)):
        raise entry.wrong("example", "a size for each of shape, or none")
    return Port(entry.text("name"), entry.text("dtype", DTYPES), tuple(shape), example)


def _tensor(entry: Fields) -> TensorSpec:
    shape = entry.integers("shape")
    dtype = entry.text("dtype", DTYPES)
    storages = (dtype, *FLOAT_STORAGES, TERNARY) if dtype == "float32" else (dtype,)
    spec = TensorSpec(
        entry.text("member"),
        shape,
        dtype,
        entry.text("storage", storages),
        entry.optional_integer("nonzeros"),
        entry.optional_integer("scale_axis"),
    )
    quantized = spec.storage == TERNARY or (spec.storage == "int8" and dtype == "float32")
    if len(shape) > MOST_DIMS or spec.size > 2**40 or (spec.nonzeros or 0) > spec.size:
        raise FormatError(f"{entry.where}shape is {shape} with {spec.nonzeros} nonzeros")
    if quantized != (spec.scale_axis is not None) or (spec.scale_axis is not None and spec.scale_axis >= len(shape)):
        expected = "a dimension of the tensor for int8 or ternary storage of floats, and null otherwise"
        raise entry.wrong("scale_axis", expected)
    if spec.storage == TERNARY and spec.nonzeros is None:
        raise entry.wrong("nonzeros", "how many values of a ternary tensor are not zero")
    return spec


def _segment(entry: Fields) -> Segment:
    return Segment(entry.text("member"), entry.texts("inputs"), entry.texts("outputs"), _texts(entry, "tensors"))


def _layer(entry: Fields) -> SparseStep:
    padding = entry.items("padding")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in padding):
        raise entry.wrong("padding", "a list of pairs")
    if any(type(size) is not int or not 0 <= size < 2**31 for pair in padding for size in pair):
        raise entry.wrong("padding", "a list of pairs of sizes")
    step = SparseStep(
        entry.text("kind", LAYER_KINDS),
        entry.text("name"),
        entry.texts("inputs"),
        entry.texts("outputs"),
        entry.text("weight"),
        entry.flag("transposed"),
        entry.optional_text("bias"),
        entry.optional_text("activation", ACTIVATIONS),
        entry.text("dense"),
        entry.integers("kernel", 1),
        entry.integers("stride", 1),
        tuple((pair[0], pair[1]) for pair in padding),
        entry.integers("dilation", 1),
        entry.integer("groups", 1),
        entry.optional("recurrence", _recurrence),
        entry.optional_integer("flat_from", 0, MOST_DIMS),
    )
    _check_ends(entry, step)
    return step


def _recurrence(entry: Fields) -> Recurrence:
    return Recurrence(
        entry.text("cell", tuple(GATES)),
        entry.text("direction", DIRECTIONS),
        entry.text("weight"),
        entry.integers("states"),
        entry.integers("makes"),
    )


def _check_ends(entry: Fields, step: SparseStep) -> None:
    """Check that a layer reads and produces one value, unless it is recurrent, which says what its values are."""
    recurrence = step.recurrence
    if step.flat_from is not None and step.kind != "linear":
        raise entry.wrong("flat_from", "null except for a linear layer")
    if (step.kind == "recurrent") != (recurrence is not None):
        raise entry.wrong("recurrence", "an object for a recurrent layer, and null otherwise")
    if len(set(step.inputs)) != len(step.inputs):
        raise entry.wrong("inputs", "different values")
    if recurrence is None:
        if (len(step.inputs), len(step.outputs)) != (1, 1):
            raise entry.wrong("inputs", "one value, as outputs")
        return
    states = 1 + (recurrence.cell == "lstm")
    if len(recurrence.states) != states or {0, *recurrence.states} != set(range(len(step.inputs))):
        raise entry.wrong("recurrence", f"{states} states that are inputs, and no other inputs but the sequence")
    made = set(recurrence.makes)
    if not made or not len(made) == len(recurrence.makes) == len(step.outputs) or not made <= set(range(1 + states)):
        raise entry.wrong("recurrence", f"what each output is, from 0 to {states}")
    if step.transposed or step.activation is not None or step.kernel:
        raise entry.wrong("kind", "one that is transposed, has an activation or a kernel")


def _plans(root: Fields) -> dict[str, tuple[Step, ...]]:
    plans = Fields(root.raw().get("plans"), "plans: ")
    return {
        name: plans.each(name, lambda entry: Step(entry.text("part"), entry.optional_text("engine")))
        for name in plans.raw()
    }


def _choices(root: Fields) -> tuple[tuple[int, str], ...]:
    choices = []
    for entry in root.items("choices"):
        if not isinstance(entry, list) or len(entry) != 2 or type(entry[0]) is not int or not isinstance(entry[1], str):
            raise root.wrong("choices", "a list of batch sizes with the name of a plan")
        choices.append((entry[0], entry[1]))
    if any(size < 1 for size, _ in choices):
        raise root.wrong("choices", "batch sizes of at least 1")
    return tuple(choices)


def _disabled(root: Fields) -> tuple[str, ...]:
    names = root.texts("disabled_optimizers") if "disabled_optimizers" in root.raw() else ()
    if not set(names) <= set(SLOW_FUSIONS):
        raise root.wrong("disabled_optimizers", f"some of {', '.join(SLOW_FUSIONS)}")
    return names


def _layer_timing(entry: Fields) -> LayerTiming:
    medians = Fields(entry.raw().get("median_ms"), f"{entry.where}median_ms: ")
    return LayerTiming(
        entry.text("layer"), entry.integer("batch_size", 1), {name: medians.number(name) for name in medians.raw()}
    )


def _texts(entry: Fields, key: str) -> dict[str, str]:
    texts = Fields(entry.raw().get(key), f"{entry.where}{key}: ")
    return {name: texts.text(name) for name in texts.raw()}
