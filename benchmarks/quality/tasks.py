"""All tasks by name."""

from __future__ import annotations

from quality.housing import HOUSING
from quality.images import LENET5, LENET300, RESNET20
from quality.problem import Task
from quality.stories import STORIES260K
from quality.text import DOCSTRINGS, SST2

TASKS: dict[str, Task] = {
    task.name: task for task in (SST2, DOCSTRINGS, RESNET20, LENET300, LENET5, HOUSING, STORIES260K)
}
