"""Buffers of a training step are used again, not given back."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_buffers() -> None:
    """Keep freed memory in the process, where the C library is glibc; elsewhere do nothing.

    By default every buffer above 32 MiB is mapped anew at each step and its pages are faulted in one by one: keeping
    them takes a step at 768 x 16,384 on two CPU cores from 0.80 s to 0.62 s. Peak memory stays what it was.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
