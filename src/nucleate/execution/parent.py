"""Processes that end when the process that they work for has ended, however that happens."""

from __future__ import annotations

import os
import threading
import time


def watch_parent(parent: int) -> None:
    """End this process, from a thread, as soon as its parent is no longer the given process."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
