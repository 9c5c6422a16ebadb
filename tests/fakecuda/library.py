"""The library's functions, for Python; and the variables that say what the device is."""

import ctypes
import os

from tests.fakecuda import build

lib = ctypes.CDLL(str(build.library()), ctypes.RTLD_GLOBAL)  # loaded by hooks.py: this finds it
lib.fake_set_total.argtypes = [ctypes.c_int, ctypes.c_size_t]
lib.fake_seed.argtypes = [ctypes.c_int, ctypes.c_uint64]
lib.fake_allocated.restype = lib.fake_peak.restype = ctypes.c_size_t
lib.fake_last_copy.restype = ctypes.c_int64
lib.fake_arrive.argtypes = [ctypes.c_int64]
lib.fake_resize.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
lib.fake_collectives.argtypes = [ctypes.c_int64, ctypes.c_int64]


def setting(name: str, otherwise: str) -> str:
    """A variable of the environment, as __init__.py lists them."""
    return os.environ.get(f"FAKECUDA_{name}", otherwise)
