"""Locks of another process."""

import contextlib
import subprocess
import sys

_HOLD = (
    "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
)


@contextlib.contextmanager
def locked_by_another(path):
    """Another process holds the lock of `dcfast._files.locked` on a file inside the block, and is killed at its end."""
    command = [sys.executable, "-c", _HOLD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            yield
        finally:
            other.kill()
