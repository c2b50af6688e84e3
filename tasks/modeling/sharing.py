"""What the processes of one training have in common: gradients and decisions in, the same for all of them out.

With `replicated` each process holds the whole model, unwrapped: some methods compute their loss beside the model's own
forward pass, where a wrapper would not see it. So gradients are summed here. With `fsdp2` each holds a share of every
weight (a DTensor), and PyTorch gathers and sums.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

BUCKET = 2**24


def select_device() -> None:
    """Make this process's GPU the current one, before anything is put on one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def start(precision: str) -> Any:
    """This process's accelerate.Accelerator; `precision` is no, bf16 or fp16."""
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerator = Accelerator(mixed_precision=precision)
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if sharded and accelerator.distributed_type is DistributedType.MULTI_CPU:
        # accelerate offers FSDP on GPUs only; PyTorch's own does the same on CPUs (docs/decisions/0012).
        plugin = FullyShardedDataParallelPlugin()
        if precision != "no":
            plugin.set_mixed_precision(precision)
        accelerator.state.fsdp_plugin = plugin
        # In both of accelerate's shared states: it copies the second into the first whenever it is asked for.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    return accelerator


def prepare(accelerator: Any, model: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Model and optimiser as this process trains them."""
    if accelerator.is_fsdp2:
        return tuple(accelerator.prepare(model, optimizer))
    if accelerator.num_processes > 1:
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.distributed.broadcast(parameter.data, 0)
    return model, accelerator.prepare(optimizer)


def share(accelerator: Any, items: Sequence[Any]) -> list[tuple[int, Any, float]]:
    """This process's items: number, item, weight.

    Where weights are shared out, every process has to take as many: one that has none left takes the first once more,
    with weight 0. There gradients are also averaged over processes, which a weight of their number makes a sum.

    >>> from types import SimpleNamespace
    >>> share(SimpleNamespace(is_fsdp2=False, process_index=1, num_processes=2), "abc")
    [(1, 'b', 1.0)]
    >>> share(SimpleNamespace(is_fsdp2=True, process_index=1, num_processes=2), "abc")
    [(1, 'b', 2.0), (0, 'a', 0.0)]
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    weight = float(processes) if accelerator.is_fsdp2 else 1.0
    mine = [(number, items[number], weight) for number in range(rank, len(items), processes)]
    if accelerator.is_fsdp2 and items:
        mine += [(0, items[0], 0.0)] * (-(-len(items) // processes) - len(mine))
    return mine


def sum_gradients(accelerator: Any, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum gradients over processes, in buckets; a parameter without one in every process stays without."""
    if accelerator.num_processes == 1 or accelerator.is_fsdp2:
        return
    there = torch.tensor([parameter.grad is not None for parameter in parameters], device=accelerator.device).float()
    there = accelerator.reduce(there, "sum")
    bucket: list[torch.Tensor] = []
    for parameter, processes in zip(parameters, there.tolist(), strict=True):
        if not processes:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and sum(grad.numel() for grad in bucket) + parameter.numel() > BUCKET:
            _sum(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum(bucket)


def _sum(tensors: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def largest(accelerator: Any, *numbers: float) -> list[float]:
    """For each number the largest among the processes: also how they agree on a yes that one of them says."""
    if accelerator.num_processes == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return list(tensor.tolist())


def whole(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Tensors on the CPU, none of them shared out; nothing for a process that does not keep them.

    Where some are shared out, all processes make this call, in the same order.
    """
    result = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            result[name] = full.cpu().contiguous()
    return result


def as_shared(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, shared out as another one of its shape is; as it was where that one is whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    here = tensor.to(like.device)
    # Every process has read the whole: none has to be told.
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
