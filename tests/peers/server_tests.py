"""llama.cpp's own tests of its server, run against it and against ours: what passes, and how answers differ.

    python -m tests.peers.server_tests --out FOLDER [FILE …]

Both servers get one small model (make_server_model.py): llama-server as it is, ours behind a program of that
name (llama_server_wrapper). The tests are those of llama.cpp's sources; in a copy of them only the way to a
model is changed: presets name a file instead of a download (APPENDED). Tests whose model is of a kind that
cannot be made here, vision say, fail on both and are counted apart.

Beside passing and failing, the requests of each test are recorded with the shape of their answers, keys and
types, and the shapes are compared: that also sees tests that fail on both.

FOLDER gets real.json and ours.json (outcomes and shapes), table.json and table.md. llama.cpp is built as for
the other peers (environment.py), unless --llama-bin and --llama-sources say where it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.peers.environment import llama_cpp, peers_folder, peers_python, run_logged
from tests.peers.inputs import llama_cpp_version
from tests.peers.llama_server import free_port
from tests.peers.server_table import Outcome, read_outcomes, rows_of, written_table

HERE = Path(__file__).parent
WRAPPER = HERE / "llama_server_wrapper" / "llama-server"
TESTS = Path("tools") / "server" / "tests"
FILES = (
    "tokenize", "basic", "completion", "chat_completion", "security", "template", "ctx_shift", "slot_save",
    "metrics", "ignore_eos", "embedding", "compat_oai_responses", "compat_anthropic", "tool_call", "lora",
    "sleep",
)  # fmt: skip
REQUIREMENTS = (
    "aiohttp~=3.9", "filelock~=3.16", "numpy~=2.2", "openai~=2.14", "prometheus-client~=0.20", "pytest~=8.3",
    "pytest-timeout~=2.4", "pytest-xdist~=3.6", "requests~=2.32", "wget~=3.2",
)  # fmt: skip
"""llama.cpp's requirements, and a limit of time."""
TIMEOUT_S = 600

APPENDED = """

# ── appended by tests/peers/server_tests.py: where the models are, and what was answered ──


def _small(make):
    def preset():
        server = make()
        server.offline = False
        server.model_hf_repo = server.model_hf_file = None
        server.model_file = os.environ["SERVER_TESTS_MODEL"]
        if server.server_embeddings:
            server.pooling = "mean"  # as a model of embeddings has of its own
        return server

    return staticmethod(preset)


for _name in ("tinyllama2", "bert_bge_small", "bert_bge_small_with_fa", "tinyllama_infill", "stories15m_moe",
              "router"):
    setattr(ServerPreset, _name, _small(getattr(ServerPreset, _name)))
ServerPreset.load_all = staticmethod(lambda: None)


def download_file(url, output_file_path=None):
    return os.environ["SERVER_TESTS_ADAPTER"]


def _record(method, path, status, bodies):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    line = {"test": test, "request": f"{method} {path}", "status": status, "bodies": bodies}
    with open(os.environ["SERVER_TESTS_RECORD"], "a") as file:
        file.write(json.dumps(line) + "\\n")


_make_request, _make_stream_request = ServerProcess.make_request, ServerProcess.make_stream_request


def make_request(self, method, path, *args, **options):
    answer = _make_request(self, method, path, *args, **options)
    if path != "/health":
        _record(method, path, answer.status_code, [answer.body])
    return answer


def make_stream_request(self, method, path, *args, **options):
    events = []
    try:
        for event in _make_stream_request(self, method, path, *args, **options):
            events.append(event)
            yield event
    except ServerError as error:
        _record(method, path, error.code, [error.body])
        raise
    finally:
        if events:
            _record(method, path, 200, events)


ServerProcess.make_request, ServerProcess.make_stream_request = make_request, make_stream_request
"""


def copied_tests(sources: Path, scratch: Path) -> Path:
    """A copy of the tests whose presets find the model; what they read beside it is linked."""
    folder = scratch / TESTS
    shutil.rmtree(scratch, ignore_errors=True)
    folder.parent.mkdir(parents=True)
    shutil.copytree(sources / TESTS, folder)
    (folder / "tmp").mkdir(exist_ok=True)
    (scratch / "models").symlink_to((sources / "models").resolve())
    (scratch / "tools" / "mtmd").symlink_to((sources / "tools" / "mtmd").resolve())
    with (folder / "utils.py").open("a") as file:
        file.write(APPENDED)
    return folder


def run_file(python: Path, folder: Path, name: str, server: Path, models: Path) -> dict[str, Outcome]:
    """Outcomes of one file's tests, most of which start a server of their own."""
    report, record = folder / "report.xml", folder / "record.jsonl"
    report.unlink(missing_ok=True)
    record.write_text("")
    environment = os.environ | {
        "LLAMA_SERVER_BIN_PATH": str(server.resolve()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(free_port()),
        "SERVER_TESTS_MODEL": str((models / "model.gguf").resolve()),
        "SERVER_TESTS_ADAPTER": str((models / "adapter.gguf").resolve()),
        "SERVER_TESTS_RECORD": str(record),
    }
    command = [str(python), "-m", "pytest", "-q", "--tb=short", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [f"--timeout={TIMEOUT_S}", f"--junitxml={report}", f"unit/test_{name}.py"]
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if not report.exists():
        raise RuntimeError(f"pytest did not run unit/test_{name}.py; see {log.name}")
    return read_outcomes(report, record)


NEEDS_MODEL = {
    "basic::test_load_split_model": "a split stories15M is fetched",
    "security::test_local_media_file": "a vision model",
    "basic::test_no_ui": "llama-server's pages, which are not built here",
    "security::test_access_static_assets": "llama-server's pages, which are not built here",
    "slot_save::test_slot_save_restore_with": "a vision model",
    "slot_save::test_slot_save_restore_text_only_on_multimodal": "a vision model",
    "slot_save::test_slot_save_restore_image": "a vision model",
    "slot_save::test_slot_restore_media": "a vision model",
    "compat_anthropic::test_anthropic_vision_base64": "a vision model",
    "embedding::": "a BERT, whose tokens and context the test counts",
    "infill::": "tokens for filling in, which stories260K-infill has",
}
"""Tests whose model is neither stories260K nor like it."""
PAGES = "a prompt that was computed before is reused in pages of 32 tokens, not to the token"
EXPLAINED = {
    "chat_completion::test_chat_completion_cached_tokens": PAGES,
    "chat_completion::test_chat_completion[None-Book-What is the best book-8-^ blue": "--chat-template takes "
    "a text without a { for a name, and there is none of that name",
    "chat_completion::test_chat_template_assistant_prefill[prefill1": "parts of a message that is continued "
    "stand in lines of their own, as those of all messages do; there an empty line is between them",
    "chat_completion::test_completion_with_response_format[response_format1": "a schema with items and no "
    "type also allows what is no array, as JSON Schema says",
    "compat_anthropic::test_anthropic_tool_result_with_image": "a picture is refused with 400, not with 500",
    "compat_anthropic::test_anthropic_vision_format": "a picture is refused with 400, not with 500",
    "compat_oai_responses::test_responses_stream_with_llama": "an answer that max_output_tokens ends is "
    "response.incomplete, as OpenAI has it, not response.completed",
    "lora::test_lora[": "what all requests run with is changed with an admin key only; each may say its own",
    "metrics::test_metrics_prompt_processed_and_cached": PAGES,
    "slot_save::test_slot_save_restore": PAGES,
    "slot_save::test_slot_restore_legacy": PAGES + "; and the file of a slot is not llama.cpp's",
    "security::test_cors_options[web.mydomain.fr-Access-Control-Allow-Headers": "the headers that were asked "
    "for are named: by the standard * does not mean Authorization",
    "security::test_cors_proxy": "there is no proxy by which pages reach what the server reaches",
}
"""Why a test fails here that passes on llama-server, if it does: by decision."""


def run(
    server: Path, name: str, arguments: argparse.Namespace, python: Path, sources: Path
) -> dict[str, Outcome]:
    """All chosen files on one server; stored below `out`, and taken from there with --keep."""
    stored = arguments.out / f"{name}.json"
    found: dict[str, Outcome] = {}
    if stored.exists():
        kept = json.loads(stored.read_text())
        found = {test: Outcome(**outcome) for test, outcome in kept.items()}
    if name in arguments.keep:
        return found
    folder = copied_tests(sources, (arguments.out / f"{name}_tests").resolve())
    for file in arguments.files or FILES:
        print(f"{name}: {file}", flush=True)
        found = {test: outcome for test, outcome in found.items() if test.partition("::")[0] != file}
        found |= run_file(python, folder, file, server, arguments.models)
        record = {test: outcome.as_json() for test, outcome in found.items()}
        stored.write_text(json.dumps(record, indent=1) + "\n")
    return found


def tests_python(folder: Path) -> Path:
    """A Python with what llama.cpp's tests need."""
    python = folder / "server-venv" / "bin" / "python"
    if not python.exists():
        print(f"peers: making {folder / 'server-venv'}", flush=True)
        log = folder / "server-venv.log"
        run_logged([sys.executable, "-m", "venv", str(folder / "server-venv")], log, "Python environment")
        run_logged([str(python), "-m", "pip", "install", *REQUIREMENTS], log, "llama.cpp's tests")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", help="such as basic; all without")
    parser.add_argument("--out", type=Path, required=True, help="folder for the outcomes and the table")
    parser.add_argument("--models", type=Path, help="folder of make_server_model (default: made below --out)")
    parser.add_argument("--keep", nargs="*", default=(), choices=("real", "ours"), help="not run again")
    parser.add_argument("--llama-bin", type=Path, help="folder with llama-server (default: built)")
    parser.add_argument("--llama-sources", type=Path, help="llama.cpp's source folder")
    parser.add_argument("--python", type=Path, help="a Python with what the tests need (default: made)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.models is None:
        arguments.models = arguments.out / "models"
    if not (arguments.models / "adapter.gguf").exists():
        command = [sys.executable, "-m", "tests.peers.make_server_model", str(arguments.models)]
        subprocess.run(command, check=True)
    programs, sources = arguments.llama_bin, arguments.llama_sources
    if programs is None or sources is None:
        llama = llama_cpp(peers_folder(), peers_python(peers_folder()))
        programs, sources = llama.programs, llama.sources
    python = arguments.python or tests_python(peers_folder())
    real = run(programs / "llama-server", "real", arguments, python, sources)
    ours = run(WRAPPER, "ours", arguments, python, sources)
    facts = {
        "llama.cpp": llama_cpp_version(programs),
        "etude": version("etude"),
        "command": "python -m tests.peers.server_tests --out FOLDER",
    }
    written_table(arguments.out, rows_of(real, ours, NEEDS_MODEL, EXPLAINED), facts)
    print((arguments.out / "table.md").read_text())


if __name__ == "__main__":
    main()
