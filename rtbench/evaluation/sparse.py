"""A pruned network's copy to search with, whose linear layers leave out the products with weights that are 0."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.evaluation.ladder import answers

KEPT = 1 / 8
"""The share of weights up to which a product that skips the others is faster than one that does not, on a CPU with AVX-512."""
THREADS = 2
"""Up to which it was measured: a twentieth and a tenth of the weights take 0.5 and 0.8 of the time on one, 0.7 and 0.95 on two."""
LEAST = 2**14
"""Weights of a layer that is worth it."""
ROWS = 256
"""Images in one product, few enough for the cache of a core."""

COPYING = "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__"


def sparse(model: nn.Module, like: Tensor) -> nn.Module:
    """A copy that shares the weights of `model` and answers as it does but for rounding; `model` itself where that cannot be, or pay.

    It pays on CPUs whose library multiplies sparse matrices, for networks with a linear layer of few enough weights that are not 0, on few
    threads.
    """
    known = like.device.type == "cpu" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not known or torch.get_num_threads() > THREADS or not any(map(_pays, model.modules())) or any(map(_copies_itself, model.modules())):
        return model
    try:  # a network's own code may refuse to be copied, or to be asked in another way, with whatever error
        found = copy.deepcopy(model, {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())})
        for layer in filter(_pays, found.modules()):
            layer.__class__ = SparseLinear
            layer.compress()  # type: ignore[operator]
        return found if all(map(_close, answers(model, like), answers(found, like))) else model
    except Exception:
        return model


def _pays(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or "weight" not in layer._parameters or layer.weight.dtype != torch.float32:
        return False
    return layer.weight.numel() >= LEAST and int(layer.weight.count_nonzero()) <= KEPT * layer.weight.numel()


def _copies_itself(module: nn.Module) -> bool:
    """Whether its own code decides what a copy of it is: that might be a network that is harder to attack."""
    own = (kind for kind in type(module).__mro__ if kind is not object and not kind.__module__.startswith("torch."))
    return hasattr(module, "__deepcopy__") or any(word in vars(kind) for kind in own for word in COPYING)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    return bool((a - b).abs().max() <= 1e-4 * a.abs().max())


class SparseLinear(nn.Linear):
    """A linear layer that also keeps its weights, and their transpose, as compressed rows."""

    def compress(self) -> None:
        """Takes the weights as they are now; to be called again if they change."""
        weight = self.weight.detach()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse", UserWarning)  # torch says that they are new
            self.rows = weight.to_sparse_csr(), weight.t().contiguous().to_sparse_csr()
        self.known = weight, weight._version

    def forward(self, x: Tensor) -> Tensor:
        """x (..., i) to (..., o). Asks all weights where they have changed, are differentiated, or not asked in float32."""
        known, version = self.known
        alike = self.weight.data_ptr() == known.data_ptr() and self.weight._version == version and not self.weight.requires_grad
        if not alike or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        found: Tensor = _Product.apply(x.reshape(-1, self.in_features), *self.rows)  # type: ignore[no-untyped-call]
        found = found if self.bias is None else found + self.bias
        return found.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """x (n, i) times the transpose of a matrix (o, i); the gradient is one with the two matrices swapped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.swapped = transposed, matrix
        return torch.cat([(matrix @ part.t().contiguous()).t() for part in torch.split(x, ROWS)])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(slope, *ctx.swapped), None, None  # type: ignore[no-untyped-call]
