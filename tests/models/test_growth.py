"""Growth: the large network computes what the small one did, and all of it learns."""

from __future__ import annotations

import pytest
import torch

import stan
import stan.models
from stan.errors import ConfigError
from stan.models import Trained, VideoDenoiser
from stan.models.growth import grown

SMALL = {"channels": [6, 8], "depths": [1, 1], "features": 3, "temporal_window": 1, "flow": "zero"}


def clip(frames: int = 3, height: int = 22, width: int = 18) -> torch.Tensor:
    return torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> VideoDenoiser:
    torch.manual_seed(0)
    model = stan.models.build("stan_tiny", **SMALL)
    for parameter in model.parameters():  # fresh weights are nearly the identity: make it a network
        torch.nn.init.normal_(parameter, std=0.1)
    model.trained = Trained("gaussian", (0.0, 60.0), 10)
    return model.eval()


@pytest.mark.parametrize(
    "larger",
    [
        {"channels": [6, 8]},
        {"channels": [9, 8]},
        {"channels": [6, 16]},
        {"channels": [16, 12], "depths": [1, 1]},
        {"depths": [3, 1]},
        {"channels": [7, 9], "depths": [2, 4]},
    ],
)
def test_it_computes_the_same(small: VideoDenoiser, larger: dict) -> None:
    before = {key: value.clone() for key, value in small.state_dict().items()}
    large = grown(small, seed=1, **larger)
    assert (large.trained, large.training) == (small.trained, False)
    assert large.settings == small.settings | larger
    for sigma in (0.0, 25.0):
        with torch.no_grad():
            assert (large(clip(), sigma) - small(clip(), sigma)).abs().max() < 1e-5
            assert (large(clip(1), sigma) - small(clip(1), sigma)).abs().max() < 1e-5
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in before.items())


def test_it_sees_more_frames(small: VideoDenoiser) -> None:
    far = grown(small, seed=1, temporal_window=small.settings["temporal_window"] + 1)
    assert far.temporal_reach == small.temporal_reach + 1
    assert all(torch.equal(value, far.state_dict()[key]) for key, value in small.state_dict().items())


def test_the_last_units_of_a_level_may_be_left_out() -> None:
    torch.manual_seed(0)
    deep = stan.models.build("stan_tiny", **SMALL | {"depths": [2, 2]}).eval()
    for parameter in deep.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    moved = grown(deep, seed=1, channels=[9, 8], depths=[3, 1])
    assert moved.settings["depths"] == [3, 1]
    with torch.no_grad():
        assert (moved(clip(), 25.0) - deep(clip(), 25.0)).abs().max() > 1e-3
        deep.clean.encoders[1][1] = torch.nn.Identity()
        assert (moved(clip(), 25.0) - deep(clip(), 25.0)).abs().max() < 1e-5


def test_the_shipped_weights_grow_into_stan_small() -> None:
    tiny = stan.load("stan_tiny")
    large = grown(tiny, seed=0, name="stan_small")
    assert (large.name, large.settings["channels"]) == ("stan_small", [64, 128, 192])
    assert large.settings["flow_settings"] == tiny.settings["flow_settings"]
    with torch.no_grad():
        assert (large(clip(3, 40, 48), 30) - tiny(clip(3, 40, 48), 30)).abs().max() < 1e-5


def test_everything_new_learns_within_two_steps(small: VideoDenoiser) -> None:
    """What begins at zero passes no gradient on; after one step it does."""
    large = grown(small, seed=1, channels=[16, 24], depths=[2, 2]).train()
    start = {name: value.detach().clone() for name, value in large.named_parameters()}
    optimizer = torch.optim.SGD(large.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        (large(clip(), 25.0) - clip()).square().mean().backward()
        optimizer.step()
    still = []
    for name, value in large.named_parameters():
        moved = value.detach() != start[name]
        rows = moved.flatten(1).any(1) if value.ndim > 1 else moved
        if not rows.float().mean() > 0.5:  # ReLU leaves a few channels without a gradient on one small clip
            still.append(name)
    assert not [name for name in still if not name.startswith("merge")]


def test_a_seed_makes_it_and_nothing_else(small: VideoDenoiser) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = grown(small, seed=3, channels=[12, 12])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    again, other = grown(small, seed=3, channels=[12, 12]), grown(small, seed=4, channels=[12, 12])
    weight = "clean.enter.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.parametrize(
    ("larger", "told"),
    [
        ({"channels": [5, 8]}, r"cannot grow to channels=\[5, 8\]: it has \[6, 8\]"),
        ({"channels": [6, 8, 8], "depths": [1, 1, 1]}, r"cannot grow to channels=\[6, 8, 8\]"),
        ({"name": "stan_small"}, r"cannot grow to channels=\[64, 128, 192\]"),
        ({"name": "unet_tiny"}, "cannot grow into 'unet_tiny', which is of another kind"),
        ({"name": "nothing"}, "'nothing' is not known"),
        ({"temporal_window": 0}, "temporal_window=0"),
    ],
)
def test_what_cannot_grow_is_one_line(small: VideoDenoiser, larger: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        grown(small, seed=0, **larger)


def test_other_networks_do_not_grow() -> None:
    model = stan.models.build("unet_tiny", flow="zero")
    with pytest.raises(ConfigError, match="'unet_tiny' cannot grow: only networks of two passes"):
        grown(model, seed=0, channels=[64, 64])
