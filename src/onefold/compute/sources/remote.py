"""Files that are not local: fsspec URLs, in practice object stores such as ``s3://``."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

from onefold.compute.plan.nodes import Source
from onefold.errors import InvalidArgument, InvalidValue, Unavailable
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    from onefold.compute.sources.listing import FileInfo

_URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.\-]*(?:::[a-zA-Z][a-zA-Z0-9+.\-]*)*)://")
_PROCESS_LOCAL = ("memory",)
_EXTRAS = {"s3": "s3", "s3a": "s3"}


def is_remote(path: str) -> bool:
    """Whether a path is a URL. ``file://`` URLs have been turned into paths before (``make_source``)."""
    return _URL.match(path) is not None


def check_url(url: str) -> None:
    """Raise ``InvalidArgument`` for URLs that other processes could not read."""
    match = _URL.match(url)
    if match is not None and any(p in _PROCESS_LOCAL for p in match.group(1).split("::")):
        raise InvalidArgument(
            f"{url!r} lives in the memory of this process, and workers are other processes; write it to a file or an object store"
        )


def filesystem(source: Source, url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it."""
    import fsspec

    options = dict(source.option("storage_options") or ())
    try:
        fs, path = fsspec.core.url_to_fs(url, **_plain(options))
    except ImportError as error:
        protocol = url.split("://", 1)[0]
        extra = _EXTRAS.get(protocol)
        install = f'pip install "onefold[{extra}]"' if extra else str(error)
        raise InvalidArgument(f"reading {url!r} needs a package that is not installed: {install}") from error
    except ValueError as error:
        raise InvalidArgument(f"cannot read {url!r}: {error}") from error
    return fs, path


def _plain(value: Any) -> Any:
    """Frozen options as fsspec takes them: tuples of pairs back to dicts."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple) and value and all(isinstance(p, tuple) and len(p) == 2 for p in value):
        return {k: _plain(v) for k, v in value}
    return value


def list_remote(source: Source, url: str) -> list[FileInfo]:
    """The files that a URL, a glob in one, or a remote directory stands for."""
    from onefold.compute.sources.listing import FileInfo, directory_hint, wanted

    fs, path = filesystem(source, url)
    fs.invalidate_cache()
    try:
        if any(c in path for c in "*?[") and not fs.exists(path):
            details = fs.glob(path, detail=True)
            found = [d for d in details.values() if d["type"] == "file"]
            if not found:
                raise InvalidArgument(f"no file matches {url!r}")
        else:
            info = fs.info(path)
            if info["type"] == "file":
                found = [info]
            else:
                root = path.rstrip("/") + "/"
                found = [
                    d
                    for d in fs.find(path, detail=True).values()
                    if d["type"] == "file" and wanted(source.kind, d["name"].removeprefix(root).split("/"))
                ]
                if not found:
                    raise InvalidArgument(
                        f"no {directory_hint(source.kind)} in {url!r}; name the files or use a glob"
                    )
    except FileNotFoundError as error:
        raise InvalidArgument(f"no such file or directory: {url!r}") from error
    except PermissionError as error:
        raise InvalidArgument(
            f"cannot read {url!r}: {error}; check storage_options and permissions"
        ) from error
    except InvalidArgument:
        raise
    except (OSError, TimeoutError) as error:
        if is_interrupt(error):
            raise
        raise Unavailable(f"cannot list {url!r}: {error}; try again") from error
    except ValueError as error:
        raise InvalidArgument(f"cannot list {url!r}: {error}; name a bucket and a path in it") from error
    except (
        Exception
    ) as error:  # what a client library raises of its own, such as botocore's connection errors
        if is_interrupt(error):
            raise
        raise Unavailable(
            f"cannot list {url!r}: {error}; check endpoint and credentials (storage_options), then try again"
        ) from error
    return [FileInfo(fs.unstrip_protocol(d["name"]), int(d["size"] or 0), _etag(d)) for d in found]


def _etag(info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "content_md5", "VersionId", "generation"):
        if info.get(name):
            return str(info[name]).strip('"')
    changed = (
        info.get("LastModified")
        or info.get("last_modified")
        or info.get("mtime")
        or info.get("created")
        or ""
    )
    return f"{changed}-{info['size']}"


def check_unchanged(source: Source, url: str, size: int, etag: str) -> None:
    """Raise ``InvalidValue`` if the file is not the one that was listed."""
    fs, path = filesystem(source, url)
    fs.invalidate_cache()
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise InvalidValue(f"{url} changed while the job ran (it is gone); run it again") from error
    if int(info["size"] or 0) != size or _etag(info) != etag:
        raise InvalidValue(f"{url} changed while the job ran; run it again")


def open_remote(source: Source, url: str) -> IO[bytes]:
    """The file, readable and seekable."""
    fs, path = filesystem(source, url)
    try:
        return fs.open(path, "rb", block_size=8 * 1024 * 1024, cache_type="readahead")  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise InvalidValue(f"{url} changed while the job ran (it is gone); run it again") from error


def read_all(source: Source, url: str) -> bytes:
    """All bytes of a file."""
    fs, path = filesystem(source, url)
    return fs.cat_file(path)  # type: ignore[no-any-return]


_POLARS_NAMES = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "anon": "aws_skip_signature",
    "endpoint_url": "aws_endpoint_url",
    "region_name": "aws_region",
}


def polars_options(source: Source, url: str) -> dict[str, str] | None:
    """s3fs options as Polars' own reader takes them; None for other stores and for options that it does not have.

    Polars' reader asks for the footer and the needed columns and row groups only.
    """
    if not url.startswith(("s3://", "s3a://")):
        return None
    given = _plain(source.option("storage_options") or ())
    given = dict(given) if given else {}
    client = given.pop("client_kwargs", {})
    options: dict[str, str] = {}
    for name, value in (*given.items(), *(client or {}).items()):
        if name not in _POLARS_NAMES:
            return None
        options[_POLARS_NAMES[name]] = str(value).lower() if isinstance(value, bool) else str(value)
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return options
