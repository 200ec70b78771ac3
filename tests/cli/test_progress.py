"""What the progress says is true of the work that was done, by a clock that the test sets."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from stan.cli.progress import Speed, duration, lines


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_speed_and_time_left_from_the_first_seconds_on() -> None:
    clock = Clock()
    speed = Speed(clock)
    assert speed.words(0, 300) == "0/300 frames"
    clock.now += 0.5
    assert speed.words(0.25, 300) == "0/300 frames"
    clock.now += 1.5
    assert speed.words(1, 300) == "1/300 frames  0.50 frames/s  9:58 left"
    clock.now += 8
    assert speed.words(5, None) == "5 frames  0.50 frames/s"


def test_speed_is_that_of_the_last_half_minute() -> None:
    """After a slow start the time left follows what the work takes now."""
    clock = Clock()
    speed = Speed(clock)
    done = 0.0
    for rate, seconds in ((0.1, 60), (2.0, 31)):
        for _ in range(seconds):
            clock.now += 1
            done += rate
            words = speed.words(done, 100)
    assert words == "68/100 frames  2.00 frames/s  0:16 left"


@pytest.mark.parametrize("rate", [0.05, 0.7, 40.0])
def test_a_steady_work_ends_when_it_was_said(rate: float) -> None:
    clock = Clock()
    speed = Speed(clock)
    speed.words(0, 1000)
    for _ in range(20):
        clock.now += 1
        words = speed.words((clock.now - 1000) * rate, 1000)
    minutes, seconds = re.findall(r"(\d+:)?(\d+):(\d+) left", words)[0][1:]
    hours = int((re.findall(r"(\d+):\d+:\d+ left", words) or ["0"])[0])
    left = hours * 3600 + int(minutes) * 60 + int(seconds)
    assert left == pytest.approx(1000 / rate - 20, abs=1)


def test_durations() -> None:
    assert [duration(s) for s in (0, 6.6, 405, 3723)] == ["0:00", "0:07", "6:45", "1:02:03"]


def test_lines_come_every_so_often_and_ever_more_rarely() -> None:
    clock, told = Clock(), []
    update = lines(lambda line: told.append((clock.now - 1000, line)), clock)
    for second in range(4000):
        clock.now = 1000 + second
        update(second * 0.5, 2000)
    times = [when for when, _ in told]
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 10
    assert min(gaps) >= 10
    assert max(gaps) <= 301
    assert gaps == sorted(gaps)
    assert 20 < len(told) < 40
    assert told[0][1] == "5/2000 frames  0.50 frames/s  1:06:30 left"
