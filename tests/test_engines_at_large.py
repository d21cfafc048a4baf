"""What holds for every engine beside its results: threads, repetition, memory, and what it imports."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from sparse_layers import noise, recurrent_layer, sparse_matrix, vector

from l0compress_runtime.engines import find
from l0compress_runtime.engines.threads import run_parts, split_evenly, split_rows
from l0compress_runtime.engines.workspace import scratch
from l0compress_runtime.layers import Layer, SparseConv, SparseEmbedding, SparseLinear

pytestmark = pytest.mark.slow

ENGINES = find()
by_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def layers() -> list[tuple[Layer, list[np.ndarray]]]:
    """Layers with inputs of several sizes, large enough that a kernel uses its threads."""
    rng = np.random.default_rng(0)
    wide = SparseLinear(sparse_matrix(rng, (600, 700), 0.3), bias=vector(rng, 600), activation="gelu")
    conv = SparseConv(sparse_matrix(rng, (48, 32 * 9), 0.3), (3, 3), padding=((1, 1), (1, 1)), activation="relu")
    point = SparseConv(sparse_matrix(rng, (48, 32), 0.5), (1, 1))
    table = SparseEmbedding(sparse_matrix(rng, (50, 20), 0.3))
    return [
        (wide, [noise(rng, batch, 700) for batch in (1, 7, 70, 130)]),
        (conv, [noise(rng, batch, 32, size, size + 3) for batch, size in ((1, 30), (3, 20), (1, 7))]),
        (point, [noise(rng, batch, 32, size, size + 3) for batch, size in ((1, 60), (5, 20))]),
        (table, [rng.integers(-50, 50, size) for size in (3, 300)]),
    ]


def recurrent_layers() -> list[tuple[Layer, list[np.ndarray]]]:
    """Likewise of layers that give several arrays."""
    rng = np.random.default_rng(0)
    sizes = ((20, 1), (9, 40), (3, 7))
    return [
        (recurrent_layer(rng, cell, "bidirectional", (60, 100), 0.3), [noise(rng, *size, 60) for size in sizes])
        for cell in ("lstm", "gru")
    ]


@by_engine
def test_four_threads_at_once_get_the_same_bits_as_one(engine):
    kernels = [
        (engine.compile(layer, threads=2), x) for layer, inputs in layers() if engine.supports(layer) for x in inputs
    ]
    expected = [kernel(x) for kernel, x in kernels]

    def run(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(len(kernels) * 6) % len(kernels)
        return all(np.array_equal(kernels[at][0](kernels[at][1]), expected[at]) for at in order)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(8))) == [True] * 8


@by_engine
def test_an_output_stays_what_it_was_after_more_calls(engine):
    for layer, inputs in layers():
        if engine.supports(layer):
            kernel = engine.compile(layer, threads=2)
            first = kernel(inputs[0])
            before = first.copy()
            for x in inputs:
                kernel(x)[:] = 7
            assert np.array_equal(first, before)
            assert np.array_equal(kernel(inputs[0]), before)


@by_engine
def test_input_is_neither_changed_nor_has_to_be_writeable(engine):
    for layer, inputs in layers():
        if engine.supports(layer):
            x = inputs[0].copy()
            x.flags.writeable = False
            engine.compile(layer, threads=2)(x)
            assert np.array_equal(x, inputs[0])


@by_engine
def test_repeated_calls_hold_no_more_memory(engine):
    kernels = [
        (engine.compile(layer, threads=2), x)
        for layer, inputs in (*layers(), *recurrent_layers())
        if engine.supports(layer)
        for x in inputs
    ]

    def run_all() -> int:
        for kernel, x in kernels:
            kernel(x)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    run_all()
    tracemalloc.start()
    try:
        run_all()
        held = [run_all() for _ in range(4)]
        # What leaks grows in every round; a thread that comes to its first part late allocates its scratch once.
        assert min(after - before for before, after in itertools.pairwise(held)) < 2_500
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["scipy", "numba"])
def test_an_engine_without_torch_loads_no_torch(name):
    code = f"""
import sys
import numpy as np
from scipy import sparse
from l0compress_runtime.engines import find
from l0compress_runtime.layers import SparseLinear
assert find()
layer = SparseLinear(sparse.csr_array(np.eye(3, dtype=np.float32)))
find(["{name}"])[0].compile(layer, threads=2)(np.ones((2, 3), np.float32))
print([module for module in ("torch", "onnx", "typer") if module in sys.modules])
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "[]\n"


def test_listing_the_engines_imports_neither_numba_nor_torch():
    code = (
        "import sys; from l0compress_runtime.engines import find; find(); print({'numba', 'torch'} & set(sys.modules))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "set()\n"


def test_torch_keeps_the_number_of_threads_that_it_had():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    (layer, inputs), *_ = layers()
    find(["torch"])[0].compile(layer, threads=before + 1)(inputs[0])
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, threading, time
from l0compress_runtime.engines.threads import run_parts

def threads_used():
    seen = set()
    run_parts([lambda: (time.sleep(0.2), seen.add(threading.get_ident()))] * 4, threads=2)
    return len(seen)

assert threads_used() == 2
child = os.fork()
if child == 0:
    os._exit(threads_used())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    options = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    outcome = subprocess.run([sys.executable, "-W", "ignore", "-c", code], **options)
    assert outcome.stdout == "2\n"


FORKED = """
import os, signal, sys
import numpy as np
from scipy import sparse
from l0compress.errors import InputError
from l0compress_runtime.engines import find
from l0compress_runtime.layers import SparseLinear

(engine,) = find([sys.argv[1]])
layer = SparseLinear(sparse.csr_array(np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)))
x = np.ones((130, 700), np.float32)
expected = engine.compile(layer, threads=2)(x)
if not os.fork():
    signal.alarm(30)
    for threads in (1, 2):
        try:
            print(np.allclose(engine.compile(layer, threads=threads)(x), expected, atol=1e-3), flush=True)
        except InputError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process")
@by_engine
def test_a_forked_process_computes_or_is_told_that_it_cannot(engine):
    options = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    outcome = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, engine.name], **options)
    alone, together = outcome.stdout.splitlines()
    assert alone == "True"
    if engine.name == "torch":
        assert together.startswith("the engine 'torch' cannot use several threads in a process that was forked")
    else:
        assert together == "True"


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_every_part_runs_once(count, threads):
    done: list[int] = []
    run_parts([partial(done.append, number) for number in range(count)], threads=threads)
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_failure_in_a_part_is_raised_when_no_part_runs_any_more(failing):
    began, ended = [], []

    def part(number: int) -> None:
        began.append(number)
        time.sleep(0.01)
        if number == failing:
            ended.append(number)
            raise ValueError("this one")
        time.sleep(0.01)
        ended.append(number)

    with pytest.raises(ValueError, match="this one"):
        run_parts([partial(part, number) for number in range(4)], threads=4)
    assert sorted(began) == sorted(ended)


@pytest.mark.parametrize("parts", [1, 2, 3, 50])
def test_rows_are_split_by_their_nonzeros(parts):
    counts = np.array([0, 90, 0, 0, 10, 10, 10, 10, 10, 10, 10, 10, 10, 0])
    ranges = split_rows(np.concatenate([[0], np.cumsum(counts)]), parts)
    assert [row for begin, end in ranges for row in range(begin, end)] == list(range(14))
    assert len(ranges) == min(parts, len(ranges))
    if parts == 2:
        assert [counts[begin:end].sum() for begin, end in ranges] == [90, 90]


def test_rows_without_nonzeros_and_no_rows_at_all_are_split():
    assert split_rows(np.zeros(1, int), 3) == []
    assert split_rows(np.zeros(7, int), 2) == [(0, 3), (3, 6)]
    assert split_evenly(0, 3, 16) == []


def test_scratch_memory_is_aligned_and_apart():
    first, second = scratch(5, 100)
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0
    assert first.size == 5 and second.size == 100 and not np.shares_memory(first, second)
    (larger,) = scratch(100_000)
    assert larger.ctypes.data % 64 == 0
