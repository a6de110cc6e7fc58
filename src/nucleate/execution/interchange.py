"""Parsl's interchange, the process between a run and the workers of its jobs.

``python -m nucleate.execution.interchange PARENT`` ends with its parent, which Parsl's own script
does not; the workers then miss it, end too, and so do their jobs.
"""

from __future__ import annotations

import runpy
import signal
import sys

from nucleate.execution.parent import watch_parent


def main() -> None:
    """Serve until the parent ends or says so; an interrupt from the terminal is the parent's."""
    watch_parent(int(sys.argv.pop()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")


if __name__ == "__main__":
    main()
