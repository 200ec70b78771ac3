"""A small network in a checkpoint, and configurations that evaluate it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stan import config
from stan.config import Config
from stan.models import Trained, build
from stan.models.checkpoint import save

Make = Callable[..., Config]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks: ``known`` is told sigma and says it was trained on a, b, c at sigma 0 to 40;
    ``blind`` is not told."""
    folder = tmp_path_factory.mktemp("checkpoints")
    files = {}
    for name in ("known", "blind"):
        torch.manual_seed(3)
        model = build("unet_tiny", flow="zero", blind=name == "blind")
        if name == "known":
            model.trained = Trained("gaussian", (0, 40), 10)
        record = {"data": {"kind": "davis", "root": "elsewhere", "split": "train"}}
        files[name] = save(model, folder / f"{name}.ckpt", record if name == "known" else None)
    return files


@pytest.fixture
def make_config(davis_root: Path, tmp_path: Path) -> Make:
    """``make_config("evaluation.sigmas=[30]", ...)``: an evaluation of the small data set."""

    def make(*words: str) -> Config:
        common = [f"data.root={davis_root}", f"output={tmp_path / 'out'}", "trainer.accelerator=cpu"]
        return config.load(config.builtin_configs() / "evaluate/folder.yaml", [*common, *DAVIS, *words])

    return make


DAVIS = ["data.kind=davis", "evaluation.sigmas=[30]", "evaluation.split=trainval"]
