"""Where a store is: a folder on this machine, or a place in an object storage that fsspec knows by its URL."""

import pathlib
import re

from harvest.errors import UserError

Location = str | pathlib.Path
"""A folder's path, or a URL such as `s3://bucket/prefix/activations.zarr`."""


def check_location(location: Location, key: str) -> Location:
    """A path, or a URL whose file system can be used; `key` names it in the `UserError` that anything else becomes.

    Credentials are taken from the environment and nowhere else, so that no log and no file can show them: a URL that
    has some is refused, and not repeated.
    """
    if isinstance(location, pathlib.Path) or not is_url(location):
        return pathlib.Path(location)
    if "@" in location or "?" in location:
        raise UserError(
            f"{key}: {without_credentials(location)}: credentials and parameters do not belong in a URL; give "
            "s3://bucket/prefix alone, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL (or what "
            "else its file system reads) as environment variables"
        )
    protocol, _, place = location.partition("://")
    if protocol in ("file", "local"):
        raise UserError(f"{key}: {location}: a folder is given as a path: {place}")
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}.get(protocol)
        install = f": pip install -e '.[{extra}]'" if extra else ""
        raise UserError(f"{key}: {location}: {protocol}:// cannot be used here ({error}){install}") from None
    return location.rstrip("/")


def is_url(location: str) -> bool:
    return "://" in location


def without_credentials(text: str) -> str:
    """A text whose URLs have lost what may be secret in them: all up to an @, and parameters."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(://[^\s?]*)\?[^\s\"')]*", r"\1?***", text)


def absolute(location: Location) -> Location:
    """What means the same in any process."""
    return location.absolute() if isinstance(location, pathlib.Path) else location


def folder_of(location: Location) -> str:
    """The name of the folder that a store is in: its harvest's."""
    return pathlib.PurePosixPath(absolute(location)).parent.name
