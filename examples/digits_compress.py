"""The whole job in one call: compress the digits network to a quarter of its MACs and write it as ONNX.

python examples/digits_train.py FOLDER
python examples/digits_compress.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from digits_train import digits, model

import l0compress as l0

EPOCHS = 30


def main(folder: Path, epochs: int = EPOCHS) -> None:
    net = model()
    net.load_state_dict(torch.load(folder / "digits.pt", weights_only=True))
    parts = {name: l0.Split((images,), targets) for name, (images, targets) in digits().items()}
    result = l0.compress(
        net,
        l0.Data(train=parts["train"], val=parts["val"], test=parts["test"]),
        target={"macs": 0.25},
        epochs=epochs,
    )
    print(f"MACs       {result.dense_cost.macs:>9,} -> {result.small_cost.macs:>9,} (at most {result.limit:,})")
    print(f"parameters {result.dense_cost.params:>9,} -> {result.small_cost.params:>9,}")
    if result.test is not None:
        print(f"test accuracy {result.test.dense.metric:.4f} -> {result.test.small.metric:.4f}")
    exported = l0.export_onnx(result.small, folder / "small.onnx", reference=result.masked)
    print(f"wrote {exported.path}, equal to the masked dense model within {exported.equality.max_relative:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
