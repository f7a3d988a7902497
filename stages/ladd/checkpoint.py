"""A trainer's state as sharded safetensors, through torch.distributed.checkpoint: no pickle, and
readable by a different number of ranks than wrote it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from stages.ladd.parallel import rank_and_world

_MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 1 << 30
"""Target size of a file. It is assembled in host memory, briefly twice, before it is written."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names its folder."""


def save_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors; each rank writes its own shards. Every rank calls this, with either its
    own folder or one shared folder.
    """
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_files_of(tensors), save_distributed=True
    )
    with _quiet():
        save(tensors, storage_writer=writer, no_dist=_is_alone())


def _files_of(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The file number of each tensor, from 1: consecutive tensors share a file until it is full."""
    files, file, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes
        if filled and filled + size > _FILE_BYTES:
            file, filled = file + 1, 0
        files[name] = file
        filled += size
    return files


def names_in(folder: Path) -> set[str]:
    """Names of the tensors in a checkpoint. Raises CheckpointError when it cannot be read."""
    return set(_read(folder, lambda reader: reader.read_metadata().state_dict_metadata))


def load_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place by name, each with the shard that this rank holds.

    Raises CheckpointError when the checkpoint lacks a tensor, has it in another shape, or is
    damaged.
    """
    _read(folder, lambda reader: load(tensors, storage_reader=reader, no_dist=_is_alone()))


def _is_alone() -> bool:
    """Whether there is only one rank, which then must not use collectives, not even with itself.

    Each gloo worker thread starts an OpenMP team. libgomp then sees more threads than cores, and
    from then on puts the training's threads to sleep between operations.
    """
    return rank_and_world()[1] == 1


def _read(folder: Path, work: Any) -> Any:
    try:
        with _quiet(), _without_strangers(folder) as own:
            return work(HuggingFaceStorageReader(str(own)))
    except (Exception, CheckpointException) as error:
        # torch wraps its readers' errors, safetensors errors included, in CheckpointException,
        # which does not derive from Exception.
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"the checkpoint {folder} cannot be read ({reason[-1] if reason else error!r})"
        ) from error


@contextmanager
def _without_strangers(folder: Path) -> Iterator[Path]:
    """Give the folder, or one of links to its files without what systems put beside them
    (`._model.safetensors`): torch's reader opens whatever ends like a file of ours.
    """
    paths = list(folder.iterdir())
    if not any(path.name.startswith("._") for path in paths):
        yield folder
        return
    with tempfile.TemporaryDirectory() as links:
        for path in paths:
            if not path.name.startswith("._"):
                (Path(links) / path.name).symlink_to(path.absolute())
        yield Path(links)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warning about a single process that saves or loads: this is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def optimizer_tensors(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, keyed by weight name; empty before the first step. Moments
    in 8 bits are their codes, scales and table.
    """
    tensors = {
        name: tensor
        for weight, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        for name, tensor in _parts(f"{weight}.{key}", value)
    }
    assert tensors or not optimizer.state, "the optimizer trains weights that are not of this net"
    return tensors


def _parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor itself, or the plain tensors that a quantised one consists of."""
    local = value.to_local() if isinstance(value, DTensor) else value
    if not is_traceable_wrapper_subclass(local):
        yield name, value
        return
    attributes, _ = local.__tensor_flatten__()
    for attribute in attributes:
        yield f"{name}.{attribute}", getattr(local, attribute)


def begin_optimizer(net: nn.Module, optimizer: Optimizer, names: Collection[str]) -> None:
    """Give the optimizer zero moments, for `load_tensors` to fill, for each weight that has moments
    among `names`, and for no other weight.
    """
    optimizer.state.clear()  # a failed load may have left some state
    for name, parameter in net.named_parameters():
        if f"{name}.step" not in names:
            continue
        if isinstance(optimizer, torch.optim.AdamW):
            state = {
                "step": torch.zeros((), device=parameter.device),
                **{key: torch.zeros_like(parameter) for key in _MOMENTS},
            }
        else:
            new_buffer: Any = optimizer._new_buffer  # type: ignore[attr-defined]  # torchao's
            state = {
                "step": torch.zeros(()),
                **{key: new_buffer(parameter, signed=key == "exp_avg") for key in _MOMENTS},
            }
        optimizer.state[parameter] = state
