"""What the workers of test_cluster.py are told to do; light to import."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path


def square(items: list[int]) -> list[int | Exception]:
    """Square, except that 13 kills its process, 17 hangs and 19 is refused."""
    out: list[int | Exception] = []
    for item in items:
        if item == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 17:
            time.sleep(3600)
        out.append(ValueError("no 19") if item == 19 else item * item)
    return out


def square_and_sign(folder: Path, item: int) -> int:
    """Square, leaving a file with the id of the worker; 3 waits until it is told to go on."""
    sign = folder / f"{item}-{uuid.uuid4().hex}"
    sign.with_suffix(".part").write_text(str(os.getppid()))
    sign.with_suffix(".part").rename(sign.with_suffix(".pid"))
    while item == 3 and not (folder / "go").exists():
        time.sleep(0.05)
    return item * item
