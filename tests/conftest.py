"""What all tests share."""

import pytest
from hypothesis import settings

# The same examples every time, and no clock: a test fails for what the code does, not for how busy a machine is.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs, which take longest, come first: the last minutes of a run on several workers are shared by all."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)
