"""Profiled training steps as a partition of their time: every instant belongs to one part, one phase, one operation.

What counts is what the step waits for. On a CPU that is the operation at hand, without those inside it. On a GPU it
is the kernel that runs, with the part of the operation that launched it; where no kernel runs, it is the host. So the
seconds of all parts sum to the time that passed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

PARTS = (
    "data",
    "noise",
    "flow",
    "search",
    "aggregation",
    "window attention",
    "convolutions",
    "loss",
    "optimiser",
    "rest",
)
"""What a step is made of."""

PHASES = ("forward", "backward", "other")

RANGE = "stan part: "
PHASE = "stan phase: "
MARK = "stan mark"
"""Names of the ranges that `measured` puts around parts and phases, and of the moments between steps."""

REST = "rest"
CLOSED = ("data", "flow", "window attention")
"""Parts that keep all that is inside them, whatever it is."""

BY_NAME = (
    (re.compile(r"DataLoader.*__next__"), "data"),
    (re.compile(r"stan::(search|refine)"), "search"),
    (re.compile(r"stan::(gather|scatter)"), "aggregation"),
)
"""Operations that are of a part wherever they stand, but for the closed ones."""

CONVOLUTION = re.compile(r"aten::_?(conv\dd|conv_transpose\dd|convolution)")
"""Of the part "convolutions" unless they stand inside another part."""


@dataclass(frozen=True)
class Event:
    """What the profiler has recorded once.

    Attributes:
        name: of the operation, the range or the kernel.
        start, end: nanoseconds.
        thread: of the host; of no meaning for a kernel.
        sequence: number that an operation shares with its node of the backward pass; negative: none.
        id: of an operation.
        link: of a kernel, the id of the operation that has launched it.
        device: whether it is a kernel (or a copy) on the device.
    """

    name: str
    start: int
    end: int
    thread: int = 0
    sequence: int = -1
    id: int = 0
    link: int = 0
    device: bool = False


class Label(NamedTuple):
    """What a moment is spent on."""

    part: str
    phase: str
    operation: str


class Segment(NamedTuple):
    """A stretch of time, nanoseconds; those of a list are in order and do not overlap."""

    start: int
    end: int
    label: Label


@dataclass(frozen=True)
class Partition:
    """The time of the profiled steps.

    Attributes:
        seconds: of each label; their sum is the time that passed.
        steps: how many.
        device_busy: share of the time in which the device computed; 0 without one.
    """

    seconds: dict[Label, float]
    steps: int
    device_busy: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


def recorded(profile: Any) -> list[Event]:
    """The events of a finished `torch.profiler.profile`."""
    from torch.autograd import DeviceType

    events = []
    for e in profile.profiler.kineto_results.events():
        host = e.device_type() == DeviceType.CPU
        link = e.linked_correlation_id()
        if host and link > 0:  # a call of the driver: its time is that of the operation around it
            continue
        if not host and (link <= 0 or e.name().startswith((RANGE, PHASE, MARK))):  # ranges are mirrored there
            continue
        start = e.start_ns()
        events.append(
            Event(
                name=e.name(),
                start=start,
                end=start + e.duration_ns(),
                thread=e.start_thread_id(),
                sequence=e.sequence_nr(),
                id=e.correlation_id(),
                link=link,
                device=not host,
            )
        )
    return events


def partition(events: Iterable[Event]) -> Partition:
    """Give every instant between the first and the last mark to what it was spent on.

    Raises:
        ValueError: if there are not two marks.
    """
    host: dict[int, list[Event]] = defaultdict(list)
    kernels = []
    for event in events:
        if event.device:
            kernels.append(event)
        else:
            host[event.thread].append(event)
    main = next((t for t, own in host.items() if any(e.name == MARK for e in own)), None)
    marks = sorted(e.start for e in host.get(main, []) if e.name == MARK) if main is not None else []
    if main is None or len(marks) < 2:
        raise ValueError("the profiled steps have no two marks between them")

    segments, labels, parts = _walk(host[main], {}, "other")
    for thread, own in host.items():  # on a GPU the backward pass is launched by a thread of its own
        if thread != main and any(e.name.startswith("autograd::engine") for e in own):
            theirs, more, _ = _walk(own, parts, "backward")
            segments = overlay(segments, theirs)
            labels.update(more)
    nobody = Label(REST, "other", "")
    segments = overlay([Segment(marks[0], marks[-1], nobody)], segments)
    computing = _in_order(
        Segment(k.start, k.end, labels.get(k.link, nobody)._replace(operation=k.name)) for k in kernels
    )
    segments = overlay(segments, computing)
    seconds: dict[Label, float] = defaultdict(float)
    for start, end, label in _cut(segments, marks[0], marks[-1]):
        seconds[label] += (end - start) / 1e9
    busy = sum(end - start for start, end, _ in _cut(computing, marks[0], marks[-1]))
    return Partition(dict(seconds), len(marks) - 1, busy / max(1, marks[-1] - marks[0]))


def overlay(lower: Sequence[Segment], upper: Sequence[Segment]) -> list[Segment]:
    """The upper segments, and what is left of the lower ones beside them."""
    result, covers, n = list(upper), upper, 0
    for start, end, label in lower:
        while n < len(covers) and covers[n].end <= start:
            n += 1
        at, k = start, n
        while k < len(covers) and covers[k].start < end:
            if covers[k].start > at:
                result.append(Segment(at, covers[k].start, label))
            at = max(at, covers[k].end)
            k += 1
        if at < end:
            result.append(Segment(at, end, label))
    return sorted(result)


def _walk(
    events: Sequence[Event], forward: dict[int, str], phase: str
) -> tuple[list[Segment], dict[int, Label], dict[int, str]]:
    """The time of one host thread, in stretches of the innermost event at hand; the label of each operation by its id;
    and the part of the operation of the forward pass behind each sequence number, of which `forward` knows those of
    another thread. The phase is that outside of all ranges."""
    segments: list[Segment] = []
    labels: dict[int, Label] = {}
    parts = dict(forward)
    open_: list[tuple[Event, Label]] = []  # the innermost last
    at = 0

    def spend(until: int) -> None:
        nonlocal at
        if open_ and until > at:
            segments.append(Segment(at, until, open_[-1][1]))
        at = max(at, until)

    for event in sorted((e for e in events if e.name != MARK), key=lambda e: (e.start, -e.end)):
        while open_ and open_[-1][0].end <= event.start:
            spend(open_[-1][0].end)
            open_.pop()
        spend(event.start)
        around = open_[-1][1] if open_ else Label(REST, phase, "")
        label = _label(event, around, parts)
        if label.phase == "forward" and event.sequence >= 0:
            parts[event.sequence] = label.part  # the last operation with a number has its node
        labels[event.id] = label
        open_.append((event, label))
    while open_:
        spend(open_[-1][0].end)
        open_.pop()
    return segments, labels, parts


def _label(event: Event, around: Label, parts: dict[int, str]) -> Label:
    name = event.name
    if name.startswith(PHASE):
        return Label(REST, name.removeprefix(PHASE), "")
    if around.part in CLOSED:
        return around._replace(operation=name)
    if name.startswith(RANGE):
        return around._replace(part=name.removeprefix(RANGE), operation="")
    if name.startswith("autograd::engine"):
        return Label(parts.get(event.sequence, REST), "backward", name)
    part = next((part for pattern, part in BY_NAME if pattern.search(name)), around.part)
    if part == REST and CONVOLUTION.match(name):
        part = "convolutions"
    return Label(part, around.phase, name)


def _in_order(segments: Iterable[Segment]) -> list[Segment]:
    """Kernels of several streams one after the other: where two run, the earlier one counts."""
    result: list[Segment] = []
    at = 0
    for start, end, label in sorted(segments):
        if end > max(at, start):
            result.append(Segment(max(at, start), end, label))
            at = end
    return result


def _cut(segments: Iterable[Segment], begin: int, end: int) -> Iterable[Segment]:
    """What lies between two moments."""
    for start, stop, label in segments:
        if min(stop, end) > max(start, begin):
            yield Segment(max(start, begin), min(stop, end), label)
