"""Checkpoints of real networks whose last layer is zero, so that they change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stan.models
from stan.models import Trained


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sigma.ckpt (trained for 5 to 55), blind.ckpt and causal.safetensors, each an identity."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, settings in (
        ("sigma.ckpt", {}),
        ("blind.ckpt", {"blind": True}),
        ("causal.safetensors", {"causal": True}),
    ):
        model = stan.models.build("unet_tiny", flow="zero", **settings)
        with torch.no_grad():
            model.leave.weight.zero_()
            model.leave.bias.zero_()
        model.trained = Trained("gaussian", (5.0, 55.0), 1)
        stan.models.save(model, folder / name)
    return folder
