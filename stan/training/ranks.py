"""Several processes of one training: started here, watched, and ended together whatever happens to one of them."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from stan.errors import StanError, TrainingError

GRACE = 15.0
"""Seconds that the others have, once one process has failed, to save what they can and leave."""


@dataclass(frozen=True)
class Failure:
    """Why a process ended."""

    when: float  # seconds since the epoch
    line: str
    trace: str  # empty for a fault of the input


def started_from_outside() -> bool:
    """Whether a launcher (torchrun, SLURM) has started this process as one of several."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return "LOCAL_RANK" in os.environ or TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def outside_rank() -> int:
    """The number of this process among those a launcher started; 0 without one."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def run_together(job: Any, count: int, imports: list[str], folder: Path) -> Any:
    """Run ``job.run()`` in processes of this machine, one a device; gives what the first of them returned.

    When one fails, the others get `GRACE` seconds, then they are killed. Ctrl-C and SIGTERM go on to all.

    Args:
        job: can be saved by `torch.save`; `run` sees its rank in the environment, as Lightning does.
        count: processes.
        imports: the user's modules that the job needs.
        folder: receives the traceback of a process that fails.

    Raises:
        TrainingError: with the line of the process that failed first.
        KeyboardInterrupt: when they were stopped at once.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(job, buffer)  # bytes: tensors handed over as such would be shared memory
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stan.training"])
    address = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "NODE_RANK": os.environ.get("NODE_RANK", "0"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count)),
    }
    pipes: list[connection.Connection] = []
    processes: list[ForkServerProcess] = []
    with _signals_go_to(processes):
        for rank in range(count):
            ours, theirs = context.Pipe(duplex=False)
            environment = {**address, "LOCAL_RANK": str(rank)}
            arguments = (theirs, environment, imports, list(sys.path), buffer.getvalue())
            process = context.Process(target=_rank, args=arguments, daemon=False)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return _watch(processes, pipes, folder)


def _watch(processes: list[ForkServerProcess], pipes: list[connection.Connection], folder: Path) -> Any:
    """Wait for the processes; end all of them once one has failed."""
    said: dict[int, Any] = {}
    killed: set[int] = set()
    first: int | None = None  # the first that ended badly
    deadline: float | None = None
    left = set(range(len(processes)))
    while left:
        connection.wait(
            [processes[rank].sentinel for rank in left] + [pipes[r] for r in left if r not in said], 0.5
        )
        for rank in sorted(left):
            ended = processes[rank].exitcode is not None
            with contextlib.suppress(EOFError, OSError):
                if rank not in said and pipes[rank].poll():
                    said[rank] = pipes[rank].recv()
            failed = processes[rank].exitcode or isinstance(said.get(rank), Failure)
            if failed and deadline is None:
                first, deadline = rank, time.monotonic() + GRACE
            if ended:
                processes[rank].join()
                left.discard(rank)
        if deadline is not None and time.monotonic() > deadline:
            for rank in left - killed:
                killed.add(rank)
                processes[rank].kill()
    if deadline is None:
        return said[0]
    if any(process.exitcode == 130 for process in processes):
        raise KeyboardInterrupt
    dead = [rank for rank, process in enumerate(processes) if rank not in said and rank not in killed]
    if dead:
        code = processes[dead[0]].exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"gone with exit code {code}"
        raise TrainingError(
            f"process {dead[0]} of {len(processes)} of the training is {how}: out of memory, or ended from outside; "
            "the same command goes on from the last checkpoint"
        )
    failures = [(rank, failure) for rank, failure in said.items() if isinstance(failure, Failure)]
    if not failures:
        raise TrainingError(f"process {first} of {len(processes)} of the training ended without a word")
    rank, failure = min(failures, key=lambda pair: pair[1].when)
    if not failure.trace:
        raise TrainingError(failure.line)
    path = folder / f"error-rank{rank}.txt"
    path.write_text(failure.trace)
    raise TrainingError(
        f"process {rank} of {len(processes)} of the training failed: {failure.line} (traceback in {path})"
    )


def _rank(pipe: Any, environment: dict[str, str], imports: list[str], path: list[str], job: bytes) -> None:
    """The life of one process."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which sends it on
    os.environ.update(environment)
    sys.path[:] = path
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    try:
        import torch

        from stan.imports import import_modules

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        import_modules(imports, "training", quiet=True)  # the parent has told of them
        pipe.send(torch.load(io.BytesIO(job), weights_only=False).run())
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        words = " ".join(str(error).split())
        trace = "" if isinstance(error, StanError) else traceback.format_exc()
        line = words if isinstance(error, StanError) else f"{type(error).__name__}: {words}"
        pipe.send(Failure(time.time(), line[:700], trace))
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing at Python's end may wait for a process that is gone


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _signals_go_to(processes: list[Any]) -> Iterator[None]:
    def send_on(number: int, frame: Any) -> None:
        for process in processes:
            if process.exitcode is None and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    here = threading.current_thread() is threading.main_thread()  # elsewhere Python takes no handler
    numbers = (signal.SIGINT, signal.SIGTERM) if here else ()
    previous = {number: signal.signal(number, send_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
