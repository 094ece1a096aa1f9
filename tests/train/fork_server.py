"""Runs `etude` commands, each in a process of its own that costs no import: what is needed is imported once,
then each command is a fork. One JSON object a line comes in, {"words": […], "log": FILE, "file_bytes": N}; out
go the process's number, and its exit code when it has ended (minus the signal that killed it).

Nothing but imports happens before a fork: no model, no engine, no thread.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

import jsonargparse  # noqa: F401  imported when settings are read
import torch
import torch._dynamo  # what torch's optimizers import when the first is made: a second

import etude.terminal.train  # noqa: F401  imported when a verb is called
from etude.cli import main


def run(command: dict[str, Any]) -> int:
    """In the child: the command, with its output in a file."""
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    if command.get("file_bytes"):  # no file may grow further, as if the disk were full
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_bytes"],) * 2)
    return main(command["words"])


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70  # a traceback stands in the log
            try:
                code = run(json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
