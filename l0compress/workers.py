"""Workers of a data loader that a signal ended, which PyTorch reports wherever the program then is. Needs no torch."""

from __future__ import annotations

import signal
import sys
import threading


def is_lost_worker(error: Exception) -> bool:
    """Return whether PyTorch reports with an error that a worker of a data loader ended by itself.

    >>> is_lost_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. "))
    True
    """
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def let_workers_go() -> None:
    """Do not raise for workers that end from now on, since the program ends as well.

    A loader that still needs one misses it within five seconds all the same.
    """
    if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
