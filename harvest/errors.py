"""What a user did wrong, said in one line."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the key, the value and what would be right; it is one line, without a traceback."""


class NotKnown(UserError):  # noqa: N818
    """What can't be found out here and now, such as what lies on the Hub while that is out of reach."""


def main(app: Callable[[], None]) -> None:
    """Run a command line; a `UserError` becomes one line on stderr and exit status 2."""
    # Analysis and training never need the network, and model libraries must not phone home.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        app()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
