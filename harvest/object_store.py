"""Zarr's store on fsspec, whose failures are one line each."""

import contextlib
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fsspec
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore

from harvest.errors import UserError
from harvest.location import Location, without_credentials

OPTIONS = {"use_listings_cache": False}  # other processes write too


def zarr_store(location: Location) -> "pathlib.Path | UrlStore":
    """What Zarr opens: a folder as it is."""
    if isinstance(location, pathlib.Path):
        return location
    store = UrlStore.from_url(location, storage_options=OPTIONS)
    assert isinstance(store, UrlStore)
    return store


class UrlStore(FsspecStore):
    """Objects below a URL. A PUT is atomic, so each is either whole or not there."""

    @property
    def url(self) -> str:
        return f"{fsspec.utils.get_protocol(self.fs.unstrip_protocol(self.path))}://{self.path.strip('/')}"

    def has_nothing(self) -> bool:
        """Whether nothing is below the URL. Raises `UserError` where there is no such bucket, say."""
        fs, path = fsspec.url_to_fs(self.url, **OPTIONS)
        with self._failing("read"):
            try:
                return not fs.ls(path)
            except FileNotFoundError as error:
                if path in str(error):
                    return True
                raise

    async def get(self, *arguments: Any, **keywords: Any) -> Buffer | None:
        with self._failing("read"):
            return await super().get(*arguments, **keywords)

    async def set(self, *arguments: Any, **keywords: Any) -> None:
        with self._failing("written"):
            await super().set(*arguments, **keywords)

    async def exists(self, key: str) -> bool:
        with self._failing("read"):
            return await super().exists(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with self._failing("read"):
            async for key in super().list_dir(prefix):
                yield key

    @contextlib.contextmanager
    def _failing(self, done: str) -> Iterator[None]:
        """Every file system has errors of its own, and no base class is common to them."""
        try:
            yield
        except Exception as error:
            reason = without_credentials(str(error)) or type(error).__name__
            raise UserError(f"store {self.url}: cannot be {done} ({reason})") from None
