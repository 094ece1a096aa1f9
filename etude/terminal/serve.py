"""`etude serve`: flags → settings and models → a server, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from etude.engine.engine import Engine
from etude.model.pull import resolve
from etude.model.source import DEFAULT_MODEL
from etude.records import EtudeError
from etude.serve.app import create_app
from etude.serve.conversation_file import data_folder
from etude.serve.models import Adapter, ModelDefaults, ModelPool, ModelSpec
from etude.serve.pausing import resume
from etude.serve.run_models import finder_of
from etude.serve.server import Server
from etude.serve.settings import LOOPBACK, ServeSettings
from etude.terminal.loading import adapters, given_template, open_engine, template_kwargs
from etude.terminal.options import Options
from etude.terminal.pull import fetch
from etude.terminal.sampling import read_text, sampling_params

KEEP_ALIVE_S = 75
BACKLOG = 2048


def run(options: Options) -> int:
    """The verb."""
    settings = settings_of(options)
    specs = specs_of(options)
    defaults = defaults_of(options)
    pool = ModelPool(
        specs,
        lambda spec: load(options, spec),
        defaults,
        max_loaded=options["models_max"],
        idle_s=None if options["sleep_idle_seconds"] < 0 else options["sleep_idle_seconds"],
        finder=finder_of(settings.runs_folder),
    )
    with contextlib.ExitStack() as open_sockets:
        addresses = [open_sockets.enter_context(each) for each in listeners(options, settings)]
        asyncio.run(serve(settings, pool, addresses))
    return 0


async def serve(
    settings: ServeSettings,
    pool: ModelPool,
    addresses: list[socket.socket],
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until a signal. While the first model loads, /health says so and other requests wait; then it is
    said where. ready: told the address."""
    app = create_app(settings, pool)
    state: Server = app.state.server
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    state.loading = bool(pool.specs)
    for listening in addresses:
        listening.listen(BACKLOG)
    server = UntilSignal(config, state)
    serving = asyncio.create_task(server.serve(sockets=addresses))
    try:
        if pool.specs:
            async with pool.use() as model:
                say(model.engine.describe())
        state.loading = False
        announce(settings, addresses)
        ready(url_of(addresses[0], settings.prefix))
        await serving
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        await pool.close()
        state.close()


def announce(settings: ServeSettings, addresses: list[socket.socket]) -> None:
    """Where it listens, and what whoever started it should know."""
    if settings.shows_pages:
        say(f"conversations are kept in {settings.data_folder or 'memory, until the server ends'}")
    for listening in addresses:
        host, port = listening.getsockname()[:2]
        say(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}{settings.prefix}")
    if not set(words(settings.host)) <= set(LOOPBACK) and not settings.api_keys:
        say("warning: whoever reaches this address may use it; --api-key asks for a key")


class UntilSignal(uvicorn.Server):
    """The first signal ends it when all that runs has finished, the second at once. What a pause keeps goes
    on, or it would never finish."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called when it shall end."""
        self._server.stopping = True
        resume(self._server)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the system between two instructions, of itself too: it is a second one if it comes while
        the first is being told of. While the first model loads nothing runs that could finish."""
        if self._server.loading:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        name = signal.Signals(sig).name
        os.write(sys.stderr.fileno(), f"{name}: finishing what runs; once more ends it at once\n".encode())


def url_of(listening: socket.socket, prefix: str) -> str:
    """What a browser on this machine is given."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{prefix}/"


def say(text: str) -> None:
    """To the error output: the standard output is for what programs read."""
    print(text, file=sys.stderr, flush=True)


def listeners(options: Options, settings: ServeSettings) -> list[socket.socket]:
    """A socket for each address, all at one port, bound but not yet open to anyone. UsageError where that is
    not possible."""
    with contextlib.ExitStack() as opened:
        found: list[socket.socket] = []
        for host in words(settings.host) or (settings.host,):
            port = found[0].getsockname()[1] if found else settings.port
            found.append(opened.enter_context(listener(options, host, port)))
        opened.pop_all()
        return found


def listener(options: Options, host: str, port: int) -> socket.socket:
    """One of them."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # "0.0.0.0,::" are two addresses
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    except OSError as error:
        raise options.error("host", f"got {host!r}, which is no address: {error.strerror}") from None
    try:
        listening.bind(address)
        return listening
    except OSError as error:
        listening.close()
        raise options.error(
            "port",
            f"cannot listen at {host}:{port}: {error.strerror}; give another --port (0: any that is free)",
        ) from None


# ── flags → settings ──


def settings_of(options: Options) -> ServeSettings:
    """What the flags say of the server itself."""
    if options["cors_origins"] is None:
        options.refuse_without_effect(("cors_credentials",), "no effect without --cors-origins")
    prefix = options["api_prefix"].rstrip("/")
    if prefix and not prefix.startswith("/"):
        raise options.error("api_prefix", f"got {options['api_prefix']!r}, it must begin with /")
    return ServeSettings(
        host=options["host"],
        port=options["port"],
        api_keys=keys_of(options, "api_key"),
        admin_keys=admin_keys(options),
        cors_origins=words(options["cors_origins"]),
        cors_credentials=options["cors_credentials"],
        max_queue=options["max_queue"],
        max_body_bytes=options["max_body_mb"] << 20,
        write_timeout_s=float(options["timeout"]),
        ping_interval_s=float(options["sse_ping_interval"]),
        prefix=prefix,
        shows_slots=options["slots"],
        shows_metrics=options["metrics"],
        changes_props=options["props"],
        slot_folder=None if options["slot_save_path"] is None else folder(options, "slot_save_path"),
        runs_folder=None if options["runs"] is None else folder(options, "runs"),
        data_folder=kept_in(options),
        shows_pages=options["ui"],
        explains=options["verbose"],
        weights_folder=None if options["weights_dir"] is None else folder(options, "weights_dir"),
        adapters_folder=None if options["lora_dir"] is None else folder(options, "lora_dir"),
    )


def folder(options: Options, key: str) -> Path:
    """A folder that must be there."""
    path = Path(options[key])
    if not path.is_dir():
        raise options.error(key, f"there is no folder {options[key]!r}")
    return path.resolve()


def keys_of(options: Options, key: str) -> tuple[str, ...]:
    """Of a flag and of the one that names a file."""
    keys, file = words(options[key]), f"{key}_file"
    if options[file] is not None:
        lines = [line.strip() for line in read_text(options, file).splitlines()]
        found = tuple(line for line in lines if line)
        if not found:
            raise options.error(file, f"there is no key in {options[file]!r}")
        keys += found
    return keys


def admin_keys(options: Options) -> tuple[str, ...]:
    """Keys that open more than others. UsageError for folders that nobody may name, and for a key of both
    kinds."""
    keys = keys_of(options, "admin_key")
    if not keys:
        options.refuse_without_effect(("weights_dir", "lora_dir"), "no effect without --admin-key")
    if set(keys) & set(keys_of(options, "api_key")):
        raise options.error("admin_key", "one of them is an API key too: admin keys must be others")
    return keys


def kept_in(options: Options) -> Path | None:
    """The folder of the conversations; None where there are no pages that have any."""
    if not options["ui"]:
        options.refuse_without_effect(("data_dir",), "no effect with --no-ui")
        return None
    return data_folder() if options["data_dir"] is None else Path(options["data_dir"]).resolve()


def words(text: str | None) -> tuple[str, ...]:
    """'a, b' → ('a', 'b').

    >>> words("a, b,")
    ('a', 'b')
    """
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


# ── flags → models ──


def specs_of(options: Options) -> list[ModelSpec]:
    """The models, each with a name of its own. EtudeError for one that is not there."""
    specs = [spec_of(options, text) for text in asked_models(options)]
    if options["models_dir"] is not None:
        files = sorted(folder(options, "models_dir").rglob("*.gguf"))
        if not files:
            raise options.error("models_dir", f"there is no GGUF file in {options['models_dir']!r}")
        specs += [ModelSpec(path.stem, path) for path in files if not _is_later_part(path)]
    names, tags = words(options["alias"]), words(options["tags"])
    name, *others = names or (specs[0].name,)
    specs[0] = ModelSpec(name, specs[0].path, tuple(others), tags)
    return specs


def asked_models(options: Options) -> tuple[str, ...]:
    """What the user calls the models."""
    names: tuple[str, ...] = options["model"] or ()
    repository, file = options["hf_repo"], options["hf_file"]
    if repository is not None:
        name = f"hf:{repository.partition(':')[0]}:{file}" if file is not None else f"hf:{repository}"
        return (*names, name)
    if file is not None:
        raise options.error("hf_file", "no effect without -hf USER/REPO")
    return names or (() if options["models_dir"] is not None else (DEFAULT_MODEL,))


def spec_of(options: Options, text: str) -> ModelSpec:
    """NAME=MODEL, or MODEL, which is called as its file."""
    name, equals, source = text.partition("=")
    if not equals or "/" in name or Path(text).exists():
        name, source = "", text
    path = resolve(source) if options["offline"] or Path(source).exists() else fetch(source)
    if not name:
        name = Path(source).name.removesuffix(".gguf") if Path(source).exists() else source
    return ModelSpec(name, path)


def _is_later_part(path: Path) -> bool:
    """Whether a file is part 2 or later of a split model, which its first part brings along."""
    stem, of, _ = path.stem.rpartition("-of-")
    return bool(of) and stem[-5:].isdecimal() and int(stem[-5:]) > 1


def load(options: Options, spec: ModelSpec) -> Engine:
    """An engine with its adapters. In a thread of the pool."""
    parallel = options["parallel"]
    engine = open_engine(
        options, spec.path, parallel=None if parallel < 0 else parallel, weight_type=spec.weight_type
    )
    try:
        for adapter in adapters_of(options) if spec.prepare is None else ():
            engine.load_adapter(adapter.name, adapter.path)
    except BaseException:
        engine.close()
        raise
    return engine


def adapters_of(options: Options) -> tuple[Adapter, ...]:
    """The adapters of the flags, by the names of their files."""
    found: list[Adapter] = []
    for file, scale in adapters(options):
        path = Path(file)
        if not path.exists():
            raise EtudeError(f"no file or folder {file!r} with a LoRA adapter")
        name = path.stem if path.stem not in [each.name for each in found] else f"{path.stem}-{len(found)}"
        found.append(Adapter(name, path, 0.0 if options["lora_init_without_apply"] else scale))
    return tuple(found)


def defaults_of(options: Options) -> ModelDefaults:
    """What requests do not say. UsageError for flags without effect."""
    if not options["context_shift"]:
        options.refuse_without_effect(("keep",), "no effect without --context-shift")
    if not (options["lora"] or options["lora_scaled"]):
        options.refuse_without_effect(("lora_init_without_apply",), "no effect without --lora")
    found = adapters_of(options)
    if sum(adapter.scale != 0 for adapter in found) > 1:
        key = "lora_scaled" if options["lora_scaled"] else "lora"
        text = "an answer is given with one adapter at a time: add --lora-init-without-apply; requests choose"
        raise options.error(key, text)
    variables: dict[str, Any] = template_kwargs(options)
    if options["reasoning"] is not None:
        variables["enable_thinking"] = options["reasoning"]
    if options["reasoning_effort"] != "default":
        variables["reasoning_effort"] = options["reasoning_effort"]
    return ModelDefaults(
        params=sampling_params(options),
        template=given_template(options),
        variables=variables,
        reasoning_format=options["reasoning_format"],
        prefill=options["prefill_assistant"],
        pooling=options["pooling"],
        adapters=found,
    )
