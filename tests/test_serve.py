"""The example of a service: the runtime behind HTTP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import SPARSE, mlp, mlp_bundle, randomised
from torch import nn

from l0compress.errors import RunError
from l0compress.export.bundle import export_bundle
from l0compress.graph import capture

pytest.importorskip("fastapi", reason="The service needs fastapi: make install.")
testclient = pytest.importorskip("fastapi.testclient", reason="Requests of the tests need httpx2: make install.")
EXAMPLES = Path(__file__).parents[1] / "examples"

SERVED = """
import sys
import serve
from fastapi.testclient import TestClient
print(TestClient(serve.app()).get("/health").json()["status"], {"torch", "l0compress"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlp_bundle(tmp_path_factory.mktemp("served") / "model.l0c").path


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch):
    """Clients of the service for a bundle."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import serve

    def client_of(bundle: Path):
        monkeypatch.setenv("L0COMPRESS_BUNDLE", str(bundle))
        return testclient.TestClient(serve.app())

    return client_of


@pytest.fixture
def client(client_of, bundle: Path):
    return client_of(bundle)


def test_its_health_says_what_the_model_takes_and_returns(client) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "inputs": {"input": "float32 (batch, 48)"},
        "outputs": {"output_0": "float32 (batch, 10)"},
    }


@pytest.mark.parametrize("batch_size", [1, 7])
def test_it_answers_with_what_the_dense_model_computes(client, batch_size: int) -> None:
    x = np.random.default_rng(0).standard_normal((batch_size, 48)).astype(np.float32)
    answer = client.post("/predict", json={"inputs": {"input": x.tolist()}})
    assert answer.status_code == 200
    with torch.no_grad():
        expected = mlp().double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(answer.json()["outputs"]["output_0"], expected, atol=1e-5)


def test_whole_numbers_are_taken_where_the_model_takes_numbers(client) -> None:
    answers = [client.post("/predict", json={"inputs": {"input": [[one] * 48]}}).json() for one in (1, 1.0)]
    assert answers[0] == answers[1]
    assert len(answers[0]["outputs"]["output_0"][0]) == 10


@pytest.mark.parametrize(
    "inputs, said",
    [
        (
            {"input": [[0.0] * 47]},
            "input 'input' is float32 (1, 47), but the model takes float32 (batch, 48). Nothing was computed. Pass an "
            "array of that dtype and shape.",
        ),
        (
            {"x": [[0.0] * 48]},
            "the model takes the inputs input; missing input, unexpected x. Nothing was computed.",
        ),
        (
            {"input": [["a"] * 48]},
            "input 'input' has values that are not float32. Nothing was computed. Send float32 values.",
        ),
        ({"input": None}, "input 'input' has values that are not float32. Nothing was computed. Send float32 values."),
        (
            {"input": [[1e39] * 48]},
            "input 'input' has values that are not finite in float32. Nothing was computed. Send smaller ones.",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_the_reason(client, inputs: dict, said: str) -> None:
    answer = client.post("/predict", json={"inputs": inputs})
    assert (answer.status_code, answer.json()) == (422, {"detail": said})


def test_rows_of_different_lengths_are_refused(client) -> None:
    answer = client.post("/predict", json={"inputs": {"input": [[0.0] * 48, [0.0]]}})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("input 'input' is not an array of float32 (")


@pytest.mark.parametrize(
    "body, status", [(b"", 422), (b"[]", 422), (b"{}", 422), (b'{"inputs": 3}', 422), (b"\xff", 400)]
)
def test_a_body_that_is_not_of_the_form_is_refused(client, body: bytes, status: int) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status


def test_an_output_that_json_cannot_say_is_refused(client) -> None:
    answer = client.post("/predict", json={"inputs": {"input": [[3e38] * 48]}})
    assert answer.status_code == 422
    said = (
        "output 'output_0' is not finite for these inputs. Nothing was returned. Send inputs of the size that the "
        "model was trained on."
    )
    assert answer.json() == {"detail": said}


class TestWholeNumbers:
    """A model that reads rows of a table: what is not whole must not be rounded to another row."""

    @pytest.fixture
    def client(self, client_of, tmp_path: Path):
        torch.manual_seed(0)
        table = randomised(nn.Sequential(nn.Embedding(20, 24), nn.Linear(24, 4)))
        export_bundle(capture(table, (torch.zeros(2, 3, dtype=torch.int64),)), tmp_path / "table.l0c", settings=SPARSE)
        return client_of(tmp_path / "table.l0c")

    def test_they_choose_rows(self, client) -> None:
        answer = client.post("/predict", json={"inputs": {"input": [[3, 0, 3]]}}).json()["outputs"]["output_0"][0]
        assert answer[0] == answer[2] != answer[1]

    @pytest.mark.parametrize("row", [0.5, "0"])
    def test_others_are_refused(self, client, row: float | str) -> None:
        answer = client.post("/predict", json={"inputs": {"input": [[0, 1, row]]}})
        said = "input 'input' has values that are not int64. Nothing was computed. Send int64 values."
        assert (answer.status_code, answer.json()) == (422, {"detail": said})

    def test_a_row_that_there_is_not_is_refused(self, client) -> None:
        assert client.post("/predict", json={"inputs": {"input": [[0, 1, 20]]}}).status_code == 422


def test_it_does_not_start_without_a_bundle(client_of, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none\.l0c': there is no such file or folder\."):
        client_of(tmp_path / "none.l0c")


def test_it_imports_neither_torch_nor_the_rest_of_l0compress(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L0COMPRESS_BUNDLE", str(bundle))
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, check=False, cwd=EXAMPLES)
    assert done.stdout == "ok set()\n", done.stderr
