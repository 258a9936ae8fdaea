"""A server that speaks S3, in a process of its own on this machine."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

KEY, SECRET = "AKIDOFNOBODY", "key/that+nobody=may-see"


@contextlib.contextmanager
def moto_server() -> Iterator[dict[str, str]]:
    """The environment variables with which its bucket `bucket` can be used; every other that S3 has is empty.

    Skips the test where moto is not installed.
    """
    for package in ("moto", "flask_cors", "s3fs"):
        pytest.importorskip(package, reason=f"S3 needs the package {package}: pip install -e '.[test]'")
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = iter(process.stderr.readline, "")
        endpoint = next(found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        # Nobody reads on, and a full pipe would stop the server.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        with using(variables):
            import s3fs

            s3fs.S3FileSystem().mkdir("bucket")
        yield variables
    finally:
        process.kill()
        process.wait()
        drain.wait()


@contextlib.contextmanager
def using(variables: dict[str, str]) -> Iterator[None]:
    """These environment variables, and no connection that was made with others."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        s3fs.S3FileSystem.clear_instance_cache()


def objects(prefix: str) -> dict[str, bytes]:
    """Every object below a URL without `s3://`."""
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    return {path.removeprefix(f"{prefix}/"): fs.cat_file(path) for path in fs.find(prefix)}
