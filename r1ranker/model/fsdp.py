"""FSDP2: sharding a model over the processes, and gathering it again parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from r1ranker.device import compute_dtype


def shard(model: nn.Module, layers: nn.ModuleList, device: torch.device, world_size: int, offload: bool) -> nn.Module:
    """Shard `model` in place over all processes, one unit a transformer block; returns it.

    On GPUs parameters are kept and reduced in float32 and computed with in bfloat16. `offload` keeps parameters,
    gradients and optimizer state in host memory between uses. Needs an initialised process group.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype(device), reduce_dtype=torch.float32)
    offload_policy = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)
    return model


def full_parameters(model: nn.Module, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Each parameter with its name, gathered whole on `device`, one at a time. Every process has to take part."""
    for name, parameter in model.named_parameters():
        yield name, full_tensor(parameter, device)


def full_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """The whole of a sharded tensor on `device`; a plain tensor as it is."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to(device).full_tensor()  # type: ignore[attr-defined]
