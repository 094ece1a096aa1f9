"""Models of Hugging Face and ModelScope: the real libraries, talking to a server on 127.0.0.1.

What is proven: the right files are chosen, a broken or killed transfer goes on where it stopped, wrong
bytes are never kept, and every failure says what was tried and what to do.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etude.model.from_hub import RepoFile, choose
from etude.model.pull import pull, read_receipt, resolve
from etude.model.source import Progress, Source, parse_source, sha256_of
from etude.records import EtudeError
from tests.model.hub_stub import COMMIT, Stub, serving

GGUF = b"GGUF" + random.Random(2).randbytes(400_000)
SMALL = b"GGUF small"
HUBS = ["hf", "modelscope"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the libraries keep their own files in the test's folder too."""
    settings = {
        "ETUDE_CACHE": tmp_path / "cache",
        "HF_HOME": tmp_path / "hf",
        "MODELSCOPE_HOME": tmp_path / "modelscope-home",
        "MODELSCOPE_CACHE": tmp_path / "modelscope-cache",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A server that is Hugging Face and ModelScope at once."""
    files = {
        "toy-Q4_K_M.gguf": GGUF,
        "toy-Q8_0.gguf": SMALL,
        "mmproj-toy.gguf": b"GGUF eyes",
        "README.md": b"#",
    }
    with serving(Stub(repos={"own/toy": files})) as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", stub.url)
        yield stub


# ---- both hubs


@pytest.mark.parametrize("kind", HUBS)
def test_a_quantisation_of_a_repository(
    kind: str, hub: Stub, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    moments: list[Progress] = []
    path = pull(f"{kind}:own/toy:q4_k_m", progress=moments.append)
    assert (path.name, path.read_bytes()) == ("toy-Q4_K_M.gguf", GGUF)
    assert sorted(file.name for file in path.parent.iterdir()) == ["pull.json", "toy-Q4_K_M.gguf"]
    receipt = read_receipt(parse_source(f"{kind}:own/toy:q4_k_m") or Source("", "hf", ""))
    assert receipt is not None and receipt.fetched.licence == "apache-2.0"
    assert "own/toy at " in receipt.fetched.origin
    assert receipt.fetched.files[0].sha256 == sha256_of(path)
    assert moments[-1].done_bytes == moments[-1].total_bytes == len(GGUF)
    assert capfd.readouterr() == ("", "")  # the libraries' own bars stay silent
    hub.asked.clear()
    assert resolve(f"{kind}:own/toy:q4_k_m", download=True) == path
    assert not hub.asked


@pytest.mark.parametrize("kind", HUBS)
def test_without_a_choice_it_takes_q4_k_m(kind: str, hub: Stub) -> None:
    assert pull(f"{kind}:own/toy").name == "toy-Q4_K_M.gguf"


@pytest.mark.parametrize("kind", HUBS)
def test_a_file_in_a_subfolder(kind: str, hub: Stub) -> None:
    hub.repos["own/toy"]["more/other.gguf"] = SMALL
    path = pull(f"{kind}:own/toy:more/other.gguf")
    assert path.parts[-2:] == ("more", "other.gguf") and path.read_bytes() == SMALL


@pytest.mark.parametrize("kind", HUBS)
def test_a_hugging_face_folder(kind: str, hub: Stub) -> None:
    files = {"config.json": b"{}", "model.safetensors": GGUF, "tokenizer.json": b"{}", "LICENSE": b"text"}
    other = {
        "README.md": b"#",
        "consolidated.safetensors": b"x",
        "onnx/model.onnx": b"x",
        "pytorch_model.bin": b"x",
    }
    hub.repos["own/folder"] = files | other
    path = pull(f"{kind}:own/folder")
    assert path.is_dir()
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "pull.json"} == files
    assert resolve(f"{kind}:own/folder") == path


@pytest.mark.parametrize("kind", HUBS)
def test_a_split_model_comes_whole(kind: str, hub: Stub) -> None:
    parts = {f"big-Q8_0-0000{number}-of-00003.gguf": bytes([number]) * 1000 for number in (1, 2, 3)}
    hub.repos["own/big"] = parts | {"big-Q4_0.gguf": b"x"}
    path = pull(f"{kind}:own/big:Q8_0")
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    assert {name: (path.parent / name).read_bytes() for name in parts} == parts


@pytest.mark.parametrize("kind", HUBS)
def test_wrong_bytes_are_fetched_again(kind: str, hub: Stub) -> None:
    hub.wrong["toy-Q4_K_M.gguf"] = 1
    assert pull(f"{kind}:own/toy").read_bytes() == GGUF
    assert hub.transfers("toy-Q4_K_M.gguf") == [0, 0]


def test_bytes_that_stay_wrong_are_not_kept(hub: Stub, cache: Path) -> None:
    hub.wrong["toy-Q4_K_M.gguf"] = 1000
    with pytest.raises(EtudeError, match=r"toy-Q4_K_M\.gguf arrived damaged twice"):
        pull("hf:own/toy")
    assert not (cache / "models").exists()
    hub.wrong.clear()
    assert pull("hf:own/toy").read_bytes() == GGUF


@pytest.mark.parametrize("kind", HUBS)
def test_nothing_answers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(EtudeError) as caught:
        pull(f"{kind}:own/toy")
    text = str(caught.value)
    assert f"cannot pull '{kind}:own/toy': could not list the files of own/toy" in text
    assert "tried: http://127.0.0.1:1" in text and "it said: " in text
    assert "ENDPOINT" in text and "etude pull smollm2-135m" in text


@pytest.mark.parametrize("kind", HUBS)
def test_no_such_repository(kind: str, hub: Stub) -> None:
    with pytest.raises(EtudeError, match="could not list the files of no/such"):
        pull(f"{kind}:no/such")


def test_a_gated_repository_says_how_to_open_it(hub: Stub) -> None:
    hub.gated = True
    with pytest.raises(EtudeError, match="licence accepted on its page, and HF_TOKEN"):
        pull("hf:own/toy")


@pytest.mark.parametrize(("kind", "module"), [("hf", "huggingface_hub"), ("modelscope", "modelscope_hub")])
def test_without_the_library_it_names_the_extra(
    kind: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EtudeError, match=rf"pip install 'etude\[{kind}\]'"):
        pull(f"{kind}:own/toy")


@pytest.mark.parametrize(("kind", "arrived_bytes"), [("hf", 10_000_000), ("modelscope", 100_000)])
def test_a_killed_transfer_goes_on_where_it_stopped(
    kind: str, arrived_bytes: int, hub: Stub, cache: Path
) -> None:
    """SIGKILL in the middle of the file; the second pull asks from the first byte that is missing.

    Hugging Face's library writes 10 MB at a time, so that much must have arrived.
    """
    content = GGUF * 50
    hub.repos["own/toy"]["toy-Q4_K_M.gguf"] = content
    hub.slow_s = 0.002
    program = "import sys; from etude.model.pull import pull; pull(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", program, f"{kind}:own/toy"]) as process:
        wait_for_bytes(cache / "partial", arrived_bytes)
        process.send_signal(signal.SIGKILL)
    assert not (cache / "models").exists()
    hub.slow_s = 0.0
    hub.asked.clear()
    assert pull(f"{kind}:own/toy").read_bytes() == content
    (start,) = hub.transfers("toy-Q4_K_M.gguf")
    assert arrived_bytes <= start < len(content)


def wait_for_bytes(folder: Path, count: int) -> None:
    """Until the files under a folder hold so much; at most a minute."""
    deadline_s = time.monotonic() + 60
    while sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# ---- the choice of files


def repo_files(*names: str) -> list[RepoFile]:
    return [RepoFile(name, 1, "") for name in names]


@pytest.mark.parametrize(
    ("choice", "names", "main"),
    [
        ("", "a.gguf README.md", "a.gguf"),
        ("", "a-Q2_K.gguf a-Q4_K_M.gguf a-Q8_0.gguf", "a-Q4_K_M.gguf"),
        ("", "a-Q2_K.gguf a-Q8_0.gguf", "a-Q8_0.gguf"),
        ("", "a.Q8_0.gguf mmproj-a-f16.gguf imatrix.gguf", "a.Q8_0.gguf"),
        ("Q4_K_M", "a-q4_k_m.gguf a-q4_k_s.gguf", "a-q4_k_m.gguf"),
        ("q8_0", "A.Q8_0.gguf A.Q4_0.gguf", "A.Q8_0.gguf"),
        ("Q4_K", "a-Q4_K.gguf a-Q4_K_M.gguf", "a-Q4_K.gguf"),
        ("IQ4_NL", "a-IQ4_NL.gguf a-Q4_K.gguf", "a-IQ4_NL.gguf"),
        ("f16", "a-f16.gguf a-bf16.gguf", "a-f16.gguf"),
        ("a-Q8_0.gguf", "a-Q8_0.gguf b-Q8_0.gguf", "a-Q8_0.gguf"),
        ("Q8_0", "q/a-Q8_0-00001-of-00002.gguf q/a-Q8_0-00002-of-00002.gguf", "q/a-Q8_0-00001-of-00002.gguf"),
        ("", "config.json model.safetensors", "."),
        ("", "config.json model-00001-of-00001.safetensors model.safetensors.index.json", "."),
    ],
)
def test_choice(choice: str, names: str, main: str) -> None:
    assert choose(Source("hf:o/r", "hf", "o/r", choice), repo_files(*names.split()))[0] == main


@pytest.mark.parametrize(
    ("choice", "names", "message"),
    [
        (
            "",
            "a-Q2_K.gguf a-Q3_K.gguf",
            r"several models: choose one as hf:o/r:FILE of a-Q2_K\.gguf, a-Q3_K\.gguf",
        ),
        ("", "README.md", "neither a .gguf nor a config.json"),
        ("", "config.json pytorch_model.bin", "neither a .gguf nor a config.json"),
        ("", "a-00001-of-00002.gguf", "neither a .gguf nor"),
        ("Q4_K", "a-Q4_K_M.gguf", r"no GGUF file or quantisation 'Q4_K': it has a-Q4_K_M\.gguf"),
        ("Q8_0", "a-Q8_0.gguf b-Q8_0.gguf", "means several files"),
        ("Q8_0", "config.json model.safetensors", "no GGUF file among its 2 files"),
    ],
)
def test_no_choice_is_guessed(choice: str, names: str, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        choose(Source("hf:o/r", "hf", "o/r", choice), repo_files(*names.split()))


def test_a_repository_cannot_write_outside_its_folder() -> None:
    with pytest.raises(EtudeError):
        choose(Source("hf:o/r", "hf", "o/r"), repo_files("../../evil.gguf"))


def test_the_revision_is_pinned_before_the_first_file(hub: Stub) -> None:
    """A push between listing and download cannot mix two versions: files are asked of the listed commit."""
    pull("hf:own/toy")
    assert f"/own/toy/resolve/{COMMIT}/toy-Q4_K_M.gguf" in {path for _, path, _ in hub.asked}
