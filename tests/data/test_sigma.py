"""Noise levels as people write them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stan.data.noise import NumpyRandom, SigmaRange, parse_sigma
from stan.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "low", "high", "levels"),
    [
        (30, 30, 30, (30,)),
        (12.5, 12.5, 12.5, (12.5,)),
        ("30", 30, 30, (30,)),
        (0, 0, 0, (0,)),
        ([10, 30, 50], 10, 50, (10, 30, 50)),
        ((50, 10), 10, 50, (50, 10)),
        ("[10, 20]", 10, 20, (10, 20)),
        (OmegaConf.create([5, 15]), 5, 15, (5, 15)),
        ("0..50", 0, 50, None),
        (" 5 .. 55.5 ", 5, 55.5, None),
        ("7..7", 7, 7, (7,)),
    ],
)
def test_accepted(value: object, low: float, high: float, levels: tuple | None) -> None:
    assert parse_sigma(value) == SigmaRange(low, high, levels)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0-50", r"write 0\.\.50"),
        ("0:50", r"write 0\.\.50"),
        ("10 to 50", r"write 10\.\.50"),
        ("50..0", r"write 0\.\.50"),
        (-1, "out of range"),
        (256, "out of range"),
        ("0..300", "out of range"),
        (float("nan"), "out of range"),
        ("nan", "out of range"),
        ("inf", "out of range"),
        ([], "empty"),
        ("", "not understood"),
        ("loud", "not understood"),
        (None, "not understood"),
        (True, "not understood"),
        ([10, None], "not understood"),
        ({"low": 0}, "not understood"),
        ("[10, x]", "not understood"),
    ],
)
def test_refused_in_one_clear_line(value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_sigma(value)
    assert "\n" not in str(caught.value)
    assert "noise.sigma" in str(caught.value)


level = st.integers(0, 2550).map(lambda i: i / 10)


@settings(deadline=None, derandomize=True)
@given(
    st.one_of(level, st.lists(level, min_size=1, max_size=5), st.tuples(level, level).map(sorted).map(tuple))
)
def test_text_form_reads_back(value: object) -> None:
    if isinstance(value, tuple):
        value = f"{value[0]}..{value[1]}"
    parsed = parse_sigma(value)
    assert parse_sigma(str(parsed)) == parsed
    assert parse_sigma(parsed) is parsed


def test_range_is_drawn_evenly() -> None:
    drawn = parse_sigma("10..50").draw(NumpyRandom(1), 20_000)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (20_000,)
    assert drawn.min() >= 10
    assert drawn.max() <= 50
    counts, _ = np.histogram(drawn.numpy(), bins=8, range=(10, 50))
    assert np.abs(counts - 2500).max() < 5 * np.sqrt(2500)


def test_list_is_drawn_with_equal_chance() -> None:
    drawn = parse_sigma([10, 30, 50]).draw(NumpyRandom(1), 9000)
    values, counts = torch.unique(drawn, return_counts=True)
    assert values.tolist() == [10, 30, 50]
    assert (counts - 3000).abs().max() < 5 * np.sqrt(3000)


def test_membership() -> None:
    assert 25 in parse_sigma("0..50")
    assert 51 not in parse_sigma("0..50")
    assert 20 in parse_sigma([10, 30])
    assert 70 not in parse_sigma(30)


def test_a_share_of_the_levels_lies_at_each_end() -> None:
    levels = parse_sigma("10..50").draw(NumpyRandom(0), 20_000, ends=1 / 8)
    for end in (10, 50):
        assert (levels == end).float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    inside = levels[(levels > 10) & (levels < 50)]
    assert inside.mean().item() == pytest.approx(30, abs=0.5)
    assert inside.std().item() == pytest.approx(40 / 12**0.5, abs=0.3)  # uniform
    assert set(parse_sigma([10, 30]).draw(NumpyRandom(0), 100, ends=1 / 8).tolist()) == {10, 30}
