"""A trainer's state as sharded safetensors, by torch.distributed.checkpoint: no pickle, and
readable by another number of ranks than wrote it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from stages.ladd.parallel import rank_and_world

_MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 1 << 30
"""A file is put together in host memory before it is written, twice for a moment."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names its folder."""


def save_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors, each rank its shards. Every rank calls this, with a folder of its own or
    one for all.
    """
    writer = dcp.HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_files_of(tensors), save_distributed=True
    )
    with _quiet():
        dcp.save(tensors, storage_writer=writer, no_dist=_is_alone())


def _files_of(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The file of each tensor, numbered from 1: neighbours share one until it is full."""
    files, file, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes
        if filled and filled + size > _FILE_BYTES:
            file, filled = file + 1, 0
        files[name] = file
        filled += size
    return files


def names_in(folder: Path) -> set[str]:
    """Names of the tensors of a checkpoint. Raises CheckpointError when it cannot be read."""
    return set(_read(folder, lambda reader: reader.read_metadata().state_dict_metadata))


def load_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place, each with what has its name, cut as this rank holds it.

    Raises CheckpointError when the checkpoint lacks one, has it in another shape, or is damaged.
    """
    _read(folder, lambda reader: dcp.load(tensors, storage_reader=reader, no_dist=_is_alone()))


def _is_alone() -> bool:
    """Whether there is one rank, which then talks to nobody, not even to itself: the threads in
    which gloo does its work start teams of OpenMP's each, and libgomp, seeing more threads than
    cores, puts those of the training to sleep between two operations, for good.
    """
    return rank_and_world()[1] == 1


def _read(folder: Path, work: Any) -> Any:
    try:
        with _quiet():
            return work(dcp.HuggingFaceStorageReader(str(folder)))
    except (Exception, CheckpointException) as error:
        # torch wraps what its readers raise, safetensors' errors among them, into this kind of its
        # own, which is no Exception.
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"the checkpoint {folder} cannot be read ({reason[-1] if reason else error!r})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process alone saves or loads: that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def optimizer_tensors(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts by the names of their weights; empty before its first
    step.
    """
    tensors = {
        f"{name}.{key}": value
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    assert tensors or not optimizer.state, "the net shows other weights than the optimizer trains"
    return tensors


def begin_optimizer(net: nn.Module, optimizer: Optimizer, names: Collection[str]) -> None:
    """Give the optimizer empty moments for each weight that has its own among `names`, to be
    filled, and for no other.
    """
    optimizer.state.clear()  # a checkpoint that could not be read may have left some
    for name, parameter in net.named_parameters():
        if f"{name}.step" in names:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                **{key: torch.zeros_like(parameter) for key in _MOMENTS},
            }
