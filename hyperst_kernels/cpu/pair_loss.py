"""The functions of `hyperst_kernels.blocked.pairs` in machine code, for float32 on the CPU."""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels.blocked.pairs import Pairs, PowerSums, Weights
from hyperst_kernels.cpu.native import bindings


def _block(values: Tensor, pairs: Pairs) -> tuple:
    """A block, as the functions in machine code take it."""
    nothing = None, None
    sides = [x for two in pairs[2:] for x in two or nothing]
    return values, values.stride(0), *values.shape, pairs.scale, pairs.diagonal, *sides


def add_powers(values: Tensor, pairs: Pairs, rows: Tensor, columns: Tensor | None) -> None:
    """Take a block (r w) into the `PowerSums` of its rows (6 or 8, r) and, unless None, of its columns (w)."""
    of_columns = (None, 0) if columns is None else (columns, columns.stride(0))
    bindings.call(
        "add_powers", *_block(values, pairs), rows, rows.stride(0), *of_columns, len(rows) == len(PowerSums._fields)
    )


def add_sigmoid(values: Tensor, pairs: Pairs, bias: Tensor, losses: Tensor) -> None:
    """Add the sigmoid losses of a block (r w) to those of its rows (r), float64."""
    bindings.call("add_sigmoid", *_block(values, pairs), float(bias), losses)


def softmax_gradients(
    values: Tensor, pairs: Pairs, rows: Weights, columns: Weights | None, out: Tensor, sums: Tensor
) -> None:
    """Put dL / d distance into ``out`` (r w); add to ``sums`` (2 r) those of dL/dlogit times distance, and of dL/dlogit."""
    of_columns = columns or (None,) * len(rows)
    bindings.call("softmax_gradients", *_block(values, pairs), *rows, *of_columns, out, sums, sums.stride(0))


def sigmoid_gradients(values: Tensor, pairs: Pairs, bias: Tensor, grad: Tensor, out: Tensor, sums: Tensor) -> None:
    """Do the same for the sigmoid loss, from the gradients of the losses of rows (r)."""
    bindings.call("sigmoid_gradients", *_block(values, pairs), float(bias), grad, out, sums, sums.stride(0))
