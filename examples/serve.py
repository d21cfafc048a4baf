"""Serve a sparse bundle over HTTP with the runtime alone: neither torch nor l0compress needs to be installed.

    pip install dist/l0compress_runtime-*.whl fastapi uvicorn    # the wheel is made by `make wheels`
    L0COMPRESS_BUNDLE=model.l0c uvicorn --app-dir examples --factory serve:app

    curl localhost:8000/health
    curl localhost:8000/predict -H 'content-type: application/json' -d '{"inputs": {"input": [[0.1, 0.2, ...]]}}'

`GET /health` describes the model's inputs and outputs. `POST /predict` answers with `{"outputs": {name: values}}`, or
with status 422 and the reason. Requests run concurrently, each on one thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from l0compress_runtime import InputError, load
from l0compress_runtime.errors import NOTHING_COMPUTED
from l0compress_runtime.manifest import Port


class Samples(BaseModel):
    """Nested lists for each input, in the shape that the model takes."""

    inputs: dict[str, Any]


class Predictions(BaseModel):
    """Nested lists for each output."""

    outputs: dict[str, Any]


class Health(BaseModel):
    """Reports that the model is loaded, and the dtype and shape of its inputs and outputs."""

    status: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def service(bundle: Path, *, threads: int = 1) -> FastAPI:
    """Return the application for one bundle, which is loaded before the first request can arrive.

    Raises:
        RunError: the path is not a bundle, or the bundle is damaged.
    """
    model = load(bundle, threads=threads)
    ports = {port.name: port for port in model.inputs}
    application = FastAPI(title="A compressed model")

    @application.get("/health")
    def health() -> Health:
        return Health(
            status="ok",
            inputs={port.name: port.described() for port in model.inputs},
            outputs={port.name: port.described() for port in model.outputs},
        )

    # Not async: FastAPI then runs it on its own thread, and a bundle may run on several at once.
    @application.post("/predict")
    def predict(samples: Samples) -> Predictions:
        known = {name: array_of(values, ports[name]) for name, values in samples.inputs.items() if name in ports}
        outputs = model.run({**samples.inputs, **known})
        return Predictions(outputs={name: values_of(name, array) for name, array in outputs.items()})

    @application.exception_handler(InputError)
    def refused(_request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    return application


def array_of(values: Any, port: Port) -> np.ndarray:
    """Convert nested lists to an array of the input's dtype; the model checks its shape.

    Raises:
        InputError: they are ragged, not numbers, not integers where integers are required, or too large.
    """
    try:
        if not np.can_cast(np.asarray(values).dtype, port.dtype, "same_kind"):
            raise _refused(port, f"has values that are not {port.dtype}", fix=f"Send {port.dtype} values.")
        with np.errstate(over="ignore"):
            array = np.asarray(values, dtype=port.dtype)
    except (ValueError, OverflowError) as error:
        raise _refused(
            port, f"is not an array of {port.dtype} ({error})", fix="Send nested lists whose rows are equally long."
        ) from error
    if not np.isfinite(array).all():
        raise _refused(port, f"has values that are not finite in {port.dtype}", fix="Send smaller ones.")
    return array


def _refused(port: Port, what: str, *, fix: str) -> InputError:
    return InputError(f"input {port.name!r} {what}.", fix=fix, assurance=NOTHING_COMPUTED)


def values_of(name: str, array: np.ndarray) -> Any:
    """Convert an output to nested lists.

    Raises:
        InputError: it is infinite or NaN, which JSON cannot express.
    """
    if not np.isfinite(array).all():
        raise InputError(
            f"output {name!r} is not finite for these inputs.",
            fix="Send inputs of the size that the model was trained on.",
            assurance="Nothing was returned.",
        )
    return array.tolist()


def app() -> FastAPI:
    """Return the application for the bundle named by the environment variable L0COMPRESS_BUNDLE."""
    return service(Path(os.environ["L0COMPRESS_BUNDLE"]))
