"""What all tests share."""

from hypothesis import settings

# The same examples every time, and no clock: a test fails for what the code does, not for how busy a machine is.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
