"""The pages: what is sent with them, how they are kept, and that they are in what is installed."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scikit_build_core.build._pathutil import packages_to_file_mapping
from scikit_build_core.settings.skbuild_read_settings import SettingsReader
from starlette.testclient import TestClient

from etude.serve.assets import POLICY, SAFETY, WEB, Site
from tests.serve.live import client_of

ROOT = Path(__file__).parents[2]
SCRIPT = "export const answer = 42;\n" * 100


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A built page."""
    assets = tmp_path / "web" / "assets"
    assets.mkdir(parents=True)
    (tmp_path / "web" / "index.html").write_text(
        "<!doctype html><script type=module src=./assets/a-1.js></script>"
    )
    (assets / "a-1.js").write_text(SCRIPT)
    (assets / "a-1.js.br").write_bytes(b"as if by brotli")
    (assets / "font-2.woff2").write_bytes(bytes(range(256)))
    (assets / "small-3.css").write_text("a{}")
    (tmp_path / "secret").write_text("not for the web")
    return tmp_path / "web"


@pytest.fixture
def client(tiny: Path, site: Path) -> Iterator[TestClient]:
    with client_of(tiny) as client:
        client.app.state.server.site = Site(site)  # a Starlette
        yield client


def test_the_page_and_its_files(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache" and page.text == client.get("/index.html").text
    script = client.get("/assets/a-1.js", headers={"Accept-Encoding": "identity"})
    assert script.text == SCRIPT and script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"] and "content-encoding" not in script.headers
    font = client.get("/assets/font-2.woff2")
    assert font.content == bytes(range(256)) and font.headers["content-type"] == "font/woff2"
    for name, value in SAFETY.items():
        assert page.headers[name] == script.headers[name] == value


def test_files_are_compressed_once_and_remembered(client: TestClient) -> None:
    def asked(encoding: str) -> tuple[str | None, int]:
        response = client.get("/assets/a-1.js", headers={"Accept-Encoding": encoding})
        return response.headers.get("content-encoding"), int(response.headers["content-length"])

    assert asked("gzip") == ("gzip", len(gzip.compress(SCRIPT.encode(), 9, mtime=0)))
    assert asked("gzip;q=0, identity") == asked("") == (None, len(SCRIPT))
    small = client.get("/assets/small-3.css", headers={"Accept-Encoding": "gzip"})
    assert small.text == "a{}" and "content-encoding" not in small.headers  # it would be longer
    with client.stream("GET", "/assets/a-1.js", headers={"Accept-Encoding": "gzip, br"}) as response:
        assert response.headers["content-encoding"] == "br" and response.headers["vary"] == "Accept-Encoding"
    etag = client.get("/").headers["etag"]
    again = client.get("/", headers={"If-None-Match": f'W/"x", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.head("/").status_code == 200


def test_a_new_build_is_served(client: TestClient, site: Path) -> None:
    before = client.get("/").headers["etag"]
    fresh = site / "new.html"
    fresh.write_text("<!doctype html>new")
    (site / "assets" / "b-9.js").write_text("1")
    fresh.replace(site / "index.html")
    assert client.get("/").text == "<!doctype html>new" and client.get("/").headers["etag"] != before
    assert client.get("/assets/b-9.js").text == "1"


def test_nothing_else_is_served(client: TestClient) -> None:
    for path in (
        "/assets/../../secret", "/assets/%2e%2e/%2e%2e/secret", "/assets/..%2f..%2fsecret", "/assets/",
        "/assets/none.js", "/assets//etc/passwd", "/assets/a-1.js.br", "/secret", "/favicon.ico",
        "/assets/%00",
    ):  # fmt: skip
        assert client.get(path).status_code == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/").status_code == 405


def test_pages_load_without_a_key_and_nothing_else_does(tiny: Path, site: Path) -> None:
    with client_of(tiny, api_keys=("k",)) as client:
        client.base_url = "http://localhost"
        client.app.state.server.site = Site(site)  # a Starlette
        assert client.get("/").status_code == client.get("/assets/a-1.js").status_code == 200
        for path in ("/api/session", "/api/conversations", "/api/runs", "/v1/models", "/assets", "/x"):
            assert client.get(path).status_code == 401, path


def test_a_prefix_and_no_pages(tiny: Path, site: Path) -> None:
    with client_of(tiny, prefix="/llm", api_keys=("k",)) as client:
        client.app.state.server.site = Site(site)  # a Starlette
        assert client.get("/llm/").status_code == client.get("/llm").status_code == 200
        assert client.get("/llm/assets/a-1.js").text == SCRIPT
    with client_of(tiny, shows_pages=False) as client:
        assert client.get("/").status_code == client.get("/assets/a-1.js").status_code == 404


def test_without_a_build_it_says_what_to_do(tiny: Path, tmp_path: Path) -> None:
    with client_of(tiny) as client:
        client.app.state.server.site = Site(tmp_path / "none")  # a Starlette
        response = client.get("/")
        assert response.status_code == 503 and "make web" in response.text


def test_the_policy_lets_nothing_in() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == rules["style-src"] == "'self'"
    allowed = {"'self'", "'none'", "data:", "blob:", "'unsafe-inline'"}
    assert {source for sources in rules.values() for source in sources.split()} <= allowed
    assert [name for name, sources in rules.items() if "unsafe-inline" in sources] == ["style-src-attr"]


# ── the build that is committed ──


class Links(HTMLParser):
    """What a page loads, and the scripts that stand in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.links += [found[name] or "" for name in ("src", "href") if name in found]
        self._script = tag in ("script", "style") and "src" not in found
        assert not [name for name in found if name.startswith("on") or name == "style"], found

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.inline.append(data)


def test_the_built_page_obeys_the_policy() -> None:
    """No inline script or style, nothing of another host, everything that it names is there."""
    page = Links()
    page.feed((WEB / "index.html").read_text())
    assert page.links and not page.inline
    for link in page.links:
        assert re.fullmatch(r"\./assets/[\w.-]+-[\w-]{8}\.\w+", link), link
        assert (WEB / link).is_file(), link


def test_the_wheel_has_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the build's own rules: what is not ignored below the package."""
    monkeypatch.chdir(ROOT)
    settings = SettingsReader.from_file(ROOT / "pyproject.toml", {}).settings
    mapping = packages_to_file_mapping(
        packages={"etude": "etude"},
        platlib_dir=Path("wheel"),
        include=settings.sdist.include,
        src_exclude=settings.sdist.exclude,
        target_exclude=settings.wheel.exclude,
        build_dir=settings.build_dir,
        mode=settings.sdist.inclusion_mode or "default",
    )
    installed = {Path(target).relative_to("wheel").as_posix() for target in mapping.values()}
    tracked = subprocess.run(
        ["git", "ls-files", "etude/serve/web"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "etude/serve/web/index.html" in tracked and len(tracked) > 3
    assert {path for path in tracked if (ROOT / path).exists()} <= installed
    assert "etude/serve/pages.py" in installed
