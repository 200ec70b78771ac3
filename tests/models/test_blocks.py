"""The blocks against plain PyTorch or a direct computation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from stan.inference.memory import peak_allocation
from stan.models.aggregation import StackAggregation, SumAggregation, Values
from stan.models.blocks import (
    ChannelAttention,
    ChannelNorm,
    FoldedConv3d,
    PReLU,
    StochasticDepth,
    channels_last,
)
from stan.models.window import (
    Size,
    WindowAttention,
    WindowLayer,
    WindowPart,
    merge_windows,
    relative_index,
    split_windows,
    window_mask,
    window_masks,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_channel_norm_normalises_each_pixel() -> None:
    norm = ChannelNorm(6)
    x = randn(2, 6, 3, 4) * 5 + 2
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    torch.testing.assert_close(norm(x), (x - mean) / (var + 1e-5).sqrt())


def test_channel_attention_gates_each_frame_by_its_own_mean() -> None:
    gate = ChannelAttention()
    x = randn(3, 5, 4, 4)
    weight = gate.conv.weight.flatten()
    mean = nn.functional.pad(x.mean((2, 3)), (1, 1))
    value = sum(weight[i] * mean[:, i : i + 5] for i in range(3))
    torch.testing.assert_close(gate(x), x * value.sigmoid()[..., None, None])
    torch.testing.assert_close(gate(x)[1:2], gate(x[1:2]))


def test_gradients_through_a_channel_gate() -> None:
    gate = ChannelAttention().double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gate, (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "formats", list(itertools.product([torch.contiguous_format, torch.channels_last], repeat=2))
)
def test_prelu_is_that_of_torch(
    dtype: torch.dtype, formats: tuple[torch.memory_format, torch.memory_format]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (
        torch.randn(2, 5, 7, 9, generator=generator, dtype=torch.float64).to(dtype, memory_format=f)
        for f in formats
    )
    results = []
    for module in (PReLU(), nn.PReLU()):
        module.to(dtype)
        leaf = x.clone().requires_grad_()
        result = module(leaf)
        result.backward(grad)
        results.append((result.detach(), leaf.grad, module.weight.grad))
    ours, torchs = results
    assert torch.equal(ours[0], torchs[0])
    assert torch.equal(ours[1], torchs[1])
    torch.testing.assert_close(ours[2], torchs[2], rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(PReLU().to(dtype)(x), ours[0])


def test_channels_last_is_a_format_for_values_and_gradients() -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    y = channels_last(x)
    assert torch.equal(y, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(2, 4, 5, 6)
    (arrived,) = torch.autograd.grad(y, x, grad)
    assert torch.equal(arrived, grad)
    assert arrived.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("groups", "kernel"), [(1, (1, 3, 3)), (3, (4, 3, 3)), (2, (5, 1, 1))])
def test_folded_convolution_is_the_3d_convolution(groups: int, kernel: tuple[int, int, int]) -> None:
    k, p, _ = kernel
    conv = FoldedConv3d(6, 12, kernel, padding=(0, p // 2, p // 2), groups=groups)
    x = randn(2, 6, k, 7, 8)
    torch.testing.assert_close(conv(x.flatten(1, 2)), nn.Conv3d.forward(conv, x).squeeze(2))


def test_stochastic_depth_keeps_the_mean_and_drops_whole_clips() -> None:
    drop = StochasticDepth(0.25)
    x = torch.ones(4000 * 3, 1, 1, 1)
    y = drop(x, clips=4000).reshape(4000, 3)
    assert (y == y[:, :1]).all()
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75} or torch.allclose(y.unique(), torch.tensor([0, 4 / 3]))
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x, clips=4000), x)


def test_aggregations() -> None:
    """Both against the sum they stand for: values moved by whole offsets, weighted."""
    b, hd, t, h, w, k, c = 1, 2, 3, 5, 6, 4, 3
    value = randn(b, t, hd * c, h, w)
    weights = randn(b, hd, t, h, w, k, seed=1).softmax(-1)
    frames = torch.randint(0, t, (b, hd, t, h, w, k), generator=torch.Generator().manual_seed(2))
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    there_y = torch.randint(0, h, frames.shape, generator=torch.Generator().manual_seed(3))
    there_x = torch.randint(0, w, frames.shape, generator=torch.Generator().manual_seed(4))
    offsets = torch.stack([there_x - columns[..., None], there_y - rows[..., None]], -1).float()
    stack = torch.zeros(b * t, hd, c, k, h, w)
    for i, j, y, x, n in itertools.product(range(hd), range(t), range(h), range(w), range(k)):
        at = (0, i, j, y, x, n)
        v = value[0, frames[at], i * c : (i + 1) * c, there_y[at], there_x[at]]
        stack[j, i, :, n, y, x] = weights[at] * v
    values = Values(heads=hd, value_channels=c, channels=8, matches=k, kernel=3)
    summed = SumAggregation(values)
    torch.testing.assert_close(
        summed(value, weights, offsets, frames), summed.conv(stack.sum(3).flatten(1, 2)), atol=1e-5, rtol=1e-4
    )
    learned = StackAggregation(values)
    expected = nn.Conv3d.forward(learned.conv, stack.flatten(1, 2)).squeeze(2)
    torch.testing.assert_close(learned(value, weights, offsets, frames), expected, atol=1e-5, rtol=1e-4)


def test_windows_split_and_merge() -> None:
    x = randn(2, 4, 6, 8, 3)
    windows = split_windows(x, (2, 3, 4))
    assert windows.shape == (2, 8, 24, 3)
    assert torch.equal(windows[1, 0].reshape(2, 3, 4, 3), x[1, :2, :3, :4])
    assert torch.equal(merge_windows(windows, (4, 6, 8), (2, 3, 4)), x)


def test_relative_index_names_each_displacement_once() -> None:
    index = relative_index((2, 3, 4))
    places = list(itertools.product(range(2), range(3), range(4)))
    seen: dict[tuple[int, ...], int] = {}
    for i, j in itertools.product(range(24), range(24)):
        shift = tuple(a - b for a, b in zip(places[i], places[j]))
        assert seen.setdefault(shift, int(index[i, j])) == index[i, j]
    assert sorted(seen.values()) == list(range(3 * 5 * 7))


@pytest.mark.parametrize("causal", [False, True])
def test_window_mask_against_every_pair(causal: bool) -> None:
    size, window, shift, frames = (4, 4, 6), (2, 2, 3), [1, 1, 1], 3
    mask = window_mask(size, window, shift, frames, causal, torch.device("cpu"))
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1)
    rolled = split_windows(torch.roll(places, [-s for s in shift], dims=(0, 1, 2))[None], window)[0]
    for window_places, window_mask_ in zip(rolled.tolist(), mask.tolist()):
        for query, row in zip(window_places, window_mask_):
            for key, seen in zip(window_places, row):
                near = all(abs(q - k) < side for q, k, side in zip(query, key, window))
                real = key[0] < frames or query[0] >= frames
                assert seen == (near and real and (not causal or key[0] <= query[0]))


def assert_masks_of_kinds(size: Size, window: Size, shift: list[int], frames: int, causal: bool) -> None:
    """Each window is of one kind, and its mask is the one that it has among all windows of the video."""
    grid, kinds = window_masks(size, window, shift, frames, causal, torch.device("cpu"))
    expected = window_mask(size, window, shift, frames, causal, torch.device("cpu")).unflatten(0, grid)
    times = torch.zeros(grid)
    for at, mask in kinds:
        times[at] += 1
        assert (expected[at] == (True if mask is None else mask)).all()
    assert (times == 1).all()
    assert len(kinds) <= 12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [[0, 0, 0], [1, 1, 1], [0, 1, 2]])
@pytest.mark.parametrize(
    ("size", "frames"), [((4, 4, 8), 4), ((4, 4, 8), 3), ((2, 6, 4), 1), ((6, 2, 12), 6)]
)
def test_windows_of_a_kind_have_their_masks(size: Size, frames: int, shift: list[int], causal: bool) -> None:
    window = (2, 2, 4)
    shift = [s if length > side else 0 for s, length, side in zip(shift, size, window)]
    assert_masks_of_kinds(size, window, shift, frames, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", [3, 4, 5])
def test_padding_in_the_last_two_windows(side: int, causal: bool) -> None:
    """The padding of long windows, when shifted, begins in the last window but one."""
    window, shift = (side, 2, 2), [side // 2, 1, 1]
    for frames in range(1, 4 * side):
        size = (frames + -frames % side, 4, 6)
        if size[0] == side:
            shift = [0, 1, 1]
        assert_masks_of_kinds(size, window, shift, frames, causal)
        shift = [side // 2, 1, 1]


def test_memory_of_window_attention_does_not_grow_with_masks() -> None:
    """An odd number of frames and shifted windows: at most 5 % more than a whole number of windows, not shifted."""
    torch.manual_seed(0)

    def peak(shifted: bool, frames: int) -> int:
        layer = WindowLayer(32, 4, (2, 8, 8), shifted=shifted, mlp_ratio=1, causal=False).eval()
        x = randn(1, 6, 64, 64, 32)
        with torch.no_grad():
            return peak_allocation(torch.device("cpu"), lambda: layer(x, frames))

    peak(True, 5)
    assert peak(True, 5) < 1.05 * peak(False, 6)


def test_window_attention_against_a_loop() -> None:
    attention = WindowAttention(8, heads=2, window=(1, 2, 2))
    nn.init.normal_(attention.bias, generator=torch.Generator().manual_seed(5))
    x = randn(1, 3, 4, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    for window, head in itertools.product(range(3), range(2)):
        part = slice(4 * head, 4 * head + 4)
        scores = q[0, window, :, part] @ k[0, window, :, part].T / 2
        scores = scores + attention.bias[relative_index((1, 2, 2)), head]
        out[0, window, :, part] = scores.softmax(-1) @ v[0, window, :, part]
    torch.testing.assert_close(attention(x, None), attention.projection(out))


def test_padded_frames_do_not_reach_real_ones() -> None:
    """An odd number of frames is padded to whole windows; what the padding holds must not matter."""
    layer = WindowLayer(8, 2, (2, 2, 2), shifted=True, mlp_ratio=2, causal=False).eval()
    x = randn(1, 4, 4, 4, 8)
    other = x.clone()
    other[:, 3] = 100
    assert torch.equal(layer(x, 3)[:, :3], layer(other, 3)[:, :3])


def test_causal_window_part_does_not_look_ahead() -> None:
    part = WindowPart(8, heads=2, window=(2, 2, 2), causal=True).eval()
    x = randn(5, 8, 4, 6)
    whole = part(x, clips=1)
    for t in range(1, 5):
        other = x.clone()
        other[t:] = randn(5 - t, 8, 4, 6, seed=t)
        torch.testing.assert_close(part(other, clips=1)[:t], whole[:t])


def test_window_part_mixes_frames_in_both_directions_unless_causal() -> None:
    part = WindowPart(8, heads=2, window=(2, 2, 2)).eval()
    x = randn(4, 8, 4, 4)
    other = x.clone()
    other[3] += 1
    changed = (part(other, clips=1) - part(x, clips=1)).abs().amax((1, 2, 3))
    assert (changed[1:] > 1e-6).all()
