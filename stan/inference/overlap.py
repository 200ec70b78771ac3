"""Stages of a pipeline in threads of their own, joined by bounded channels, so that reading, computing and
writing overlap.

An exception in one stage reaches the thread that waits for it; closing a channel from either side ends the
wait at the other, so that nothing blocks for ever.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Self = TypeVar("Self", bound="_Stage[Any]")


class ClosedError(Exception):
    """The other side of a channel is gone."""


class Channel(Generic[T]):
    """A queue of at most ``room`` items between two threads."""

    def __init__(self, room: int) -> None:
        self._room = max(1, room)
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Append, waiting for room.

        Raises:
            ClosedError: the reader has gone.
        """
        with self._changed:
            while len(self._items) >= self._room and not self._closed:
                self._changed.wait()
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Take the next item, waiting for one.

        Raises:
            ClosedError: closed, and nothing is left.
        """
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                raise ClosedError
            self._changed.notify_all()
            return self._items.popleft()

    def close(self, *, drop: bool = False) -> None:
        """Take no more items; ``drop``: and forget those inside."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class _Stage(ABC, Generic[T]):
    """A thread at one end of a channel. Leaving its context ends it.

    Args:
        room: items that may wait.
        name: the thread's.
    """

    _keep = False  # whether what waits when the thread ends can still be taken

    def __init__(self, room: int, name: str) -> None:
        self._channel: Channel[T] = Channel(room)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _work(self) -> None:
        """What the thread does until it is through, or its channel closes."""

    def _run(self) -> None:
        try:
            self._work()
        except ClosedError:
            pass
        except BaseException as error:  # handed to the thread at the other end
            self._error = error
        finally:
            self._channel.close(drop=not self._keep)
            self._ended.set()

    def _wait(self) -> None:
        # An interrupted `Thread.join` takes the thread for ended (https://github.com/python/cpython/issues/90882).
        self._ended.wait()
        self._thread.join()

    def abort(self) -> None:
        """Forget what waits and end the thread."""
        self._channel.close(drop=True)
        self._wait()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Reading(_Stage[T]):
    """An iterable that runs ahead in a thread by ``room`` items at most."""

    _keep = True

    def __init__(self, items: Iterable[T], room: int, name: str = "stan-read") -> None:
        self._items = items
        super().__init__(room, name)

    def _work(self) -> None:
        for item in self._items:
            self._channel.put(item)

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                yield self._channel.get()
            except ClosedError:
                if self._error is not None:
                    raise self._error from None
                return


class Writing(_Stage[T]):
    """A thread that calls ``consume`` on what is put, in order; at most ``room`` items wait.

    Leaving its context waits until all is consumed (`close`), or after an exception forgets it (`abort`).
    """

    def __init__(self, consume: Callable[[T], Any], room: int, name: str = "stan-write") -> None:
        self._consume = consume
        super().__init__(room, name)

    def _work(self) -> None:
        while True:
            self._consume(self._channel.get())

    def put(self, item: T) -> None:
        """Hand over an item, waiting for room.

        Raises:
            Exception: that which ended the thread.
        """
        try:
            self._channel.put(item)
        except ClosedError:
            raise self._error or ClosedError from None

    def close(self) -> None:
        """Wait until all that was put is consumed, and end the thread.

        Raises:
            Exception: that which ended the thread early.
        """
        self._channel.close()
        self._wait()
        if self._error is not None:
            raise self._error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self.abort()


def uninterrupted(action: Callable[[], Any]) -> None:
    """Call ``action`` to its end; Ctrl-C does not reach it, and is forgotten. For what takes a moment."""
    writing: Writing[Callable[[], Any]] = Writing(lambda call: call(), 1, name="stan-finish")
    writing.put(action)
    while True:
        try:
            return writing.close()
        except KeyboardInterrupt:
            continue
