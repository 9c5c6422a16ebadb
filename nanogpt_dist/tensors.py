"""Named tensors to safetensors files and back, whole or each rank its parts, by the plans of torch's DCP.

A file holds {name: data}. Where data is but a part of a tensor, the header's metadata says so under "parts": JSON
{name: {"shape": of the whole, "offsets": of the part in each dimension}}. Any layout reads what any other wrote: the
planner finds which slices of which files make up what this rank holds. Nothing here needs a process group.

Source: torch.distributed.checkpoint (DefaultSavePlanner, DefaultLoadPlanner); its own storage writes pickles.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor

from nanogpt_dist.errors import BadDataError, StorageError
from nanogpt_dist.storage import free_bytes

PARTS = "parts"  # key in a file's metadata
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64}


@dataclass(frozen=True)
class Part:
    """A box of a tensor: `data` begins at `offsets` in the whole, which has `shape`."""

    data: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        return tuple(self.data.shape) == self.shape


def parts_to_write(
    tensors: Mapping[str, Tensor], leads: bool, copies: dict[str, Tensor] | None = None
) -> dict[str, Part]:
    """What this rank has to write of `tensors`, so that all ranks together write each element once.

    Of a sharded tensor: its own shard, if it is of the first copy. Of any other, all, if it `leads`.
    copies: tensors in CPU memory, by name, to hold the values as they are now; the missing ones are added.
    """
    mine = {name: tensor.detach() for name, tensor in tensors.items() if _is_mine(tensor, leads)}
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(mine, is_coordinator=leads)
    parts = {}
    for item in planner.create_local_plan().items:
        assert item.tensor_data is not None
        data = planner.resolve_data(item)
        assert isinstance(data, Tensor)
        name = item.index.fqn
        if copies is not None:
            data = _copied(data, copies, name)
        if data.numel():  # a short tensor leaves some ranks without a part
            parts[name] = Part(data, tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.size))
    if copies is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return parts


def _copied(data: Tensor, copies: dict[str, Tensor], name: str) -> Tensor:
    """`data` in CPU memory that is kept: fresh memory takes several times as long as the copy."""
    if name not in copies:
        copies[name] = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
    return copies[name].copy_(data, non_blocking=data.is_cuda)


def _is_mine(tensor: Tensor, leads: bool) -> bool:
    if not isinstance(tensor, DTensor):
        return leads
    where = tensor.device_mesh.get_coordinate() or ()
    return all(not place.is_replicate() or at == 0 for place, at in zip(tensor.placements, where, strict=True))


def write(path: Path, parts: Mapping[str, Part]) -> None:
    """Write `parts` as one file. Raises StorageError."""
    notes = {name: {"shape": part.shape, "offsets": part.offsets} for name, part in parts.items() if not part.is_whole}
    try:
        save_file(
            {name: part.data.contiguous() for name, part in parts.items()},
            path,
            metadata={PARTS: json.dumps(notes)} if notes else None,
        )
    except (SafetensorError, OSError) as error:
        needed = sum(part.data.numel() * part.data.element_size() for part in parts.values())
        free = free_bytes(path.parent)
        raise StorageError(f"cannot write {path.name}: {error}; needed {needed:,} bytes, free {free:,}") from error


def index(files: Iterable[Path]) -> Metadata:
    """What the files hold together, as DCP's Metadata; its storage_data tells the file of each part.

    Raises BadDataError where one is no safetensors file, or where the parts of a tensor do not make it up.
    """
    tensors: dict[str, TensorStorageMetadata] = {}
    where: dict[MetadataIndex, Path] = {}
    for path in files:
        for name, dtype, offsets, sizes, shape in _entries(path):
            known = tensors.setdefault(name, TensorStorageMetadata(TensorProperties(dtype=dtype), shape, []))
            if known.size != shape or known.properties.dtype != dtype:
                raise BadDataError(f"{path}: {name} is {list(shape)} {dtype}, elsewhere {list(known.size)}")
            known.chunks.append(ChunkStorageMetadata(offsets, sizes))
            where[MetadataIndex(name, offsets)] = path
    for name, known in tensors.items():
        elements = sum(math.prod(chunk.sizes) for chunk in known.chunks)
        distinct = len({tuple(chunk.offsets) for chunk in known.chunks}) == len(known.chunks)
        if elements != math.prod(known.size) or not distinct:
            raise BadDataError(f"the parts of {name} have {elements:,} elements, the whole {math.prod(known.size):,}")
    return Metadata(state_dict_metadata=dict(tensors), storage_data=where)


def _entries(path: Path) -> list[tuple[str, torch.dtype, torch.Size, torch.Size, torch.Size]]:
    """Name, dtype, offsets, sizes of the part and shape of the whole, for each entry of a file."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get(PARTS, "{}"))
            found = []
            for name in file.keys():  # noqa: SIM118
                entry = file.get_slice(name)
                sizes = torch.Size(entry.get_shape())
                note = notes.get(name, {"shape": sizes, "offsets": [0] * len(sizes)})
                offsets, shape = torch.Size(note["offsets"]), torch.Size(note["shape"])
                if len({len(offsets), len(sizes), len(shape)}) != 1 or any(
                    not 0 <= at <= at + size <= whole for at, size, whole in zip(offsets, sizes, shape, strict=True)
                ):
                    raise BadDataError(f"{path}: the part {list(offsets)} + {list(sizes)} of {name} is not within it")
                found.append((name, DTYPES[entry.get_dtype()], offsets, sizes, shape))
            return found
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadDataError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


def read_into(targets: Mapping[str, Tensor], stored: Metadata) -> None:
    """Fill `targets`, plain or sharded, with what `stored`, from index(), has under their names.

    Names and shapes have been compared. Raises BadDataError.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner({name: tensor.detach() for name, tensor in targets.items()}, stored, is_coordinator=False)
    by_file: dict[Path, list[Any]] = defaultdict(list)
    for item in planner.create_local_plan().items:
        by_file[stored.storage_data[item.storage_index]].append(item)
    for path, items in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for item in items:
                    box = [slice(at, at + n) for at, n in zip(item.storage_offsets, item.lengths, strict=True)]
                    name = item.storage_index.fqn
                    data = file.get_slice(name)[tuple(box)] if box else file.get_tensor(name)
                    planner.resolve_tensor(item).copy_(data)
        except (SafetensorError, OSError) as error:
            raise BadDataError(f"{path} cannot be read: {error}") from None
