"""A process that looks after copies of a store and is killed before its n-th change of the disk, for every n.

Run as ``python killed_process.py STORE FOLDER COMMAND OPTIONS...``. For n = 1, 2, … STORE is copied to FOLDER/<n>.zarr, and a
child runs ``diffssl-store COMMAND FOLDER/<n>.zarr OPTIONS`` and kills itself; the first that comes to its end is the last.
The children are forked before anything has threads: a process that imports everything anew takes a second each.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffssl.store import hdf5_import  # noqa: F401  before the fork
from diffssl.store.cli import group

CHANGES = ("link", "unlink", "rmdir", "replace", "rename")


def kill_before(number: int) -> None:
    """Let this process kill itself when it is about to change the disk for the ``number``-th time."""
    calls = itertools.count(1)
    lock = threading.Lock()

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with lock:  # so that no other thread changes anything meanwhile
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    setattr(os, "fsync", lambda _: None)  # noqa: B010  only a loss of power could tell


def child(number: int, path: Path, command: str, options: list[str]) -> None:
    """Run the command and leave; never returns."""
    code = 1
    try:
        kill_before(number)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        arguments = [options[0], str(path), *options[1:]] if command == "import" else [str(path), *options]
        group([command, *arguments], standalone_mode=False)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def main(store: Path, folder: Path, command: str, *options: str) -> None:
    """All n; the exit code is that of the child that was not killed."""
    for number in itertools.count(1):
        path = folder / f"{number}.zarr"
        if store.is_dir():
            shutil.copytree(store, path)
        process = os.fork()
        if process == 0:
            child(number, path, command, list(options))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != -signal.SIGKILL:
            sys.exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
