"""Fixtures of the tests of offset sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.optical_flow import raft_small


@pytest.fixture(scope="session")
def raft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of torchvision's small RAFT."""
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(raft_small(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def needed(raft_file: Path) -> Callable[[str], dict[str, Any]]:
    """The settings without which a source cannot be made, by its name."""
    return lambda name: {"weights": str(raft_file), "updates": 2} if name == "raft" else {}
