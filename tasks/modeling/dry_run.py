"""A model's shape and a pack's in, the most bytes one training step holds out: the step itself, run without numbers.

Everything happens on torch's meta device: tensors have shapes and storages but no bytes. So the loss, PEFT's layers,
gradient checkpointing and autograd are the very ones that train, and a 7B model is walked through in seconds on a
laptop. Three things are stand-ins, because they have no form without numbers: quantised layers, attention kernels and
autocast; each says below what it keeps.
"""

import weakref
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from tasks.modeling.losses import pack_loss
from tasks.modeling.packs import Pack, collate
from tasks.prompts import IGNORED

META = torch.device("meta")
MOMENTS = 2
"""Copies of a moving weight that AdamW keeps."""
PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes held by the storages that are alive, by what they are for; `peak` is what was held when it was the most."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.kinds: dict[int, tuple[int, str]] = {}
        self.now: Counter[str] = Counter()
        self.most = 0
        self.peak: Counter[str] = Counter()
        self.operations = 0

    def hold(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage under a kind, or move it there."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.kinds:
            self.now[self.kinds[key][1]] -= size
        else:
            weakref.finalize(storage, self._release, key)
        self.kinds[key] = (size, kind)
        self.now[kind] += size
        self._look()

    def expect(self, kind: str, size: int) -> None:
        """Bytes that are held from here on and belong to no tensor of this run."""
        self.now[kind] += size
        self._look()

    def _look(self) -> None:
        total = self.now.total()
        if total > self.most:
            self.most, self.peak = total, self.now.copy()

    def _release(self, key: int) -> None:
        size, kind = self.kinds.pop(key)
        self.now[kind] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # transformers asks whether positions start anew inside the sequence; the answer changes no size.
            return True
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(getattr(func, "overloadpacket", None)):
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.kinds:
                wide = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
                self.hold(tensor, "logits" if wide else "activations")
        return result


class _Attention(torch.autograd.Function):
    """A fused kernel: keeps query, key, value, its result and one number a row, and no scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, result, rows)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        del gradients
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class Kernels(TorchFunctionMode):
    """Fused kernels and autocast's casts around matrix products, which exist for real devices only."""

    def __init__(self, products: torch.dtype, gpu: bool) -> None:
        self.products, self.gpu = products, gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*map(self._cast, args[:3]))  # type: ignore[no-untyped-call]
        if func is torch.nn.functional.dropout and self.gpu:
            # There a byte says what was dropped, on a processor a number of the input's format.
            return torch.native_dropout(args[0], kwargs.get("p", 0.5), kwargs.get("training", True))[0]
        if func in PRODUCTS:
            args = tuple(self._cast(tensor) for tensor in args)
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        narrow = self.products is not torch.float32 and isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self.products) if narrow else value


class _Product(torch.autograd.Function):
    """A quantised layer's product: its weight is unpacked for the moment; 8 bits keep the input (bitsandbytes does)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, rows: int, keeps_input: bool) -> torch.Tensor:
        ctx.weight, ctx.kept = (rows, inputs.shape[-1]), inputs if keeps_input else None
        return inputs @ torch.empty(ctx.weight, dtype=inputs.dtype, device=META).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        return gradient @ torch.empty(ctx.weight, dtype=gradient.dtype, device=META), None, None


class Quantised(torch.nn.Linear):
    """A linear layer whose weight is packed into `size` bytes."""

    def __init__(self, plain: torch.nn.Linear, size: int, keeps_input: bool) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device=META)
        self.bias, self.keeps_input = plain.bias, keeps_input
        self.weight = torch.nn.Parameter(torch.empty(size, dtype=torch.int8, device=META), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product, in the number format of the input."""
        return _Product.apply(input, self.out_features, self.keeps_input)  # type: ignore[no-untyped-call]


def pack_of(tokens: int, labels: int, documents: int) -> Pack:
    """A pack of this many tokens, the last tokens of each document labelled; without bytes."""
    documents = max(1, min(documents, tokens))
    lengths = [tokens // documents + (number < tokens % documents) for number in range(documents)]
    counts = [labels // documents + (number < labels % documents) for number in range(documents)]
    rows = [
        ([0] * length, [IGNORED] * (length - count) + [0] * count)
        for length, count in zip(lengths, counts, strict=True)
    ]
    return collate(rows).to(META)


def step(model: Any, pack: Pack, products: torch.dtype, gpu: bool) -> tuple[Counter[str], int]:
    """Bytes by kind at the fullest moment of a step that is not the first, and the operations of its matrix products.

    Kinds: `weights` that stay, `moving` ones, `gradients`, `optimiser`, `logits`, and `activations`, which is the rest.
    `model` is on the meta device and in training mode; its products are computed in `products`. AdamW copies one
    parameter at a time on a processor, and none on a GPU.
    """
    live = Live(model.config.vocab_size)
    for tensor in (*model.parameters(), *model.buffers()):
        live.hold(tensor, "weights")
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in moving:
        live.hold(parameter, "moving")
        parameter.register_post_accumulate_grad_hook(lambda done: live.hold(done.grad, "gradients"))
    sizes = [parameter.numel() * parameter.element_size() for parameter in moving]
    live.expect("optimiser", MOMENTS * sum(sizes))
    with live:
        with Kernels(products, gpu):
            loss = pack_loss(model, pack)
        loss.backward()  # type: ignore[no-untyped-call]
    live.expect("activations", 0 if gpu else 2 * max(sizes))
    return live.peak, live.operations
