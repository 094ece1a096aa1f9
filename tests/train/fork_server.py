"""Runs `etude` commands, each in a process of its own that costs no import: what is needed is imported once,
then each command is a fork. A JSON list of words comes in for each; out go the process's number, and its exit
code when it has ended (minus the signal that killed it). What the commands say goes to the error output, and
END after each.

Nothing but imports happens before a fork: no model, no engine, no thread.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import jsonargparse  # noqa: F401  imported when settings are read
import torch
import torch._dynamo  # what torch's optimizers import when the first is made: a second

import etude.terminal.train  # noqa: F401  imported when a verb is called
from etude.cli import main

END = b"\0"


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70  # with a traceback
            try:
                os.dup2(2, 1)
                code = main(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        os.write(2, END)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
