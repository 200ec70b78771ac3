"""What a network is given when pairs are trained on: the recorded frames as they are, and the level that was set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stan.config import Config
from stan.data import degradation
from stan.data.noise import build as build_noise
from stan.data.noise import parse_sigma
from stan.models import build
from stan.training.conditions import Condition
from stan.training.module import DenoisingModule

BATCH = torch.randint(256, (8, 2, 6, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def given(
    monkeypatch: pytest.MonkeyPatch, *, blind: bool, replay: tuple[Condition, ...] = ()
) -> tuple[Any, Any]:
    """The frames and the level that the network gets of `BATCH`."""
    config = Config()
    config.data.kind, config.noise.sigma, config.ema.decay = "pairs", 17, 0.0
    network = build("unet_tiny", flow="zero", blind=blind)
    module = DenoisingModule(network, config, replay)
    module.trainer = SimpleNamespace(global_step=0, world_size=1, global_rank=0)  # type: ignore[assignment]
    got: dict[str, Any] = {}

    def estimates(noisy: torch.Tensor, sigma: Any) -> list[torch.Tensor]:
        got.update(noisy=noisy, sigma=sigma)
        return [noisy]

    monkeypatch.setattr(network, "estimates", estimates)
    module.training_step(BATCH, 0)
    error = (BATCH[:, :, 3:].double() - BATCH[:, :, :3].double()) / 255
    expected = (
        -10 * error.square().mean((1, 2, 3, 4)).log10().mean()
    )  # of the output, here the input, to the clean
    if not replay:
        assert float(module.seen["psnr"]) == pytest.approx(float(expected), abs=1e-4)
    return got["noisy"], got["sigma"]


def test_no_noise_is_added_and_the_level_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, sigma = given(monkeypatch, blind=False)
    assert torch.equal(noisy, BATCH[:, :, 3:].float() / 255)
    assert sigma.tolist() == [17.0] * 8


def test_a_blind_network_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, sigma = given(monkeypatch, blind=True)
    assert torch.equal(noisy, BATCH[:, :, 3:].float() / 255)
    assert sigma is None


def test_replay_gives_some_of_the_clean_clips_the_earlier_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = (Condition(0.5, degradation.build("denoise"), build_noise("gaussian"), parse_sigma(2)),)
    noisy, sigma = given(monkeypatch, blind=False, replay=replay)
    assert set(sigma.tolist()) == {2.0, 17.0}
    for clip, level, pair in zip(noisy, sigma.tolist(), BATCH):
        if level == 17:
            assert torch.equal(clip, pair[:, 3:].float() / 255)
        else:
            assert float((clip - pair[:, :3].float() / 255).std()) * 255 == pytest.approx(2, rel=0.2)
