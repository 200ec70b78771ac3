"""The networks as a whole: any size, noise level, mode; gradients; nothing looks where it must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stan.models
from stan.errors import ConfigError, DataError
from stan.flow import FlowPair
from stan.models import AttentionMap, Stan, VideoDenoiser
from stan.models.base import noise_map_of, pad_space
from stan.ops.backend import why_not_native
from stan.reflection import reflect

MINI: dict[str, Any] = {
    "channels": (8, 12, 16),
    "depths": (1, 1, 2),
    "heads": (0, 0, 2),
    "key_channels": 4,
    "value_channels": 6,
    "window": 3,
    "temporal_window": 1,
    "search_matches": 8,
    "matches": 6,
    "window_size": (2, 4, 4),
    "window_heads": 2,
    "window_groups": 1,
}
"""The paper's network with every part of it, in small."""


def video(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str = "stan", *, seed: int = 0, lively: bool = False, **settings: Any) -> Stan:
    """A network of fixed weights; `lively` enlarges the last layer, so that all it computes shows."""
    torch.manual_seed(seed)
    model = stan.models.build(name, **(settings if name != "stan" else {**MINI, **settings}))
    assert isinstance(model, Stan)
    if lively:
        torch.nn.init.normal_(model.leave.weight, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", ["stan", "unet_small", "unet_tiny"])
@pytest.mark.parametrize(
    ("frames", "size"), [(1, (1, 1)), (2, (17, 31)), (3, (8, 200)), (5, (33, 16)), (7, (16, 24))]
)
def test_any_size_and_length(name: str, frames: int, size: tuple[int, int]) -> None:
    model = build(name)
    noisy = video(1, frames, 3, *size)
    with torch.no_grad():
        clean, maps = model(noisy, sigma=25, return_matches=True)
    assert clean.shape == noisy.shape
    assert clean.isfinite().all()
    for seen in maps:
        rows, columns = (-(-side // seen.scale) for side in size)
        assert seen.weights.shape[2:5] == (frames, rows, columns)
        assert seen.offsets.shape == (*seen.weights.shape, 2)
        assert seen.frames.max() < frames
        assert (seen.weights[seen.frames < 0] == 0).all()


@pytest.mark.parametrize("name", ["stan", "unet_small", "unet_tiny"])
def test_fresh_weights_are_near_the_identity(name: str) -> None:
    noisy = video(1, 3, 3, 32, 32)
    with torch.no_grad():
        change = build(name)(noisy, sigma=25) - noisy
    assert 0 < change.abs().max() < 0.1


@pytest.mark.parametrize("name", ["stan", "unet_tiny"])
@pytest.mark.parametrize(("frames", "size"), [(5, (16, 16)), (5, (9, 14)), (2, (3, 2))])
def test_padding_is_reflection(name: str, frames: int, size: tuple[int, int]) -> None:
    """What the network makes of a small video is what it makes of its reflection, cropped."""
    model = build(name, lively=True, attention="unshifted")
    noisy = video(1, frames, 3, *size)
    bottom, right = (-side % model.multiple for side in size)
    with torch.no_grad():
        expected = model(pad_space(noisy, bottom, right), sigma=25)[..., : size[0], : size[1]]
        assert torch.equal(model(noisy, sigma=25), expected)


@pytest.mark.parametrize(
    "sigma",
    [
        torch.tensor(25.0),
        torch.full((2,), 25.0),
        torch.full((2, 5), 25.0),
        torch.full((2, 5, 1, 16, 12), 25.0),
        torch.full((1, 1, 1, 1, 1), 25.0),
        25,
    ],
)
def test_sigma_broadcasts(sigma: float | Tensor) -> None:
    noisy = video(2, 5, 3, 16, 12)
    level = noise_map_of(sigma, noisy)
    assert level.shape == (2, 5, 1, 16, 12)
    torch.testing.assert_close(level, torch.full_like(level, 25 / 255))


def test_sigma_of_one_clip_or_frame_reaches_it_alone() -> None:
    level = noise_map_of(torch.tensor([10.0, 50.0]), video(2, 3, 3, 4, 4)) * 255
    assert level.mean((1, 2, 3, 4)).tolist() == pytest.approx([10, 50])
    level = noise_map_of(torch.tensor([[10.0, 20.0, 30.0]]), video(2, 3, 3, 4, 4)) * 255
    assert level[1].mean((1, 2, 3)).tolist() == pytest.approx([10, 20, 30])


def test_sigma_changes_the_result_and_blind_ignores_it() -> None:
    noisy = video(1, 3, 3, 16, 16)
    told, blind = build(lively=True), build(lively=True, blind=True)
    with torch.no_grad():
        assert not torch.allclose(told(noisy, sigma=10), told(noisy, sigma=50))
        assert torch.equal(blind(noisy), blind(noisy, sigma=50))
    assert blind.blind
    assert not told.blind


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (None, "needs sigma"),
        (-1, "sigma=-1"),
        (float("nan"), "sigma=nan"),
        (torch.zeros(3), r"sigma of shape \(3,\)"),
        (torch.zeros(1, 3, 1, 16, 17), "does not broadcast"),
    ],
)
def test_impossible_sigma(sigma: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build("unet_tiny")(video(2, 3, 3, 16, 16), sigma=sigma)


@pytest.mark.parametrize(
    "noisy",
    [video(3, 3, 16, 16), video(1, 3, 1, 16, 16), video(1, 0, 3, 16, 16), video(1, 3, 3, 16, 16).int()],
)
def test_another_layout_is_an_error(noisy: Tensor) -> None:
    with pytest.raises(DataError, match="float video"):
        build("unet_tiny")(noisy, sigma=25)


def test_flow_of_another_size_is_an_error() -> None:
    noisy = video(1, 3, 3, 16, 16)
    wrong = FlowPair(torch.zeros(1, 3, 2, 16, 12), torch.zeros(1, 3, 2, 16, 12))
    with pytest.raises(DataError, match="does not fit"):
        build("unet_tiny")(noisy, sigma=25, flow=wrong)


def test_own_source_is_used_unless_flow_is_given() -> None:
    noisy = video(1, 5, 3, 32, 32)
    model = build("unet_tiny", lively=True)
    with torch.no_grad():
        own = model(noisy, sigma=25)
        given = model(noisy, sigma=25, flow=model.source(noisy))
        far = FlowPair(torch.full((1, 5, 2, 32, 32), 9.0), torch.full((1, 5, 2, 32, 32), -9.0))
        assert torch.equal(own, given)
        assert not torch.allclose(own, model(noisy, sigma=25, flow=far))


@pytest.mark.parametrize("name", ["stan", "unet_tiny"])
@pytest.mark.parametrize("temporal_window", [1, 2])
def test_causal_networks_do_not_look_ahead(name: str, temporal_window: int) -> None:
    model = build(name, causal=True, temporal_window=temporal_window, lively=True)
    assert model.causal
    noisy = video(1, 5, 3, 16, 24)
    with torch.no_grad():
        whole = model(noisy, sigma=25)
        for t in range(1, 5):
            other = noisy.clone()
            other[:, t:] = video(1, 5 - t, 3, 16, 24, seed=t)
            torch.testing.assert_close(model(other, sigma=25)[:, :t], whole[:, :t])
            assert not torch.allclose(model(other, sigma=25)[:, t], whole[:, t])


def test_first_frames_of_a_causal_network_attend_to_what_there_is() -> None:
    model = build("unet_tiny", causal=True, window=1, search_matches=2, matches=2)
    with torch.no_grad():
        _, (seen,) = model(video(1, 2, 3, 16, 16), sigma=25, return_matches=True)
    assert (seen.frames[:, :, 0, ..., 0] == 0).all()
    assert (seen.frames[:, :, 0, ..., 1] == -1).all()
    assert not seen.weights[:, :, 0, ..., 1].any()


def test_other_networks_do_look_ahead() -> None:
    model = build("unet_tiny", lively=True)
    noisy = video(1, 5, 3, 16, 24)
    other = noisy.clone()
    other[:, 1] = video(1, 3, 16, 24, seed=1)
    with torch.no_grad():
        assert not torch.allclose(model(other, sigma=25)[:, 0], model(noisy, sigma=25)[:, 0])


@pytest.mark.parametrize("name", ["stan", "unet_small", "unet_tiny"])
def test_gradient_reaches_all_parameters(name: str) -> None:
    model = build(name, drop_path=0.0).train()
    model(video(1, 3, 3, 32, 32), sigma=25).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_gradient_reaches_the_flow() -> None:
    """An offset source that learns is trained through the search."""
    model = build("unet_tiny", lively=True)
    flow = FlowPair(*(torch.full((1, 5, 2, 32, 32), 0.3, requires_grad=True) for _ in range(2)))
    model(video(1, 5, 3, 32, 32), sigma=25, flow=flow).square().mean().backward()
    for part, unused in zip(flow, (-1, 0)):
        assert part.grad is not None
        used = [t for t in range(5) if t != unused % 5]
        assert (part.grad[0, used].abs().amax((1, 2, 3)) > 0).all()


def test_recomputation_changes_nothing() -> None:
    noisy = video(1, 3, 3, 16, 16)
    grads = []
    for recompute in (False, True):
        model = build(recompute=recompute, lively=True).train()
        torch.manual_seed(7)
        model(noisy, sigma=25).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for stored, recomputed in zip(*grads):
        torch.testing.assert_close(stored, recomputed)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "unshifted"},
        {"attention": "none"},
        {"aggregation": "sum"},
        {"aggregation_kernel": 1},
        {"mixer": "plain"},
        {"stem": 2},
        {"skip": "add"},
        {"heads": (2, 2, 2), "depths": (1, 2, 1)},
        {"select": "each", "search_matches": 2, "matches": 6},
        {"learn_scale": True},
        {"refine_window": 3},
        {"patch": 3},
        {"temporal_window": 2, "search_matches": 40, "matches": 4},
        {"flow": "zero"},
        {"flow": "farneback", "flow_settings": {"window": 9}},
        {"channels": (16,), "depths": (1,), "heads": (2,)},
    ],
)
def test_settings_make_networks_and_rebuild_them(settings: dict[str, Any]) -> None:
    model = build(lively=True, **settings)
    noisy = video(1, 3, 3, 16, 20)
    with torch.no_grad():
        assert model(noisy, sigma=25).shape == noisy.shape
    twin = stan.models.build(model.name, **model.settings)
    assert twin.settings == model.settings
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(noisy, sigma=25), model(noisy, sigma=25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chanels": (8, 8, 8)}, "did you mean 'channels'"),
        ({"channels": (8, 8)}, "depths=.*each of 2 levels"),
        ({"attention": "shiftd"}, "did you mean 'shifted'"),
        ({"mixer": "swin"}, "mixer='swin'"),
        ({"skip": "sum"}, "skip='sum'"),
        ({"aggregation": "mean"}, "aggregation='mean'"),
        ({"matches": 30}, "matches=30"),
        ({"flow": "qqq"}, "known:"),
        ({"window_heads": 5}, "window_heads=5"),
        ({"channels": (8, 0, 8)}, "channels="),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"search_matches": 500}, "search_matches=500"),
        ({"window": 0}, "window=0"),
        ({"blind": "yes"}, "blind='yes'"),
        ({"channels": 8}, "channels=8"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"patch": 2}, "patch=2"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_unshifted_looks_around_the_query_and_shifted_around_the_flow() -> None:
    noisy = video(1, 3, 3, 48, 96)
    flow = FlowPair(torch.full((1, 3, 2, 48, 96), 12.0), torch.full((1, 3, 2, 48, 96), -12.0))
    reach = {}
    for attention in ("shifted", "unshifted"):
        model = build("unet_tiny", attention=attention, temporal_window=1, search_matches=10)
        with torch.no_grad():
            _, (seen, *_) = model(noisy, sigma=25, flow=flow, return_matches=True)
        assert isinstance(seen, AttentionMap)
        torch.testing.assert_close(seen.weights.sum(-1), torch.ones(seen.weights.shape[:-1]))
        inner = (0, slice(None), 1, slice(9, -9), slice(9, -9))  # the middle frame where no window slides
        away, frames = seen.offsets[inner].abs().amin(-1), seen.frames[inner]
        reach[attention] = away[frames != 1].min()
        assert away[frames == 1].max() <= 2
    assert reach["unshifted"] <= 2
    assert reach["shifted"] >= 4  # the flow is 6 pixels of the half resolution, the window reaches 2


def test_matches_are_reused_by_later_blocks() -> None:
    """Blocks after the first of a stage attend to places that the first one found."""
    with torch.no_grad():
        _, maps = build(matches=8)(video(1, 3, 3, 32, 32), sigma=25, return_matches=True)
    assert [m.block for m in maps] == ["2.0", "2.1"]
    first, second = ({tuple(x) for x in m.offsets[0, 0, 1, 3, 3].tolist()} for m in maps)
    assert second <= first


def test_bfloat16_autocast_stays_close() -> None:
    model = build("unet_tiny", lively=True)
    noisy = video(1, 5, 3, 32, 32)
    with torch.no_grad():
        exact = model(noisy, sigma=25)
        with torch.autocast("cpu", torch.bfloat16):
            fast = model(noisy, sigma=25)
    assert (fast.float() - exact).abs().mean() < 0.02 * (exact - noisy).abs().mean() + 0.01


def test_autocast_trains() -> None:
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = (model(video(1, 3, 3, 16, 16), sigma=25) - 0.5).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["stan", "stan_tiny"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_video_of_any_float_type(name: str, dtype: torch.dtype) -> None:
    """It is brought to the type of the parameters; the noise level never passes through a shorter one."""
    model = stan.models.build(name, **(MINI if name == "stan" else {})).eval()
    noisy = video(1, 3, 3, 17, 16).to(dtype)
    with torch.no_grad():
        clean = model(noisy, sigma=25.1)
        assert clean.dtype == torch.float32
        assert torch.equal(clean, model(noisy.float(), sigma=25.1))


def test_network_of_another_float_type() -> None:
    model, noisy = build(lively=True), video(1, 3, 3, 17, 16)
    with torch.no_grad():
        exact, precise = model(noisy, sigma=25), model.double()(noisy, sigma=25)
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise.float(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_two_passes_compute_in_float32(dtype: torch.dtype, grad: bool) -> None:
    model, noisy = stan.models.build("stan_tiny").eval().to(dtype), video(1, 2, 3, 16, 16)
    with torch.set_grad_enabled(grad):
        with pytest.raises(DataError, match=f"stan_tiny computes in float32, and its parameters are {dtype}"):
            model(noisy, sigma=25)
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", dtype):
                assert model(noisy, sigma=25).isfinite().all()


def test_contract_attributes() -> None:
    paper = stan.models.build("stan")
    assert isinstance(paper, VideoDenoiser)
    assert (paper.name, paper.temporal_reach, paper.multiple, paper.trained) == ("stan", 2, 32, None)
    assert stan.models.build("unet_tiny", attention="none").temporal_reach == 0
    assert set(stan.models.names()) >= {"stan", "stan_small", "stan_tiny", "unet_small", "unet_tiny"}
    with pytest.raises(ConfigError, match="did you mean 'stan_tiny'"):
        stan.models.build("stan_tyni")


def test_reflection_in_time_and_space() -> None:
    assert reflect(range(7), 3) == [0, 1, 2, 1, 0, 1, 2]
    assert reflect(range(3), 1) == [0, 0, 0]
    x = video(1, 1, 1, 3, 2)
    padded = pad_space(x, 5, 5)
    assert torch.equal(padded, x[..., reflect(range(8), 3), :][..., reflect(range(7), 2)])


def test_paper_network_trains_on_a_small_clip() -> None:
    """The paper's settings as they are: forward and backward, with all of its 20 matches and 5 frames."""
    model = stan.models.build("stan")
    model(video(1, 5, 3, 16, 16), sigma=30).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [pytest.param("stan", marks=pytest.mark.slow), "unet_tiny"])
def test_core_is_one_graph(name: str) -> None:
    """torch.compile captures everything but the flow estimation (here without generating code)."""
    model = build(name, lively=True)
    noisy = video(1, 5, 3, 16, 16)
    inputs = (noisy, noise_map_of(25, noisy), model.source(noisy))
    torch.compiler.reset()
    core = torch.compile(model.forward_core, fullgraph=not why_not_native(), backend="aot_eager")
    with torch.no_grad():
        inside, outside = (
            core(*inputs)[0],
            model.forward_core(*inputs)[0],
        )  # with torch's convolutions, and our own
        torch.testing.assert_close(inside, outside, rtol=1e-3, atol=5e-5)
