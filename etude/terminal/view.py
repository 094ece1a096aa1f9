"""`etude view`: a server without models of its own, with the pages, for the runs of a folder."""

from __future__ import annotations

import asyncio
import contextlib
import webbrowser
from pathlib import Path

from etude.engine.engine import Engine
from etude.serve.conversation_file import data_folder
from etude.serve.models import ModelDefaults, ModelPool, ModelSpec
from etude.serve.run_models import finder_of
from etude.serve.settings import ServeSettings
from etude.terminal.options import Options
from etude.terminal.serve import keys_of, listeners, say, serve, words

DEFAULT = "runs"


def run(options: Options) -> int:
    """The verb."""
    root, name = runs_of(options)
    settings = settings_of(options, root)
    pool = ModelPool([], lambda spec: load(options, spec), ModelDefaults(), finder=finder_of(root))

    def ready(url: str) -> None:
        page = f"{url}#/runs" + (f"/{name}" if name else "")
        say(f"runs of {root}: {page}")
        if options["open"]:
            webbrowser.open(page)

    with contextlib.ExitStack() as sockets:
        addresses = [sockets.enter_context(each) for each in listeners(options, settings)]
        asyncio.run(serve(settings, pool, addresses, ready))
    return 0


def runs_of(options: Options) -> tuple[Path, str | None]:
    """(the folder of the runs, the one run that was named). UsageError if there is no such folder."""
    folder = Path(options["folder"] or DEFAULT)
    if not folder.is_dir():
        hint = "" if options["folder"] else "; name the folder that has them, as in `etude view FOLDER`"
        raise options.error("folder", f"there is no folder {str(folder)!r}{hint}")
    folder = folder.resolve()
    return (folder.parent, folder.name) if (folder / "run.json").exists() else (folder, None)


def settings_of(options: Options, root: Path) -> ServeSettings:
    """What the flags say of the server."""
    if options["cors_origins"] is None:
        options.refuse_without_effect(("cors_credentials",), "no effect without --cors-origins")
    prefix = options["api_prefix"].rstrip("/")
    if prefix and not prefix.startswith("/"):
        raise options.error("api_prefix", f"got {options['api_prefix']!r}, it must begin with /")
    return ServeSettings(
        host=options["host"],
        port=options["port"],
        api_keys=keys_of(options, "api_key"),
        cors_origins=words(options["cors_origins"]),
        cors_credentials=options["cors_credentials"],
        prefix=prefix,
        runs_folder=root,
        data_folder=data_folder() if options["data_dir"] is None else Path(options["data_dir"]).resolve(),
    )


def load(options: Options, spec: ModelSpec) -> Engine:
    """An engine for a checkpoint. In a thread of the pool."""
    return Engine.load(
        spec.path, threads=options["threads"], context=options["ctx_size"], weight_type=spec.weight_type
    )
