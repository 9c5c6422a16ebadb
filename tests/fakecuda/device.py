"""torch.cuda over the library: devices, streams, events, memory, compilation.

A CPU build of torch has torch.cuda's functions, but not what they call. All of them that the
program or torch itself needs are replaced here, as one table.
"""

import ctypes
import functools
import json
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.cuda

from tests.fakecuda import graphs, record
from tests.fakecuda.library import lib, setting

Device = torch.device | int | str | None


def count() -> int:
    """The number of devices."""
    return int(setting("COUNT", "8"))


def memory_bytes(index: int) -> int:
    """The memory of a device; where the setting lists less than there are, its last one's."""
    sizes = setting("MEMORY", "80e9").split(",")
    return int(float(sizes[min(index, len(sizes) - 1)]))


def index_of(device: Device) -> int:
    """Its number; None: the current device's."""
    if device is None:
        return lib.fake_current_device()
    index = device if isinstance(device, int) else torch.device(device).index
    return lib.fake_current_device() if index is None else index


def set_device(device: Device) -> None:
    index = index_of(device)
    if not 0 <= index < count():
        raise RuntimeError("CUDA error: invalid device ordinal")
    lib.fake_set_device(index)


def exchange_device(index: int) -> int:
    before = lib.fake_current_device()
    if index >= 0:
        set_device(index)
    return before


class CurrentDevice:
    """torch.cuda.device: the current device within a block."""

    def __init__(self, device: Device) -> None:
        self.idx = index_of(device)

    def __enter__(self) -> None:
        self.before = exchange_device(self.idx)

    def __exit__(self, *error: object) -> None:
        set_device(self.before)


# --- waiting ------------------------------------------------------------------------------------


def _wait(what: str, up_to: int) -> None:
    record.note("sync", what, waits=True, device=lib.fake_current_device())
    lib.fake_wait_if_stuck()
    lib.fake_arrive(up_to)


def synchronize(device: Device = None) -> None:
    _wait("synchronize", lib.fake_last_copy())


class Event:
    """Reached when it is waited for, or asked often enough: FAKECUDA_QUERIES times in vain."""

    def __init__(self, enable_timing: bool = False, *_: object, **__: object) -> None:
        self.enable_timing = enable_timing
        self.recorded: float | None = None
        self.queries = 0
        self.up_to = 0  # the copies that were begun before it

    def record(self, stream: "Stream | None" = None) -> None:
        self.recorded, self.queries = time.perf_counter(), 0
        self.up_to = lib.fake_last_copy()

    def query(self) -> bool:
        record.note("query", "event")
        if self.recorded is None:
            return True
        self.queries += 1
        if lib.fake_is_stuck() or self.queries <= int(setting("QUERIES", "1")):
            return False
        lib.fake_arrive(self.up_to)
        return True

    def synchronize(self) -> None:
        if self.recorded is not None:
            _wait("event.synchronize", self.up_to)

    def wait(self, stream: "Stream | None" = None) -> None:
        """A stream waits, not the host."""

    def elapsed_time(self, end: "Event") -> float:
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.recorded is None or end.recorded is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return 1e3 * (end.recorded - self.recorded)


streams = threading.local()  # .current: the innermost that this thread entered


class Stream:
    """All work is done as it is begun: a stream is a name."""

    device_type = 1
    cuda_stream = 0

    def __init__(self, device: Device = None, priority: int = 0, **_: object) -> None:
        self.device_index = index_of(device)
        self.device = torch.device("cuda", self.device_index)
        self.priority = priority
        self.stream_id = id(self)

    def wait_stream(self, other: "Stream") -> None:
        """It waits, not the host."""

    def wait_event(self, event: Event) -> None:
        """It waits, not the host."""

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        record.note("query", "stream")
        return not lib.fake_is_stuck()

    def synchronize(self) -> None:
        _wait("stream.synchronize", lib.fake_last_copy())

    def __enter__(self) -> "Stream":
        record.note("stream", hex(self.stream_id), device=self.device_index)
        self._before = getattr(streams, "current", None)
        streams.current = self
        return self

    def __exit__(self, *error: object) -> None:
        streams.current = self._before


@functools.cache
def default_stream(index: int) -> Stream:
    return Stream(index)


def current_stream(device: Device = None) -> Stream:
    return getattr(streams, "current", None) or default_stream(index_of(device))


class StreamContext:
    """torch.cuda.stream(): within a stream, or none."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            self.stream.__exit__(*error)


def set_stream(entered: Stream) -> None:
    streams.current = entered


SYNC_DEBUG_MODES = {"default": 0, "warn": 1, "error": 2}
sync_debug_mode = 0


def set_sync_debug_mode(mode: int | str) -> None:
    global sync_debug_mode
    sync_debug_mode = SYNC_DEBUG_MODES[mode] if isinstance(mode, str) else mode
    lib.fake_sync_debug_mode(sync_debug_mode)


# --- properties and memory ----------------------------------------------------------------------


def capability() -> tuple[int, int]:
    major, minor = setting("CAPABILITY", "9.0").split(".")
    return int(major), int(minor)


def properties(device: Device = None) -> types.SimpleNamespace:
    major, minor = capability()
    return types.SimpleNamespace(
        name=setting("NAME", "NVIDIA H100 80GB HBM3"),
        total_memory=memory_bytes(index_of(device)),
        major=major,
        minor=minor,
        multi_processor_count=132,
        warp_size=32,
        gcnArchName="",
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        shared_memory_per_block_optin=232448,
        L2_cache_size=50 * 2**20,
    )


def memory_stats(device: Device = None) -> dict[str, Any]:
    now, peak = lib.fake_allocated(index_of(device)), lib.fake_peak(index_of(device))
    return {
        f"{name}.all.{key}": value
        for name in ("allocated_bytes", "reserved_bytes", "active_bytes")
        for key, value in (("current", now), ("peak", peak))
    } | {"num_ooms": 0, "num_alloc_retries": 0}


def resize_storage(self: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
    """UntypedStorage.resize_, which asks CUDA's own allocator, and is not in a CPU build."""
    if self.device.type != "cuda":
        return cpu_resize(self, size)
    if lib.fake_resize(self._cdata, size):
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
    return self


cpu_resize = torch.UntypedStorage.resize_


# --- torch.compile ------------------------------------------------------------------------------


def compile(model: Any = None, **options: Any) -> Any:
    """torch.compile with the backend of FAKECUDA_COMPILE; what was asked for goes to the record."""
    if model is None:
        return lambda model: compile(model, **options)
    record.note("compile", json.dumps(options, default=str))
    options.pop("mode", None)
    options.pop("options", None)
    return real_compile(model, **{**options, "backend": setting("COMPILE", "eager")})


real_compile = torch.compile


def default_generators() -> tuple[torch.Generator, ...]:
    """The devices' own, by which fork_rng() and activation checkpointing keep the state."""
    found = []
    for index in range(count()):
        lib.fake_next_generator_is_default()
        found.append(torch.Generator(f"cuda:{index}"))
    return tuple(found)


def manual_seed(seed: int) -> None:
    lib.fake_seed(lib.fake_current_device(), seed % 2**64)


def manual_seed_all(seed: int) -> None:
    for index in range(count()):
        lib.fake_seed(index, seed % 2**64)


def _table() -> dict[str, object]:
    """torch.cuda's functions."""

    def always(value: object) -> Callable[..., object]:
        return lambda *_, **__: value

    return {
        "is_available": always(True),
        "_is_compiled": always(True),
        "is_initialized": always(True),
        "init": always(None),
        "_lazy_init": always(None),
        "_is_in_bad_fork": always(False),
        "device_count": count,
        "set_device": set_device,
        "current_device": lambda: lib.fake_current_device(),
        "device": CurrentDevice,
        "_exchange_device": lambda index: exchange_device(index),
        "_maybe_exchange_device": lambda index: exchange_device(index),
        "get_device_name": lambda device=None: properties(device).name,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: capability(),
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or capability() >= (8, 0)
        ),
        "is_tf32_supported": lambda: capability() >= (8, 0),
        "get_arch_list": always(["sm_90"]),
        "synchronize": synchronize,
        "Event": Event,
        "Stream": Stream,
        "stream": lambda stream: StreamContext(stream),
        "StreamContext": StreamContext,
        "set_stream": set_stream,
        "current_stream": current_stream,
        "default_stream": lambda device=None: default_stream(index_of(device)),
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: sync_debug_mode,
        "memory_stats": memory_stats,
        "memory_allocated": lambda device=None: lib.fake_allocated(index_of(device)),
        "max_memory_allocated": lambda device=None: lib.fake_peak(index_of(device)),
        "memory_reserved": lambda device=None: lib.fake_allocated(index_of(device)),
        "max_memory_reserved": lambda device=None: lib.fake_peak(index_of(device)),
        "reset_peak_memory_stats": lambda device=None: lib.fake_reset_peak(index_of(device)),
        "mem_get_info": lambda device=None: (
            memory_bytes(index_of(device)) - lib.fake_allocated(index_of(device)),
            memory_bytes(index_of(device)),
        ),
        "empty_cache": always(None),
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed_all,
        "is_current_stream_capturing": lambda: graphs.capturing() is not None,
        "CUDAGraph": graphs.CUDAGraph,
        "graph": graphs.graph,
        "graph_pool_handle": always((0, 0)),
    }


def configure() -> None:
    """Read anew what the environment says of the devices."""
    lib.fake_set_devices(count())
    for index in range(count()):
        lib.fake_set_total(index, memory_bytes(index))
    lib.fake_collectives(600_000, int(1e3 * float(setting("PATIENCE_S", "0"))))
    torch.cuda.default_generators = default_generators()  # type: ignore[assignment]


def install() -> None:
    """Put all of it in torch's place."""
    configure()
    lib.fake_listen(LISTENER)
    for name, value in _table().items():
        setattr(torch.cuda, name, value)
    for name in ("memory_allocated", "max_memory_allocated", "memory_stats", "mem_get_info"):
        setattr(torch.cuda.memory, name, getattr(torch.cuda, name))
    # a function of its own for each name: torch._dynamo has rules for them
    low = {
        "_cuda_init": lambda: None,
        "_cuda_getDevice": lambda: lib.fake_current_device(),
        "_cuda_setDevice": lambda index: set_device(index),
        "_cuda_exchangeDevice": lambda index: exchange_device(index),
        "_cuda_maybeExchangeDevice": lambda index: exchange_device(index),
        "_cuda_getDeviceCount": lambda: count(),
        "_cuda_getCurrentRawStream": lambda device: 0,
        "_cuda_isCurrentStreamCapturing": lambda: graphs.capturing() is not None,
        "_cuda_synchronize": lambda: synchronize(),
    }
    for name, value in low.items():
        setattr(torch._C, name, value)
    torch.backends.cuda.is_built = lambda: True
    torch.UntypedStorage.resize_ = resize_storage  # type: ignore[assignment, method-assign]
    torch.compile = compile  # type: ignore[assignment]
    # Inductor's graphs, of which there are none
    torch.compiler.cudagraph_mark_step_begin = lambda: None


def _hear(
    kind: bytes, what: bytes, size: int, contiguous: int, pinned: int, waits: int, device: int
) -> None:
    record.note(
        kind.decode(),
        what.decode(),
        size,
        bool(contiguous),
        bool(pinned),
        bool(waits),
        device,
    )


LISTENER = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
)(_hear)
