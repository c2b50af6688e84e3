"""What the processes of one training have in common: gradients and decisions in, the same for all of them out.

A strategy takes over model and optimiser. `Replicated` leaves the whole model in each process, unwrapped: some methods
compute their loss beside the model's own forward pass, where a wrapper would not see it. So gradients are summed here.
With `Fsdp2` each holds a share of every weight (a DTensor), and PyTorch gathers and sums; `zero.Zero` is DeepSpeed.
Whatever the strategy, what it hands out for a checkpoint is whole, and the same as one process would hand out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from tasks.modeling.methods import trainable

BUCKET = 2**24


class Replicated:
    """Each process holds all there is; also the strategy of one process alone."""

    is_sharded = False
    skipped = False
    """Whether the last step was not taken, because its gradients overflowed fp16."""
    model: Any
    optimizer: Any
    parameters: list[torch.nn.Parameter]
    limit: float

    def __init__(self, precision: str) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(mixed_precision=precision)

    @property
    def plain(self) -> Any:
        """The model without any wrapping."""
        return self.accelerator.unwrap_model(self.model)

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer, limit: float) -> None:
        """Take over model and optimiser; gradients are clipped to the norm `limit`, 0 for not at all."""
        self.limit = limit
        self.parameters = list(trainable(model).values())
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                torch.distributed.broadcast(parameter.data, 0)
        self.model, self.optimizer = model, self.accelerator.prepare(optimizer)

    def turns(self, items: Sequence[Any]) -> list[tuple[int, Any, float]]:
        """This process's items: number, item, weight.

        Where weights are shared out, every process has to take as many: one that has none left takes the first once
        more, with weight 0. There gradients are also averaged over processes, which a weight of their number makes a
        sum.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        return turns(items, rank, processes, self.is_sharded)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add a loss's gradients to those of the step; `last` says that no more will come before `step`."""
        del last
        self.accelerator.backward(loss)

    def step(self, rate: float) -> float:
        """One step of the optimiser at a learning rate; the norm of the gradients before they were clipped."""
        self._sum_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.limit or float("inf"))
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler else 0.0
        self.optimizer.step()
        if scaler:
            # Not accelerate's own word for it: a fused optimiser is called also for a step that it then leaves out.
            self.skipped = bool(*self.largest(scaler.get_scale() < scale))
        self.optimizer.zero_grad()
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _sum_gradients(self) -> None:
        """Sum over processes, in buckets; a parameter without a gradient in every process stays without."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return
        there = torch.tensor([one.grad is not None for one in self.parameters], device=accelerator.device).float()
        there = accelerator.reduce(there, "sum")
        bucket: list[torch.Tensor] = []
        for parameter, processes in zip(self.parameters, there.tolist(), strict=True):
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

    def largest(self, *numbers: float) -> list[float]:
        """For each number the largest among the processes: also how they agree on a yes that one of them says."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return list(tensor.tolist())

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters that move, by name, whole and on the CPU; nothing for a process that is not the first.

        Every process makes this call, and the next: where tensors are shared out, all of them give their part.
        """
        return self._whole({name: parameter.detach() for name, parameter in trainable(self.plain).items()})

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's `state_dict`, its tensors as those of `weights`."""
        content = self.optimizer.state_dict()
        return {**content, "state": {number: self._whole(entries) for number, entries in content["state"].items()}}

    def load_optimizer_state(self, content: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave, with any strategy."""
        for number, entries in content["state"].items():
            entries.update({name: as_shared(value, self.parameters[number]) for name, value in entries.items()})
        self.optimizer.load_state_dict(content)

    def _whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.accelerator.is_main_process:
                result[name] = full.cpu().contiguous()
        return result

    def release(self) -> None:
        """Let go of model and optimiser."""
        self.model = self.optimizer = None
        self.parameters = []
        self.accelerator.free_memory()


class Fsdp2(Replicated):
    """Each process holds a share of weights, gradients and optimiser state: PyTorch's fully_shard."""

    is_sharded = True

    def __init__(self, precision: str) -> None:
        from accelerate import PartialState
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        super().__init__(precision)
        state = self.accelerator.state
        if state.distributed_type is DistributedType.MULTI_CPU:
            # accelerate offers FSDP on GPUs only; PyTorch's own does the same on CPUs (docs/decisions/0012).
            plugin = FullyShardedDataParallelPlugin()
            if precision != "no":
                plugin.set_mixed_precision(precision)
            state.fsdp_plugin = plugin
            # In both of accelerate's shared states: it copies the second into the first whenever it is asked for.
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer, limit: float) -> None:
        self.limit = limit
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.parameters = list(trainable(self.model).values())

    def _sum_gradients(self) -> None:
        """PyTorch has done it."""


def turns(items: Sequence[Any], rank: int, processes: int, is_sharded: bool) -> list[tuple[int, Any, float]]:
    """What `Replicated.turns` gives process `rank` of `processes`.

    >>> turns("abc", 1, 2, is_sharded=False)
    [(1, 'b', 1.0)]
    >>> turns("abc", 1, 2, is_sharded=True)
    [(1, 'b', 2.0), (0, 'a', 0.0)]
    """
    weight = float(processes) if is_sharded else 1.0
    mine = [(number, items[number], weight) for number in range(rank, len(items), processes)]
    if is_sharded and items:
        mine += [(0, items[0], 0.0)] * (-(-len(items) // processes) - len(mine))
    return mine


def _sum(tensors: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def as_shared(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, shared out as another one of its shape is; as it was where that one is whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    here = tensor.to(like.device)
    # Every process has read the whole: none has to be told.
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
