"""Files that a request names: only what lies in a folder given at the start, and only by its plain name."""

from __future__ import annotations

from pathlib import Path

from etude.serve.errors import ApiError

MAX_NAME = 255


def named_in(folder: Path | None, name: str, field: str, flag: str) -> Path:
    """The file or folder `name` of a request's `field` in the folder of `flag`.

    ApiError 501 without such a folder, 400 for what is no plain name, 404 for what is not there; what a link
    in the folder leads to outside of it is not there.
    """
    if folder is None:
        raise ApiError(501, f"the server was started without {flag}: there is nothing to name", param=field)
    if not is_plain(name):
        raise ApiError(
            400,
            f"{field} is {name[:80]!r}; it must be the plain name of what lies in the folder of {flag}",
            param=field,
        )
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.exists():
        raise ApiError(404, f"{field}: there is no {name!r} in the folder of {flag}", param=field)
    return path


def is_plain(name: str) -> bool:
    r"""Whether a name means something directly in a folder, on every system.

    >>> [is_plain(name) for name in ("step_10", "a.gguf", "..", ".hidden", "a/b", "a\\b", "C:x", "", "a\0")]
    [True, True, False, False, False, False, False, False, False]
    """
    return (
        0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME
        and not name.startswith(".")
        and name.isprintable()
        and not any(char in "/\\:" for char in name)
    )
