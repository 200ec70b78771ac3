"""Runs the real `stan` command in processes of its own that cost no imports: forked from one that has made them.

Started as a script it reads one JSON line per run from standard input and answers with the process id; the parent
then signals, kills and waits for that process as for any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Run:
    """One run of the command.

    Args:
        pid: its process.
        folder: holds its outputs and, once it has ended, its exit code.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return (self.folder / "code").exists()

    def wait(self, seconds: float = 240) -> int:
        """Its exit code; negative for the signal that ended it. After so many seconds it is killed."""
        end = time.monotonic() + seconds
        while not self.ended:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"not ended after {seconds} s\n{self.stderr}")
            time.sleep(0.02)
        return int((self.folder / "code").read_text())

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Return as soon as this holds, which must be while the process runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert not self.ended, self.stderr
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.005)

    @property
    def stdout(self) -> str:
        """What it wrote so far."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it complained about so far."""
        return (self.folder / "stderr").read_text()


class Forks:
    """The process that has made the imports.

    Args:
        folder: receives a folder for each run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def start(self, *words: object, cwd: Path | None = None, setup: str = "") -> Run:
        """Begin ``stan WORDS`` in a session of its own; `setup` is Python that its process runs first.

        Folder and environment are those of the caller, but for what is read when a library is imported.
        """
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        order = {
            "words": list(map(str, words)),
            "folder": str(folder),
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ),
            "setup": setup,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Run(int(self.process.stdout.readline()), folder)

    def __call__(
        self,
        *words: object,
        code: int = 0,
        cwd: Path | None = None,
        setup: str = "",
        timeout: float = 240,
    ) -> Run:
        """Run ``stan WORDS`` to its end, which is to come with this exit code; no message may be a traceback."""
        run = self.start(*words, cwd=cwd, setup=setup)
        assert (ended := run.wait(timeout)) == code, f"exit code {ended}\n{run.stdout}\n{run.stderr}"
        assert "Traceback" not in run.stderr, run.stderr
        return run

    def close(self) -> None:
        """End the process."""
        # By a word: where a process that was forked meanwhile still holds the pipe, closing it would end nothing.
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.close()
        self.process.wait(30)


def _serve() -> None:
    import stan.cli
    import stan.training

    for line in sys.stdin:
        if not line.strip():
            return
        order: dict[str, Any] = json.loads(line)
        keeper = os.fork()  # waits for the run, so that this process need not
        if keeper:
            continue
        os.setsid()
        folder = Path(order["folder"])
        child = os.fork()
        if child:
            print(child, flush=True)
            _, status = os.waitpid(child, 0)
            (folder / ".code").write_text(str(os.waitstatus_to_exitcode(status)))
            os.rename(folder / ".code", folder / "code")
            os._exit(0)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.path[0] = order["cwd"]  # as `python -m stan.cli` has it
        sys.argv = ["stan", *order["words"]]
        code = 1
        try:
            exec(order["setup"], {})
            code = stan.cli.main(order["words"])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
