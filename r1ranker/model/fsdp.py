"""FSDP2: sharding a model over the processes, and gathering it again parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

Item = TypeVar("Item")


def shard(
    model: nn.Module, layers: nn.ModuleList, device: torch.device, world_size: int, offload: bool, dtype: torch.dtype
) -> nn.Module:
    """Shard `model` in place over all processes, one unit a transformer block; returns it.

    Parameters are kept in the type they have, computed with in `dtype`, and their gradients reduced in float32. `offload`
    keeps parameters, gradients and optimizer state in host memory between uses. Needs an initialised process group.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    # host memory can be pinned where there is a GPU to copy to
    offload_policy = CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else OffloadPolicy()
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)
    return model


def reshard(model: nn.Module) -> None:
    """Give gathered parameters back after passes without gradients.

    By itself FSDP2 leaves those outside the blocks gathered, in the type computed with: they would take memory, and be
    saved in place of the sharded ones.
    """
    assert isinstance(model, FSDPModule)
    model.reshard()


def each_micro_batch(model: nn.Module, bins: Sequence[Item], sum_whole: bool) -> Iterator[Item]:
    """The micro-batches of a mini-batch, each to be taken through a backward pass before the next.

    `sum_whole`: their gradients are added up whole, in float32, where they are computed, and are sharded and offloaded with
    the last one; else with each.
    """
    assert isinstance(model, FSDPModule)
    for place, one in enumerate(bins, 1):
        if sum_whole:
            model.set_requires_gradient_sync(place == len(bins))
        yield one


def gather_parameters(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter with its name, gathered whole on `device`, one at a time. Every process has to take part.

    With `dtype` the shards are converted before they are gathered.
    """
    for name, parameter in model.named_parameters():
        yield name, full_tensor(parameter, device, dtype)


def full_tensor(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The whole of a sharded tensor on `device`; a plain tensor where it is."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.to(dtype=dtype)
    if tensor.device_mesh.size() == 1:  # gathering alone takes as long as copying
        return tensor.to_local().to(device, dtype)
    return tensor.to(device, dtype).full_tensor()  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> tuple[Tensor, int]:
    """(this process's rows of a tensor sharded by them, the first of them); of a plain tensor all."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    local = tensor.to_local()
    mesh = tensor.device_mesh
    share = -(-tensor.shape[0] // mesh.size())  # as torch.chunk deals rows
    first = min(mesh.get_local_rank() * share, tensor.shape[0])
    assert len(local) == min(share, tensor.shape[0] - first)
    return local, first
