"""Kinds of noise against numpy and analytic truth."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stan.data.noise import NumpyRandom, TorchRandom, build, entropy
from stan.errors import ConfigError
from stan.registry import noises

KINDS = ["gaussian", "gaussian_clipped", "gaussian_rounded", "correlated", "poisson_gaussian", "poisson"]
SHAPE = (4, 3, 80, 80)
COUNT = 4 * 3 * 80 * 80
SOURCES = {"numpy": lambda *key: NumpyRandom(*key), "torch": lambda *key: TorchRandom("cpu", *key)}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest):
    return SOURCES[request.param]


def flat(value: float) -> torch.Tensor:
    return torch.full(SHAPE, value)


def ramp(*shape: int) -> torch.Tensor:
    """Values over [0, 1] that are the same bits everywhere."""
    count = int(np.prod(shape))
    return (torch.arange(count, dtype=torch.int64) * 7919 % 1000).float().reshape(shape) / torch.tensor(
        1000.0
    )


def test_names() -> None:
    assert set(noises) == {*KINDS, "footage"}  # footage has its own tests


def test_gaussian_is_clean_plus_sigma_times_pcg64() -> None:
    """The protocol's noise, spelled out in numpy."""
    clean = ramp(4, 3, 20, 30)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy(2026, "dog", 30))))
    expected = clean.numpy() + rng.standard_normal(clean.shape).astype(np.float32) * np.float32(30 / 255)
    assert np.array_equal(build("gaussian")(clean, 30, NumpyRandom(2026, "dog", 30)).numpy(), expected)


GOLDEN = {
    "gaussian": "bf35419fde28e20e",
    "gaussian_clipped": "ebad7c0d495c8964",
    "gaussian_rounded": "9dfd3f48e6add657",
    "poisson": "dfb6c3df46ca495c",
    "poisson_gaussian": "93d097550256358d",
    "correlated": "0188bdfd3ce290b8",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_evaluation_noise_is_the_same_bits_on_every_machine(kind: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        noisy = build(kind)(ramp(3, 3, 130, 140), 30, NumpyRandom(2026, "tennis", 30))
    finally:
        torch.set_num_threads(before)
    assert hashlib.sha256(noisy.numpy().tobytes()).hexdigest()[:16] == GOLDEN[kind]


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    kind=st.sampled_from(KINDS),
    pieces=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    sigma=st.sampled_from([0.0, 1.0, 25.0, 255.0]),
)
def test_a_clip_in_pieces_gets_the_same_noise(kind: str, pieces: list[int], sigma: float) -> None:
    """`quick` sees the first frames of what `davis-full` sees; long clips may be made noisy bit by bit."""
    clean = ramp(sum(pieces), 3, 9, 11)
    whole = build(kind)(clean, sigma, NumpyRandom("s", sigma))
    random = NumpyRandom("s", sigma)
    assert torch.equal(whole, torch.cat([build(kind)(part, sigma, random) for part in clean.split(pieces)]))


@pytest.mark.parametrize("sigma", [2.0, 30.0, 70.0])
@pytest.mark.parametrize("kind", ["gaussian", "poisson", "poisson_gaussian", "correlated"])
def test_at_mid_grey_sigma_is_the_standard_deviation(kind: str, sigma: float, source) -> None:
    noise = (build(kind)(flat(0.5), sigma, source(kind, sigma)) - 0.5) * 255
    # Neighbours that are correlated count as fewer samples: sum of squared correlations is 2 pi blur^2.
    samples = COUNT / (2 * np.pi if kind == "correlated" else 1)
    assert abs(noise.mean()) < 5 * sigma / np.sqrt(samples) * (2 if kind == "correlated" else 1)
    assert abs(noise.std() / sigma - 1) < 5 / np.sqrt(2 * samples)


def test_gaussian_is_gaussian_and_white(source) -> None:
    noise = build("gaussian")(flat(0.5), 30, source(1)) - 0.5
    assert stats.kstest(noise.flatten()[:20_000].numpy() / (30 / 255), "norm").pvalue > 1e-4
    for dim in range(4):  # frames, channels, rows and columns
        a, b = noise.narrow(dim, 0, noise.shape[dim] - 1), noise.narrow(dim, 1, noise.shape[dim] - 1)
        assert abs((a * b).mean() / noise.var()) < 5 / np.sqrt(a.numel())


def test_gaussian_is_neither_clipped_nor_rounded() -> None:
    noisy = build("gaussian")(flat(0.0), 30, NumpyRandom(1))
    assert noisy.min() < 0
    assert len(torch.unique(noisy)) > 0.9 * COUNT


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 1.0])
def test_clipped_gaussian_has_the_moments_of_a_censored_normal(level: float, source) -> None:
    std = 60 / 255
    noisy = build("gaussian_clipped")(flat(level), 60, source(level))
    low, high = -level / std, (1 - level) / std
    pdf, cdf = stats.norm.pdf, stats.norm.cdf
    mean = level * (cdf(high) - cdf(low)) + std * (pdf(low) - pdf(high)) + (1 - cdf(high))
    square = (
        (level**2 + std**2) * (cdf(high) - cdf(low))
        + 2 * level * std * (pdf(low) - pdf(high))
        + std**2 * (low * pdf(low) - high * pdf(high))
        + (1 - cdf(high))
    )
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert abs(noisy.mean() - mean) < 5 * std / np.sqrt(COUNT)
    assert abs(noisy.square().mean() - square) < 5 * std / np.sqrt(COUNT)


def test_rounded_gaussian_holds_what_an_8_bit_file_holds() -> None:
    clean = ramp(*SHAPE)
    clipped = build("gaussian_clipped")(clean, 40, NumpyRandom(1)).numpy()
    stored = np.rint(clipped * np.float32(255)).astype(np.uint8)
    rounded = build("gaussian_rounded")(clean, 40, NumpyRandom(1)).numpy()
    assert np.array_equal(rounded, stored.astype(np.float32) / np.float32(255))
    assert np.abs(rounded - clipped).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("level", [0.02, 0.25, 0.5, 1.0])
def test_poisson_counts_photons(level: float, source) -> None:
    """At sigma 30 white is 36.125 photons; the counts follow scipy's distribution."""
    gain = 2 * (30 / 255) ** 2
    noisy = build("poisson")(flat(level), 30, source(level))
    counts = noisy / gain
    assert (counts - counts.round()).abs().max() < 1e-4
    seen = np.bincount(counts.round().long().flatten().numpy(), minlength=80)[:80]
    expected = stats.poisson.pmf(np.arange(80), level / gain) * COUNT
    common = expected > 10
    chi2 = ((seen[common] - expected[common]) ** 2 / expected[common]).sum()
    assert stats.chi2.sf(chi2, common.sum()) > 1e-5


@pytest.mark.parametrize("shot", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 0.9])
def test_poisson_gaussian_variance_is_affine_in_the_level(shot: float, level: float, source) -> None:
    sigma = 25
    noise = build("poisson_gaussian", shot=shot)(flat(level), sigma, source(shot, level)) - level
    variance = (sigma / 255) ** 2 * (2 * shot * level + 1 - shot)
    assert abs(noise.mean()) <= 5 * np.sqrt(variance / COUNT)
    # Excess kurtosis of the Poisson part, 1 / rate, widens the spread of the sample variance.
    excess = 1 / (level / (2 * shot * (sigma / 255) ** 2)) if shot and level else 0
    assert abs(noise.var() - variance) <= 5 * variance * np.sqrt((2 + excess) / COUNT)


def test_poisson_gaussian_of_pure_shot_is_poisson() -> None:
    clean = ramp(*SHAPE)
    pure = build("poisson_gaussian", shot=1)(clean, 30, NumpyRandom(1))
    assert torch.equal(pure, build("poisson")(clean, 30, NumpyRandom(1)))


@pytest.mark.parametrize("blur", [0.5, 1.0, 2.0])
def test_correlated_noise_has_the_stated_correlation_up_to_the_border(blur: float, source) -> None:
    noise = build("correlated", blur=blur)(torch.zeros(40, 3, 64, 64), 255, source(blur))
    samples = noise.numel() / max(1, 4 * np.pi * blur**2)
    for dx, dy in [(1, 0), (0, 1), (2, 0), (1, 1), (0, 3)]:
        a = noise[..., dy:, dx:]
        b = noise[..., : 64 - dy, : 64 - dx]
        reach = int(np.ceil(4 * blur))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
        auto = np.correlate(taps, taps, "full") / (taps @ taps)
        expected = auto[2 * reach + dx] * auto[2 * reach + dy]
        if blur >= 1:
            assert abs(expected - np.exp(-(dx**2 + dy**2) / (4 * blur**2))) < 1e-3
        assert abs((a * b).mean() - expected) < 6 / np.sqrt(samples)
    border = noise[..., 0, :].var()
    assert abs(border - 1) < 6 * np.sqrt(2 * np.pi * blur**2 / (40 * 3 * 64) * 2)
    for dim in (0, 1):  # frames and channels are independent
        a, b = noise.narrow(dim, 0, noise.shape[dim] - 1), noise.narrow(dim, 1, noise.shape[dim] - 1)
        assert abs((a * b).mean()) < 6 / np.sqrt(samples)


def test_correlated_noise_is_a_gaussian_filter_of_white_noise() -> None:
    from scipy.ndimage import gaussian_filter1d

    noise = build("correlated", blur=1.5)(torch.zeros(2, 3, 30, 40), 255, NumpyRandom("c"))
    reach = 6
    white = NumpyRandom("c").normal((2, 3, 30 + 2 * reach, 40 + 2 * reach)).double().numpy()
    blurred = gaussian_filter1d(
        gaussian_filter1d(white, 1.5, axis=-1, radius=reach), 1.5, axis=-2, radius=reach
    )
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / 1.5) ** 2)
    gain = (taps / taps.sum()) @ (taps / taps.sum())
    assert np.allclose(noise.numpy(), blurred[..., reach:-reach, reach:-reach] / gain, atol=1e-5)


def test_correlated_without_blur_is_white() -> None:
    clean = ramp(2, 3, 8, 9)
    white = build("gaussian")(clean, 30, NumpyRandom(1))
    assert torch.equal(build("correlated", blur=0)(clean, 30, NumpyRandom(1)), white)


@pytest.mark.parametrize("kind", KINDS)
def test_level_zero_is_no_noise(kind: str, source) -> None:
    clean = ramp(2, 3, 16, 16)
    if kind == "gaussian_rounded":
        clean = (clean * 255).round() / torch.tensor(255.0)
    assert torch.equal(build(kind)(clean, 0, source(1)), clean)


@pytest.mark.parametrize("kind", KINDS)
def test_every_clip_of_a_batch_gets_its_own_level(kind: str, source) -> None:
    clean = torch.full((3, 5, 3, 32, 32), 0.5)
    noisy = build(kind)(clean, torch.tensor([0.0, 10.0, 40.0]), source(1))
    spread = (noisy - clean).flatten(1).std(dim=1) * 255
    assert spread[0] < 0.5
    assert abs(spread[1] - 10) < 0.6
    assert abs(spread[2] - 40) < 2
    per_frame = build(kind)(clean, torch.full((3, 5), 10.0), source(1))
    assert abs((per_frame - clean).std() * 255 - 10) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_level_map_is_the_measured_spread(kind: str) -> None:
    """Over many draws the squared error of each pixel averages to the square of the map."""
    noise = build(kind)
    clean = (0.3 + 0.4 * ramp(1, 3, 6, 7)) if "clipped" in kind or "rounded" in kind else ramp(1, 3, 6, 7)
    draws = noise(clean.expand(4000, 3, 6, 7).contiguous(), 12, NumpyRandom(kind))
    measured = ((draws - clean) * 255).square().mean(dim=(0, 1)).sqrt()
    level = noise.level_map(clean, 12)
    assert level.shape == (1, 1, 6, 7)
    assert level.dtype == torch.float32
    assert (measured / level[0, 0] - 1).abs().max() < 0.06


def test_level_map_follows_the_light() -> None:
    clean = torch.tensor([0.0, 0.5, 1.0, 2.0]).expand(1, 3, 1, 4)
    assert torch.allclose(
        build("poisson").level_map(clean, 30)[0, 0, 0], torch.tensor([0, 1, 2, 2]).sqrt() * 30
    )
    assert torch.equal(
        build("gaussian").level_map(clean[None], torch.tensor([7.0])), torch.full((1, 1, 1, 1, 4), 7.0)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_hold_the_same_noise(kind: str, dtype: torch.dtype) -> None:
    noisy = build(kind)(flat(0.5).to(dtype), 20, NumpyRandom(1))
    assert torch.equal(noisy, build(kind)(flat(0.5), 20, NumpyRandom(1)).to(dtype))


def test_clean_is_left_alone() -> None:
    clean = ramp(2, 3, 8, 8)
    before = clean.clone()
    for kind in KINDS:
        build(kind)(clean, 30, NumpyRandom(1))
    assert torch.equal(clean, before)


def test_settings_make_the_same_noise_again() -> None:
    for noise in (build("poisson_gaussian", shot=0.2), build("correlated", blur=2), *map(build, KINDS)):
        again = build(noise.kind, **noise.settings)
        clean = ramp(2, 3, 9, 9)
        assert torch.equal(noise(clean, 9, NumpyRandom(2)), again(clean, 9, NumpyRandom(2)))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("gausian", {}, "did you mean 'gaussian'"),
        ("film", {}, "known: gaussian"),
        ("gaussian", {"shot": 1}, "no setting 'shot' .*known: none"),
        ("poisson", {"shot": 0.5}, "no setting 'shot'"),
        ("correlated", {"blurr": 1}, "did you mean 'blur'"),
        ("correlated", {"blur": -1}, "0 to 10"),
        ("correlated", {"blur": "wide"}, "blur='wide' should be a number"),
        ("poisson_gaussian", {"shot": 1.5}, "0 to 1"),
        ("poisson_gaussian", {"shot": float("nan")}, "0 to 1"),
    ],
)
def test_bad_settings(kind: str, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(kind, **options)


@pytest.mark.parametrize(
    ("clean", "sigma", "error"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 30, TypeError),
        (torch.zeros(3, 4, 4), 30, ValueError),
        (torch.zeros(2, 1, 4, 4), 30, ValueError),
        (torch.zeros(2, 3, 4, 4), -1, ValueError),
        (torch.zeros(2, 3, 4, 4), float("nan"), ValueError),
        (torch.zeros(2, 3, 4, 4), torch.zeros(5), ValueError),
    ],
)
def test_bad_arguments(clean: torch.Tensor, sigma: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        build("gaussian")(clean, sigma, NumpyRandom(1))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_noise_is_the_same_bits_on_cuda(kind: str) -> None:
    clean = ramp(3, 3, 65, 66)
    on_cpu = build(kind)(clean, 30, NumpyRandom("a"))
    on_cuda = build(kind)(clean.cuda(), 30, NumpyRandom("a"))
    assert on_cuda.device.type == "cuda"
    assert torch.equal(on_cpu, on_cuda.cpu())
    noise = build(kind)(flat(0.5).cuda(), 30, TorchRandom("cuda", 1)) - 0.5
    assert abs(noise.std() * 255 / 30 - 1) < 0.05
