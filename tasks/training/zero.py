"""DeepSpeed's ZeRO as a strategy: optimiser state and gradients shared out (zero2), and the weights too (zero3).

The engine is driven directly. Accelerate's wrapper takes the optimiser's step inside the backward pass, before anyone
has looked at the loss, and offers DeepSpeed on GPUs only; the engine itself also runs over gloo.
"""

import json
from typing import Any

import torch

from tasks.modeling.methods import trainable
from tasks.recipe.stages import Strategy
from tasks.training.processes import DEPLOYMENTS
from tasks.training.strategies import Replicated

MOMENTS = ("exp_avg", "exp_avg_sq")


def configuration(strategy: Strategy, precision: str, limit: float) -> dict[str, Any]:
    """The file of `deployments/deepspeed/` for a strategy, with the values it leaves open ("auto") filled in."""
    content: dict[str, Any] = json.loads((DEPLOYMENTS / "deepspeed" / f"{strategy.value}.json").read_text("utf-8"))
    return content | {
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "gradient_clipping": limit,
    }


class Zero(Replicated):
    """Each process steps a share of the weights, in fp32; in bf16 and fp16 the engine computes with a copy."""

    is_sharded = True

    def __init__(self, precision: str, strategy: Strategy) -> None:
        # The engine sets the number format by itself: no autocast, no scaling of the loss here.
        super().__init__("no")
        self.precision, self.strategy = precision, strategy

    @property
    def plain(self) -> Any:
        return self.model.module

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer, limit: float) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        # An operator for inference that would be compiled, for a minute, and that no training calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._groups = optimizer.state_dict()["param_groups"]
        rounds = self.precision != "no"
        exact = {name: value.detach().clone() for name, value in trainable(model).items()} if rounds else {}
        told = configuration(self.strategy, self.precision, limit)
        self.model, self.optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=told)
        moving = trainable(self.plain)
        self.parameters = list(moving.values())
        for name, value in exact.items():
            # The engine makes its fp32 weights from the rounded ones.
            safe_set_full_fp32_param(moving[name], value)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.model.set_gradient_accumulation_boundary(last)
        self.model.backward(loss)

    def step(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.step()
        self.skipped = not self.model.was_step_applied()
        return float(self.model.get_global_grad_norm())

    def weights(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        moving = trainable(self.plain).items()
        return self._whole({name: safe_get_full_fp32_param(parameter) for name, parameter in moving})

    def optimizer_state(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        steps: torch.Tensor = next(iter(self.optimizer.optimizer.state.values()))["step"]
        state = {}
        for number, parameter in enumerate(self.parameters):
            moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            # A tensor each: one that all share would be counted up once for each parameter after loading.
            state[number] = self._whole({"step": steps.clone(), **moments})
        return {"state": state, "param_groups": self._groups}

    def load_optimizer_state(self, content: dict[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        # The engine has no moments before its first step, and no way to be given some: they are made here.
        state, steps = self.optimizer.optimizer.state, max(entries["step"] for entries in content["state"].values())
        for share in self._shares():
            state[share] = {"step": steps.clone(), **{name: torch.zeros_like(share) for name in MOMENTS}}
        if self.strategy is Strategy.zero2:
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for number, entries in content["state"].items():
            for name in MOMENTS:
                value = entries[name].to(self.accelerator.device)
                safe_set_full_optimizer_state(self.parameters[number], value, name)

    def _shares(self) -> list[torch.Tensor]:
        """This process's fp32 weights, flat, as the optimiser sees them."""
        if self.strategy is Strategy.zero2:
            return list(self.optimizer.single_partition_of_fp32_groups)
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def release(self) -> None:
        self.model.destroy()
        super().release()
