"""How the tests of ``evaluate`` run it and look at what it did."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stan.evaluation import run as running

VARIES = ("seconds_per_frame", "memory_mib", "device")
"""What may differ between two runs of one evaluation."""


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"))


def rows(path: Path) -> list[dict[str, Any]]:
    """The sequences of a results.json, without what a clock or a memory gauge says."""
    content = json.loads((path / "results.json").read_text())
    return [{k: v for k, v in row.items() if k not in VARIES} for row in content["sequences"]]


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float]]:
    """A list that grows by every piece that is computed, not reused."""
    computed: list[tuple[str, str, float]] = []
    compute = running._Work._compute

    def counting(self: Any, task: Any) -> Any:
        computed.append((task.method.name, task.clip.name, task.sigma))
        return compute(self, task)

    monkeypatch.setattr(running._Work, "_compute", counting)
    return computed


MANY = "evaluation.sigmas=[10,30,50]"
