"""What all tests share."""

import pytest
from hypothesis import settings

# The same examples every time, and no clock: a test fails for what the code does, not for how busy a machine is.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


LONGEST = ("workflow", "test_object_storage.py", "test_ranks.py", "test_resume.py", "test_pages.py")
"""Folders and files whose tests start many processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: the last minutes of a run on several workers are shared by all."""
    places = {part: place for place, part in enumerate(LONGEST)}
    items.sort(key=lambda item: min(places.get(part, len(LONGEST)) for part in item.path.parts))
