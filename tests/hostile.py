"""Bundles as an enemy or a bad disk would make them.

    python tests/hostile.py --examples 2000 --seed 0        # make fuzz-bundles

Whatever is done to a bundle, it either loads and runs, or is refused with a RunError; memory stays within bounds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from l0compress.errors import InputError, RunError
from l0compress_runtime import load
from l0compress_runtime.archive import write_zip
from l0compress_runtime.tuning import example_inputs

MANIFEST = "manifest.json"
LARGEST_SIDE = 1000
WILD = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**40,
    2**63,
    1e308,
    0.5,
    "",
    "x",
    "../../etc/passwd",
    "float64",
    "scipy",
    "dense",
    "s0",
    "l0",
    [],
    [0],
    [2**40, 2**40],
    {},
    {"a": 1},
)


def members(data: bytes) -> dict[str, bytes]:
    """The files of a bundle, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(files: dict[str, bytes], manifest: dict[str, Any]) -> bytes:
    """The files as a bundle whose hashes are right: an enemy can count too."""
    known = manifest.get("hashes")
    if isinstance(known, dict):
        for name in known:
            if isinstance(name, str) and name in files:
                known[name] = hashlib.sha256(files[name]).hexdigest()
    return write_zip({MANIFEST: json.dumps(manifest).encode(), **{k: v for k, v in files.items() if k != MANIFEST}})


def flipped_bits(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut_short(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def shuffled(data: bytes, chance: random.Random) -> bytes:
    """A stretch of bytes is dropped, doubled, zeroed or moved."""
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice((1, 4, 30, 500)))
    part = data[begin:end]
    middle = chance.choice((b"", part + part, bytes(len(part)), part[::-1], chance.randbytes(len(part))))
    return data[:begin] + middle + data[end:]


def damaged_member(data: bytes, chance: random.Random) -> bytes:
    """A member is damaged, and its hash is right again."""
    files = members(data)
    manifest = json.loads(files[MANIFEST])
    name = chance.choice([name for name in files if name != MANIFEST])
    files[name] = chance.choice((flipped_bits, cut_short, shuffled))(files[name], chance)
    return rewritten(files, manifest)


def damaged_array(data: bytes, chance: random.Random) -> bytes:
    """The content of an array within a tensor is changed; everything around it is right."""
    files = members(data)
    manifest = json.loads(files[MANIFEST])
    name = chance.choice([name for name in files if name.endswith(".npz")])
    arrays = members(files[name])
    array = chance.choice(list(arrays))
    arrays[array] = chance.choice((flipped_bits, shuffled))(arrays[array], chance)
    files[name] = write_zip(arrays)
    return rewritten(files, manifest)


def swapped_members(data: bytes, chance: random.Random) -> bytes:
    files = members(data)
    manifest = json.loads(files[MANIFEST])
    one, other = chance.sample([name for name in files if name != MANIFEST], 2)
    files[one], files[other] = files[other], files[one]
    return rewritten(files, manifest)


def wild_manifest(data: bytes, chance: random.Random) -> bytes:
    """Some value of the manifest is another one; often one of the same kind from elsewhere in it."""
    files = members(data)
    manifest = json.loads(files[MANIFEST])
    for _ in range(chance.choice((1, 1, 1, 3))):
        places = list(_places(manifest))
        holder, key = chance.choice(places)
        other_holder, other_key = chance.choice(places)
        action = chance.random()
        if action < 0.4:
            holder[key] = chance.choice(WILD)
        elif action < 0.7:
            holder[key] = other_holder[other_key]
        elif action < 0.85 and isinstance(holder[key], int):
            holder[key] += chance.choice((-1, 1, 7, 1000))
        else:
            del holder[key]
        try:
            json.dumps(manifest)
        except ValueError:  # a value within itself
            return write_zip({**files, MANIFEST: b"{}"})
    return rewritten(files, manifest)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


MUTATIONS = (
    flipped_bits,
    cut_short,
    shuffled,
    damaged_member,
    damaged_array,
    swapped_members,
    wild_manifest,
    wild_manifest,
    wild_manifest,
)


def survives(data: bytes, path: Path) -> str:
    """Load a bundle and run it; what happened, where that is allowed to happen."""
    path.write_bytes(data)
    try:
        bundle = load(path, threads=1)
    except RunError as error:
        assert "None of it was run" in str(error) or "not enough memory" in str(error), error
        return "refused"
    sizes = [size for port in bundle.inputs for size in port.shape if isinstance(size, int)]
    if max(sizes, default=1) > LARGEST_SIDE or min(sizes, default=1) < 1:
        return "loaded, takes no inputs that could be made"
    try:
        bundle.run(example_inputs(bundle.inputs, 2))
    except InputError:
        return "loaded, not run"
    return "ran"


def fuzz(original: bytes, examples: int, seed: int, path: Path) -> Counter[str]:
    """How often each outcome was seen."""
    seen: Counter[str] = Counter()
    for number in range(examples):
        chance = random.Random(seed * 1_000_003 + number)
        mutation = chance.choice(MUTATIONS)
        seen[survives(mutation(original, chance), path)] += 1
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--networks", nargs="+", default=["linear", "ternary", "convolutions", "attention", "LSTM decoder"]
    )
    options = parser.parse_args()
    from bundles import NETWORKS, SPARSE

    from l0compress import export_bundle
    from l0compress.graph import capture

    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        originals = []
        for name in options.networks:
            model, call = NETWORKS[name]()
            path = export_bundle(capture(model, call.args), Path(folder, "model.l0c"), settings=SPARSE).path
            originals.append(path.read_bytes())
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        for original in originals:
            seen += fuzz(original, options.examples // len(originals), options.seed, Path(folder, "hostile.l0c"))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.perf_counter() - start
    print(f"{options.examples} hostile bundles: {dict(seen)}, {seconds:.0f} s, {grown:.0f} MiB more at most")
    return int(not seen["refused"] or grown > 512)


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
