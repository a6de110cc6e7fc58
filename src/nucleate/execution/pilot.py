"""What a worker of a batch job does: tasks, one after another, in a process that may be lost.

The worker itself belongs to Parsl and sees nothing of a task but bytes. The process that it keeps
for them is killed where a task takes too long, and replaced where one kills it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nucleate.execution.local import start_worker
from nucleate.execution.meter import Timed
from nucleate.physics.potentials import WorkerCrashError

if TYPE_CHECKING:
    from nucleate.execution.local import Spec

START_TIMEOUT = 600.0  # seconds to start, import and read weights


class _Process:
    """The process of a worker in which tasks run; after one that died there is another."""

    def __init__(self, potential: Spec | None) -> None:
        self._potential = potential
        self._process: Any = None
        self._line: Any = None

    def run(self, task: bytes, timeout: float | None) -> bytes:
        """The answer to a task; see :func:`run_task`."""
        try:
            if self._process is None:
                self._start()
                if failed := self._receive(START_TIMEOUT):
                    self._end()
                    return failed
            self._line.send_bytes(task)
            return self._receive(START_TIMEOUT) or self._receive(timeout)
        except TimeoutError as error:
            self._end(grace=0.0)
            return _packed(False, error)
        except (EOFError, ConnectionError):
            what = f"the worker process died (exit code {self._end()})"
            return _packed(False, WorkerCrashError(what))

    def _receive(self, timeout: float | None) -> bytes:
        if not self._line.poll(timeout):
            raise TimeoutError(f"took longer than {timeout:g} s")
        message: bytes = self._line.recv_bytes()
        return message

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, its_end = context.Pipe()
        arguments = (its_end, os.getpid(), self._potential)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        its_end.close()

    def _end(self, grace: float = 1.0) -> int:
        """Kill it with what it started, after seconds to end by itself; its exit code."""
        self._process.join(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.join()
        self._line.close()
        code: int = self._process.exitcode
        self._process = None
        return code


def _serve(line: Any, parent: int, potential: Spec | None) -> None:
    """What that process does: say that it is ready, that a task is read, and its answer.

    An empty message says the first two; a failure to get so far is an answer in its place.
    """
    os.setpgrp()
    try:
        start_worker(parent, potential)
    except Exception as error:  # a potential may raise anything
        line.send_bytes(_packed(False, error))
        return
    line.send_bytes(b"")
    with contextlib.suppress(EOFError):
        while True:
            task = line.recv_bytes()
            try:
                function, args = pickle.loads(task)  # noqa: S301  from the run
                line.send_bytes(b"")
                answer = _packed(True, function(*args))
            except (Exception, SystemExit) as error:  # anybody's code
                answer = _packed(False, error)
            line.send_bytes(answer)


def _packed(done: bool, value: Any) -> bytes:
    try:
        return pickle.dumps((done, value))
    except Exception as error:  # what can't be sent, be it a result or an exception
        value = value.result if isinstance(value, Timed) else value
        what = f"{type(value).__name__} can't be sent: {error}" if done else repr(value)
        return pickle.dumps((False, RuntimeError(what)))


@lru_cache(maxsize=1)
def _process(potential: str) -> _Process:
    return _Process(json.loads(potential))


def run_task(potential: str, task: bytes, timeout: float | None) -> bytes:
    """What a worker of a batch job does.

    Args:
        potential: what its process builds when it starts, as JSON.
        task: a pickled function and its arguments.
        timeout: seconds that it may run; starting the process and importing what the task needs
            are no part of them.

    Returns:
        Pickled: whether it was done, and its result, or else what it raised, TimeoutError or
        WorkerCrashError.
    """
    return _process(potential).run(task, timeout)
