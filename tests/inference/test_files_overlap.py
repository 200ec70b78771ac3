"""Stages in threads: order, exceptions, early ends; nothing blocks for ever and no thread is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from stan.inference.overlap import Channel, ClosedError, Reading, Writing, uninterrupted

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(t.name.startswith("stan-") for t in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def put_many(writing: Writing[int]) -> None:
    for k in range(100):
        writing.put(k)


def test_items_come_in_order_and_run_ahead_no_further_than_asked() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for k in range(100):
            taken.append(k)
            yield k

    with Reading(numbers(), 3) as reading:
        stream = iter(reading)
        assert next(stream) == 0
        time.sleep(0.1)
        assert len(taken) <= 5  # one out, three waiting, one in hand
        assert list(stream) == list(range(1, 100))


def test_the_reader_s_exception_arrives_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("frame 3 is damaged")

    with Reading(broken(), 8) as reading:
        stream = iter(reading)
        assert [next(stream), next(stream)] == [1, 2]
        with pytest.raises(ValueError, match="frame 3 is damaged"):
            next(stream)


def test_leaving_early_ends_a_reader_that_waits_for_room() -> None:
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            k = 0
            while True:
                yield k
                k += 1
        finally:
            ended.set()

    items = endless()
    with Reading(items, 2) as reading:
        assert next(iter(reading)) == 0
    items.close()
    assert ended.wait(5)


def test_writing_is_in_order_and_complete_when_closed() -> None:
    done: list[int] = []
    writing: Writing[int] = Writing(done.append, 2)
    for k in range(50):
        writing.put(k)
    writing.close()
    assert done == list(range(50))


def test_the_writer_s_exception_reaches_whoever_puts_or_closes() -> None:
    def full(item: int) -> None:
        raise OSError(28, "no space left")

    writing: Writing[int] = Writing(full, 2)
    with pytest.raises(OSError, match="no space"):
        put_many(writing)
    with pytest.raises(OSError, match="no space"):
        writing.close()


def test_a_writer_that_failed_does_not_block_the_one_that_waits_for_room() -> None:
    gate = threading.Event()

    def slow_then_broken(item: int) -> None:
        gate.wait(5)
        raise ValueError("broken")

    writing: Writing[int] = Writing(slow_then_broken, 1)
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(ValueError, match="broken"):
        put_many(writing)
    writing.abort()


def test_abort_forgets_what_waits() -> None:
    started, gate, done = threading.Event(), threading.Event(), []

    def slow(item: int) -> None:
        started.set()
        gate.wait(5)
        done.append(item)

    writing: Writing[int] = Writing(slow, 10)
    for k in range(5):
        writing.put(k)
    started.wait(5)
    threading.Timer(0.1, gate.set).start()
    writing.abort()
    assert done == [0]


def test_a_channel_refuses_after_closing_but_gives_what_it_holds() -> None:
    channel: Channel[int] = Channel(3)
    channel.put(1)
    channel.close()
    assert channel.get() == 1
    with pytest.raises(ClosedError):
        channel.get()
    with pytest.raises(ClosedError):
        channel.put(2)


def test_ctrl_c_does_not_reach_what_must_be_finished() -> None:
    done: list[str] = []

    def finish() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        done.append("finished")

    uninterrupted(finish)
    assert done == ["finished"]
    with pytest.raises(ValueError, match="broken"):
        uninterrupted(lambda: int("broken"))
