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

import numpy as np

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

CONVOLUTION = re.compile(r"aten::_?(conv\dd|conv_transpose\dd|convolution)|stan::convolve")
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
    """A stretch of time, nanoseconds."""

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
            segments += theirs
            labels.update(more)
    nobody = Label(REST, "other", "")
    computing = [
        Segment(k.start, k.end, labels.get(k.link, nobody)._replace(operation=k.name)) for k in kernels
    ]
    computing.sort(reverse=True)  # where several streams compute, the earlier kernel counts
    segments = [Segment(marks[0], marks[-1], nobody), *segments, *computing]
    times = visible(segments, marks[0], marks[-1])
    seconds: dict[Label, float] = defaultdict(float)
    for segment, time in zip(segments, times):
        if time:
            seconds[segment.label] += time / 1e9
    busy = sum(times[len(segments) - len(computing) :])
    return Partition(dict(seconds), len(marks) - 1, busy / max(1, marks[-1] - marks[0]))


def visible(segments: Sequence[Segment], begin: int, end: int) -> list[int]:
    """For how many nanoseconds between two moments each segment is uppermost: later ones cover those before them."""
    spans = np.array([(s.start, s.end) for s in segments]).clip(begin, end)
    edges = np.unique(spans)
    owner = np.full(len(edges) - 1, -1)  # of the time between two edges
    for number, (first, last) in enumerate(np.searchsorted(edges, spans)):
        owner[first:last] = number
    covered = owner >= 0
    times = np.bincount(owner[covered], np.diff(edges)[covered], len(segments))
    return [int(time) for time in times]


def _walk(
    events: Sequence[Event], forward: dict[int, str], phase: str
) -> tuple[list[Segment], dict[int, Label], dict[int, str]]:
    """The events of one host thread, inner ones behind those around them; the label of each operation by its id;
    and the part of the operation of the forward pass behind each sequence number, of which `forward` knows those of
    another thread. The phase is that outside of all ranges."""
    segments: list[Segment] = []
    labels: dict[int, Label] = {}
    parts = dict(forward)
    around: list[Segment] = []  # the events at hand, the innermost last
    for event in sorted((e for e in events if e.name != MARK), key=lambda e: (e.start, -e.end)):
        while around and around[-1].end <= event.start:
            around.pop()
        label = _label(event, around[-1].label if around else Label(REST, phase, ""), parts)
        if label.phase == "forward" and event.sequence >= 0:
            parts[event.sequence] = label.part  # the last operation with a number has its node
        labels[event.id] = label
        around.append(Segment(event.start, event.end, label))
        segments.append(around[-1])
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
