"""Named tensors to safetensors files and back, whole or each rank its parts.

A file holds {name: data}. Where data is but a part of a tensor, the header's metadata says so under
"parts": JSON {name: {"shape": of the whole, "offsets": of the part in each dimension}}. Parts are
boxes, and so is what a rank holds of a tensor: any layout reads what any other wrote, by cutting
the one with the other. Nothing here needs a group.

Source: torch.distributed.checkpoint (DCP) goes about it in the same way; its storage writes
pickles.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_dist.distributed.world import is_dtensor
from nanogpt_dist.errors import BadDataError, MissingInputError, StorageError
from nanogpt_dist.storage.durable import free_told, storage_errors, usual_mode

PARTS = "parts"  # key in a file's metadata
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "I64": torch.int64,
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A box of a tensor: `data` begins at `offsets` in the whole, which has `shape`."""

    data: Tensor
    offsets: Shape
    shape: Shape

    @property
    def is_whole(self) -> bool:
        return tuple(self.data.shape) == self.shape


@dataclass(frozen=True)
class StoredPart:
    """Where a box of a tensor lies."""

    path: Path
    offsets: Shape
    sizes: Shape


@dataclass(frozen=True)
class Stored:
    """A tensor in files, as parts that make it up."""

    dtype: torch.dtype
    shape: Shape
    parts: list[StoredPart]


def parts_to_write(
    tensors: Mapping[str, Tensor],
    is_rank0: bool,
    copies: dict[str, Tensor] | None = None,
) -> dict[str, Part]:
    """What this rank has to write of `tensors`, so that all ranks together write each element once.

    Of a sharded tensor: its own shard, if it is of the first copy. Of any other, all, if it
    `is_rank0`. copies: tensors in CPU memory, by name, to hold the values as they are now; the
    missing ones are added.
    """
    parts = {}
    for name, tensor in tensors.items():
        if not _is_mine(tensor, is_rank0):
            continue
        data, offsets = _held(tensor)
        if copies is not None:
            data = _copied(data, copies, name)
        if data.numel():  # a short tensor leaves some ranks without a part
            parts[name] = Part(data, offsets, tuple(tensor.shape))
    if copies is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return parts


def _copied(data: Tensor, copies: dict[str, Tensor], name: str) -> Tensor:
    """`data` in CPU memory that is kept: fresh memory takes several times as long as the copy."""
    if name not in copies:
        copies[name] = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
    return copies[name].copy_(data, non_blocking=data.is_cuda)


def _held(tensor: Tensor) -> tuple[Tensor, Shape]:
    """What this rank holds of a tensor, as it is in memory, and where in the whole that begins."""
    tensor = tensor.detach()
    if not is_dtensor(tensor):
        return tensor, (0,) * tensor.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tensor.to_local(), tuple(offsets)


def _is_mine(tensor: Tensor, is_rank0: bool) -> bool:
    if not is_dtensor(tensor):
        return is_rank0
    where = tensor.device_mesh.get_coordinate() or ()
    return all(
        not place.is_replicate() or at == 0
        for place, at in zip(tensor.placements, where, strict=True)
    )


def read_whole(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors that the files hold together, whole and in CPU memory. Raises BadDataError."""
    stored = index(files)
    tensors = {name: torch.empty(known.shape, dtype=known.dtype) for name, known in stored.items()}
    read_into(tensors, stored)
    return tensors


def whole_parts(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Each tensor as a part that is all of it."""
    return {
        name: Part(tensor, (0,) * tensor.ndim, tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def fill(target: Tensor, whole: Tensor) -> None:
    """Give `target`, plain or sharded, the values of `whole`, of which each rank takes its part."""
    held, begin = _held(target)
    held.copy_(
        whole[tuple(slice(at, at + size) for at, size in zip(begin, held.shape, strict=True))]
    )


def write(path: Path, parts: Mapping[str, Part], about: Mapping[str, str] | None = None) -> None:
    """Write `parts` as one file; about: more for its header. Raises StorageError."""
    notes = {
        name: {"shape": part.shape, "offsets": part.offsets}
        for name, part in parts.items()
        if not part.is_whole
    }
    try:
        mode = usual_mode(path)
        save_file(
            {name: part.data.contiguous() for name, part in parts.items()},
            path,
            metadata={**(about or {}), **({PARTS: json.dumps(notes)} if notes else {})} or None,
        )
        path.chmod(mode)
    except (SafetensorError, OSError) as error:
        needed = sum(part.data.numel() * part.data.element_size() for part in parts.values())
        raise StorageError(
            f"cannot write {path.name}: {error}; needed {needed:,} bytes, "
            f"{free_told(path.parent)} are free"
        ) from error


def index(files: Iterable[Path]) -> dict[str, Stored]:
    """What the files hold together, by name.

    Raises BadDataError where one is no safetensors file, or where the parts of a tensor do not make
    it up.
    """
    found: dict[str, Stored] = {}
    for path in files:
        for name, dtype, offsets, sizes, shape in _entries(path):
            known = found.setdefault(name, Stored(dtype, shape, []))
            if known.shape != shape or known.dtype != dtype:
                raise BadDataError(
                    f"{path}: {name} is {list(shape)} {dtype}, elsewhere {list(known.shape)}"
                )
            known.parts.append(StoredPart(path, offsets, sizes))
    for name, known in found.items():
        elements = sum(math.prod(part.sizes) for part in known.parts)
        if elements != math.prod(known.shape):
            raise BadDataError(
                f"the parts of {name} have {elements:,} elements, the whole "
                f"{math.prod(known.shape):,}"
            )
        _refuse_overlap(name, known.parts)
    return found


def _refuse_overlap(name: str, parts: list[StoredPart]) -> None:
    """Raise BadDataError where two parts share an element: another one would be in none."""
    ordered = sorted(parts, key=lambda part: part.offsets)
    for number, part in enumerate(ordered):
        for at in range(number + 1, len(ordered)):
            other = ordered[at]
            if other.offsets and other.offsets[0] >= part.offsets[0] + part.sizes[0]:
                break  # nor do those that follow begin in it
            sides = zip(part.offsets, part.sizes, other.offsets, other.sizes, strict=True)
            if all(max(a, b) < min(a + n, b + m) for a, n, b, m in sides):
                raise BadDataError(
                    f"{part.path}: its part of {name} overlaps that in {other.path.name}; use "
                    "another checkpoint"
                )


def _entries(path: Path) -> list[tuple[str, torch.dtype, Shape, Shape, Shape]]:
    """Name, dtype, offsets, sizes of the part and shape of the whole, for each entry of a file."""
    try:
        with _open(path) as file:
            notes = json.loads((file.metadata() or {}).get(PARTS, "{}"))
            found = []
            for name in file.keys():  # noqa: SIM118
                entry = file.get_slice(name)
                sizes = tuple(entry.get_shape())
                note = notes.get(name, {"shape": sizes, "offsets": [0] * len(sizes)})
                offsets, shape = (
                    tuple(torch.Size(note["offsets"])),
                    tuple(torch.Size(note["shape"])),
                )
                if len({len(offsets), len(sizes), len(shape)}) != 1 or any(
                    not 0 <= at <= at + size <= whole
                    for at, size, whole in zip(offsets, sizes, shape, strict=True)
                ):
                    raise BadDataError(
                        f"{path}: the part {list(offsets)} + {list(sizes)} of {name} is not within "
                        "it"
                    )
                found.append((name, DTYPES[entry.get_dtype()], offsets, sizes, shape))
            return found
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise BadDataError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading.

    Raises SafetensorError, MissingInputError, StorageError.
    """
    if not path.is_file():  # a pipe would block
        raise MissingInputError(f"{path} is missing; restore it, or use another checkpoint")
    with storage_errors(path), safe_open(path, framework="pt") as file:
        yield file


def read_into(targets: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    """Fill `targets`, plain or sharded, with what `stored`, from index(), has under their names.

    Names and shapes have been compared. Raises BadDataError.
    """
    wanted: dict[Path, list[tuple[str, tuple[slice, ...], Tensor]]] = defaultdict(list)
    for name, target in targets.items():
        held, begin = _held(target)
        for part in stored[name].parts:
            low = [max(ours, theirs) for ours, theirs in zip(begin, part.offsets, strict=True)]
            ends = zip(begin, held.shape, part.offsets, part.sizes, strict=True)
            high = [min(ours + n, theirs + m) for ours, n, theirs, m in ends]
            if all(a < b for a, b in zip(low, high, strict=True)):
                theirs = tuple(
                    slice(a - at, b - at) for a, b, at in zip(low, high, part.offsets, strict=True)
                )
                ours = tuple(
                    slice(a - at, b - at) for a, b, at in zip(low, high, begin, strict=True)
                )
                wanted[part.path].append((name, theirs, held[ours]))
    for path, boxes in wanted.items():
        try:
            with _open(path) as file:
                for name, box, place in boxes:
                    place.copy_(file.get_slice(name)[box] if box else file.get_tensor(name))
        except SafetensorError as error:
            raise BadDataError(f"{path} cannot be read: {error}") from None
