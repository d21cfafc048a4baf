"""Every architecture that can be built offline, shrunk and compared with independent references.

    make bench-zoo                                       # needs torchvision, timm, transformers and torch-pruning
    PYTHONPATH=benchmarks python -m zoo --only 'timm/*'   # a part of it; what build/zoo.jsonl holds is not run again

One process a model (:mod:`zoo.worker`); the results are appended to ``build/zoo.jsonl`` and ``docs/zoo.md`` is written
from them (:mod:`zoo.table`). Models have random weights, since only their shape matters here.
"""

from __future__ import annotations
