"""One worker process of another interpreter, and the conversation with it.

The other end is :mod:`nucleate.worker`, where the lines that are exchanged are described.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucleate import worker
from nucleate.errors import InputError, NucleateError, RecipeError, did_you_mean
from nucleate.physics.potentials import WorkerCrashError

PROGRAM = Path(worker.__file__)
STRUCTURES = ("dict", "ase", "pymatgen")
STOP_GRACE = 5.0  # seconds that a worker has to end by itself
TAIL = 4096  # bytes of standard error that are kept
MESSAGE = 500  # characters of an error's message that are kept

logger = logging.getLogger(__name__)


class RemoteError(NucleateError):
    """What a function raised in another interpreter: ``what`` is its type and message."""

    @property
    def kind(self) -> str:
        """Name of the exception's type."""
        return self.what.partition(":")[0]

    @classmethod
    def from_message(cls, error: Mapping[str, str]) -> RemoteError:
        """The error that an answer holds."""
        frames = [line.strip() for line in error["traceback"].splitlines() if "File " in line]
        text = error["message"].strip()[:MESSAGE]
        return cls(f"{error['type']}: {text}" if text else error["type"], "".join(frames[-1:]))


@dataclass(frozen=True)
class Remote:
    """A function of another interpreter.

    Attributes:
        target: ``path/to/file.py:function``, or ``module:function`` as it is imported there.
        sha256: that the file must have; any if empty.
        structures: what structures among the arguments become there: "dict" (lattice, numbers,
            frac_coords), "ase" (Atoms) or "pymatgen" (Structure).
        calculator: keyword arguments with which ``target`` makes an ASE calculator, if it does;
            calls then go to :func:`nucleate.worker.calculate_all` with that calculator.
        kwargs: keyword arguments of every call.
        decode: applied here to what a call returned.

    Raises:
        RecipeError: structures can't become that.
    """

    target: str
    sha256: str = ""
    structures: str = "dict"
    calculator: Mapping[str, Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    decode: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.structures not in STRUCTURES:
            raise RecipeError(
                f"structures can't be {self.structures!r}.",
                fix=did_you_mean(str(self.structures), STRUCTURES),
            )

    @property
    def __name__(self) -> str:
        """Of the function, for messages."""
        return self.target.rpartition(":")[2]

    @classmethod
    def of(cls, function: Remote | str | Callable[..., Any]) -> Remote:
        """A remote as it is, a target, or a function that the other interpreter can import too.

        Raises:
            InputError: the function has no importable name.
        """
        if isinstance(function, Remote):
            return function
        if isinstance(function, str):
            return cls(function)
        module = getattr(function, "__module__", None) or "builtins"
        name = getattr(function, "__qualname__", "")
        if module == "__main__" or not name or "<" in name:
            raise InputError(
                f"{function!r} can't be called in another interpreter.",
                "It is known there only by the name that it is imported by.",
                "Put it into a file and name it as 'path/to/file.py:function'.",
            )
        return cls(f"{module}:{name}")

    @property
    def load_request(self) -> dict[str, Any]:
        """What the worker is told to load."""
        return {
            "target": self.target,
            "sha256": self.sha256,
            "structures": self.structures,
            "calculator": None if self.calculator is None else dict(self.calculator),
        }


def find_interpreter(python: str | Path) -> str:
    """Absolute path of an interpreter given by path or command name; links are kept.

    Raises:
        RecipeError: it is no path.
        InputError: there is none.
    """
    if not isinstance(python, (str, Path)):
        raise RecipeError(f"python can't be {python!r}.", fix="Give the path of an interpreter.")
    found = shutil.which(Path(python).expanduser())
    if found is not None:
        return os.path.abspath(found)  # noqa: PTH100  a virtual environment is known by its link
    fix = "Give the path of a Python interpreter, such as /path/to/venv/bin/python."
    inside = Path(python).expanduser() / "bin" / "python"
    if inside.is_file():
        fix = f"Did you mean {inside}?"
    why = "" if Path(python).expanduser().exists() else "There is no such file or command."
    raise InputError(f"{python} is no Python interpreter that can be run.", why, fix)


class RemoteWorker:
    """One process, which is asked one thing at a time.

    Args:
        python: the interpreter.
        program: the file that it runs.
        threads: that numerical libraries may use there, unless ``OMP_NUM_THREADS`` says it.
        start_timeout: seconds for its start and, apart, for each load.

    Raises:
        WorkerCrashError: it can't be started or does not greet in the right protocol.
    """

    def __init__(self, python: str, program: Path, threads: int, start_timeout: float) -> None:
        self._python, self._start_timeout = python, start_timeout
        self._asked = 0
        self._loaded: dict[str, tuple[int, Any]] = {}
        self._tail = b""
        self._killed = self._buried = False
        self._lock = threading.Lock()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        try:
            self._process = subprocess.Popen(
                [python, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerCrashError(f"{python} can't be started", f"{error.strerror}") from error
        self._listener = threading.Thread(target=self._listen, daemon=True, name="worker-stderr")
        self._listener.start()
        threading.Thread(target=self._bury, daemon=True, name="worker-end").start()
        self.versions = self._greet()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._killed and self._process.poll() is None

    def call(self, remote: Remote, args: Sequence[Any], kwargs: Any, timeout: float | None) -> Any:
        """The value of a call.

        Raises:
            RemoteError: what the function raised.
            TimeoutError: it took too long, and the worker was killed.
            WorkerCrashError: the worker died or broke the protocol.
        """
        number, _ = self._load(remote)
        return self._ask({"call": number, "args": args, "kwargs": kwargs}, timeout)

    def load(self, remote: Remote) -> Any:
        """Load without calling; what the worker says about it."""
        return self._load(remote)[1]

    def stop(self) -> None:
        """End the process, gently at first."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_GRACE)
        self.kill()
        self._process.wait()
        self._stdout.close()

    def kill(self) -> None:
        """End the process and those that it started."""
        with self._lock:
            self._killed = True
            if self._buried:  # the number may by now be another process's
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _load(self, remote: Remote) -> tuple[int, Any]:
        request = remote.load_request
        key = json.dumps(request, sort_keys=True)
        if key not in self._loaded:
            number = len(self._loaded)
            told = self._ask({"load": number, **request}, self._start_timeout)
            self._loaded[key] = number, told
        return self._loaded[key]

    def _ask(self, request: Mapping[str, Any], timeout: float | None) -> Any:
        self._asked += 1
        line = json.dumps({"id": self._asked, **request}).encode("ascii") + b"\n"
        with self._limited(timeout) as late:
            try:
                self._stdin.write(line)
                self._stdin.flush()
                answer = self._stdout.readline()
            except OSError:  # its end of the pipe is closed
                answer = b""
        if late.is_set():
            raise TimeoutError(f"took longer than {timeout:g} s")
        if not answer.endswith(b"\n"):
            raise self._death("the worker process died")
        message = _parsed(answer)
        if message is None or message.get("id") != self._asked:
            self.kill()
            raise WorkerCrashError(
                "the worker broke the protocol", f"Instead of an answer it sent {answer[:80]!r}."
            )
        if "error" in message:
            raise RemoteError.from_message(message["error"])
        return message.get("value")

    def _greet(self) -> dict[str, str]:
        """Versions of Python and packages there."""
        hello = None
        with self._limited(self._start_timeout) as late:
            while hello is None:
                line = self._stdout.readline()
                if not line.endswith(b"\n"):
                    break
                hello = _parsed(line)
                if hello is None or "nucleate_worker" not in hello:
                    hello = None  # what the interpreter's own start prints
                    self._remember(line)
        if late.is_set():
            raise WorkerCrashError(
                f"{self._python} did not start a worker within {self._start_timeout:g} s",
                self._last_words(),
            )
        if hello is None:
            raise self._death(f"{self._python} can't run the worker")
        if hello["nucleate_worker"] != worker.PROTOCOL:
            self.kill()
            raise WorkerCrashError(
                f"the worker of {self._python} speaks another protocol",
                f"It speaks version {hello['nucleate_worker']}, this is {worker.PROTOCOL}.",
                "Use the worker of this version of nucleate.",
            )
        return {"python": hello["python"], **hello["packages"]}

    @contextlib.contextmanager
    def _limited(self, seconds: float | None) -> Iterator[threading.Event]:
        """Kill the worker after so many seconds; the event then is set."""
        late = threading.Event()
        if seconds is None:
            yield late
            return

        def overdue() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(seconds, overdue)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()
            timer.join()

    def _listen(self) -> None:
        while chunk := self._process.stderr.read1(TAIL):  # type: ignore[union-attr]
            self._remember(chunk)
        self._process.stderr.close()  # type: ignore[union-attr]

    def _remember(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-TAIL:]

    def _bury(self) -> None:
        """When the process has ended, end its children too: they hold the pipes open."""
        self._process.wait()
        self.kill()
        with self._lock:
            self._buried = True

    def _death(self, what: str) -> WorkerCrashError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self.kill()
        code = self._process.wait()
        self._listener.join(1.0)
        tail = self._tail.decode(errors="replace").strip()
        if tail:
            logger.warning("A worker of %s died; it last wrote:\n%s", self._python, tail)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerCrashError(f"{what} ({how})", self._last_words())

    def _last_words(self) -> str:
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return f"It last wrote: {lines[-1].strip()[:300]}" if lines else ""


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A message, or None if the line is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
