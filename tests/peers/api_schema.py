"""Schemathesis on our OpenAPI document: nothing that it sends is answered by a 5xx, what is valid is taken.

    python -m tests.peers.api_schema [--examples N] [--schemathesis PROGRAM]

A server with a tiny model is started for it, with its routes open. Two rounds:

* all routes, bodies valid and broken in every way: `not_a_server_error`;
* routes that read a body, valid ones only: `positive_data_acceptance`. A schema cannot say everything (that
  a conversation fits the context, that a grammar is GBNF, that a token is one of this model's), so texts and
  ids come from VALUES, and properties that need more than their type says are left out; every other property
  is whatever its schema allows.

A short version without schemathesis runs with every `make test`: tests/serve/test_openapi_requests.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tests.peers.environment import peers_folder, run_logged
from tests.peers.llama_server import llama_server
from tests.peers.server_tests import WRAPPER
from tests.serve.test_openapi_requests import NEEDS_MORE, OTHER_STATUS, REFUSED, STATE
from tests.terminal.tiny import write_tiny

PACKAGE = "schemathesis==4.32.5"
SKIPPED = (*STATE, "/resume", "/api/runs/{name}/events")
"""Routes that stop the others, or never end."""
FLAGS = ("-c", "128", "-n", "4", "--metrics", "--props")
TEXT = {"type": "string", "minLength": 1, "maxLength": 8, "pattern": "^[a-z ]+$"}
IDS = {
    "type": "array",
    "minItems": 1,
    "maxItems": 8,
    "items": {"type": "integer", "minimum": 3, "maximum": 200},
}
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["user"]}, "content": TEXT},
}
VALUES: dict[str, dict[str, Any]] = {
    "prompt": TEXT, "input": TEXT, "content": TEXT, "system": TEXT, "instructions": TEXT,
    "input_prefix": TEXT, "tokens": IDS, "token_ids": IDS, "model": {"enum": ["tiny"]},
    "messages": {"type": "array", "minItems": 1, "maxItems": 1, "items": MESSAGE},
    "stop_token_ids": IDS, "max_tokens": {"enum": [1, 4]},
}  # fmt: skip
"""Properties whose values must be possible for this model, wherever they are."""
LEFT_OUT = (*NEEDS_MORE, *REFUSED, "chat_template_kwargs", "conversations", "echo", "logprobs", "stream")


def schemathesis_program(folder: Path) -> Path:
    """Its program, in an environment of its own; made if it is not there."""
    program = folder / "schema-venv" / "bin" / "schemathesis"
    if not program.exists():
        log = folder / "schema-venv.log"
        run_logged([sys.executable, "-m", "venv", str(folder / "schema-venv")], log, "Python environment")
        run_logged([str(program.parent / "python"), "-m", "pip", "install", PACKAGE], log, "schemathesis")
    return program


def narrowed(value: Any) -> Any:
    """A schema with VALUES, and without the optional properties that are left out."""
    if isinstance(value, list):
        return [narrowed(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: narrowed(inner) for key, inner in value.items()}
    if isinstance(value.get("properties"), dict):
        required = value.get("required", ())
        kept = {
            name: VALUES.get(name, inner)
            for name, inner in found["properties"].items()
            if name in required or name not in LEFT_OUT
        }
        found |= {"properties": kept, "additionalProperties": False}
    return found


def valid_only(document: dict[str, Any]) -> dict[str, Any]:
    """The document for the second round."""
    paths = {
        path: {method: operation for method, operation in methods.items() if "requestBody" in operation}
        for path, methods in document["paths"].items()
        if not path.startswith("/api/") and "{" not in path and path not in (*SKIPPED, *OTHER_STATUS)
    }
    schemas = narrowed(document["components"]["schemas"])
    schemas["NativeEmbeddingRequest"]["required"] = ["input"]  # or content
    kept = {path: methods for path, methods in paths.items() if methods}
    return document | {"paths": kept, "components": document["components"] | {"schemas": schemas}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=50, help="cases per route and round")
    parser.add_argument("--schemathesis", type=Path, help="its program (default: installed)")
    arguments = parser.parse_args()
    program = arguments.schemathesis or schemathesis_program(peers_folder())
    base = [str(program), "run", "--phases", "fuzzing", "--seed", "1", "-n", str(arguments.examples)]
    base += ["--warnings", "off", "--request-timeout", "60", "--suppress-health-check", "all", "--no-shrink"]
    base += [word for path in (*SKIPPED, *OTHER_STATUS) for word in ("--exclude-path", path)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_tiny(folder / "tiny.gguf")
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        folders = [word for flag in ("--runs", "--slot-save-path", "--data-dir") for word in (flag, scratch)]
        with llama_server(str(WRAPPER), model, *FLAGS, *folders) as server:
            with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
                document = json.load(answer)
            valid = folder / "valid.json"
            valid.write_text(json.dumps(valid_only(document)))
            rounds = (
                (f"{server.url}/openapi.json", "all", "not_a_server_error"),
                (str(valid), "positive", "not_a_server_error,positive_data_acceptance"),
            )
            codes = []
            for location, mode, checks in rounds:
                command = [*base, location, "--url", server.url, "--mode", mode, "--checks", checks]
                codes.append(subprocess.run(command).returncode)
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
