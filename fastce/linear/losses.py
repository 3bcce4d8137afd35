"""Cross-entropy of a linear layer's logits: arguments to one of two ways, each in its own file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernels
from fastce._kernels.entry import advice, arrays
from fastce._kernels.entry.gathered import rows_of, where_they_are
from fastce.linear import arguments, blocks
from fastce.linear.arguments import MEMORY

NAMES = ("input", "linear_weight", "linear_bias")


class LinearGrad(NamedTuple):
    """Gradients with respect to the arguments of a linear layer; None for what was not asked for."""

    input: NDArray | None
    linear_weight: NDArray | None
    linear_bias: NDArray | None


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    memory: int = MEMORY,
    n_threads: int | None = None,
) -> float | NDArray:
    r"""Cross-entropy of the logits of a linear layer, which never exist as a whole.

    With features :math:`x_i`, weights :math:`w_j` and biases :math:`b_j` the logits of row i are
    :math:`z_{ij} = w_j \cdot x_i + b_j`; all else is :func:`fastce.cross_entropy` of them. A block of rows
    is multiplied, reduced and forgotten at a time, or a part of the classes of one where `memory` has no
    room for whole rows.

    Parameters
    ----------
    input : array_like or SciPy sparse array
        Features of shape (..., D), in a dtype and layout of :func:`fastce.cross_entropy`'s logits. Or a
        sparse array or matrix of shape (N, D): CSR is used as it is, other formats are converted once.
    linear_weight : array_like
        Weights of shape (C, D).
    target : array_like
        Class indices of shape (...), or target probabilities of shape (..., C).
    linear_bias : array_like, optional
        Bias of each class, of shape (C,).
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
        As in :func:`fastce.cross_entropy`. Sample weights may be negative.
    reduction, normalizer
        As in :func:`fastce.cross_entropy`.
    memory : int, default 64 MiB
        How many bytes a call may hold beside its arguments and results.
    n_threads : int, optional
        At most that many threads; default :func:`fastce.get_num_threads`. Products by BLAS take the threads
        that BLAS is set to.

    Returns
    -------
    float or ndarray
        As :func:`fastce.cross_entropy`: float64 if the features or the weights are, else float32, for each
        row with ``reduction='none'``.

    Raises
    ------
    IndexError, TypeError
        As :func:`fastce.cross_entropy`.
    ValueError
        As :func:`fastce.cross_entropy`; features and weights that do not match; `memory` that has no room
        for one row and one class, saying how much they need.

    Notes
    -----
    Products are computed in float64 if the features or the weights are, else in float32, halves widened
    part by part. The bounds of :func:`fastce.cross_entropy` hold for the logits as computed. Where D C is
    at most 8192, C at most 512 and D at most 4096, and for sparse features, the bits of the result do not
    depend on the number of threads; else the last ones are those of BLAS. The names of the arguments are
    PyTorch's [1]_.

    References
    ----------
    .. [1] ``torch.nn.functional.linear_cross_entropy``, PyTorch 2.13.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> features = np.array([[1.0, 2.0], [3.0, -1.0]])
    >>> weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(fastce.linear_cross_entropy(features, weights, [2, 0]), 6)
    0.367084
    """
    call = _Call(input, linear_weight, linear_bias, memory)
    options = weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
    rows = call.rows(target, *options, reduction, normalizer, n_threads)
    return call.run(rows, LinearGrad(None, None, None), False)


def linear_cross_entropy_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    reduction: str = "mean",
    normalizer: float | None = None,
    memory: int = MEMORY,
    n_threads: int | None = None,
    wrt: tuple[str, ...] = NAMES,
    out: tuple[NDArray | None, NDArray | None, NDArray | None] | None = None,
    accumulate: bool = False,
) -> tuple[float | NDArray, LinearGrad]:
    r"""Cross-entropy of a linear layer's logits, and its gradient by all that they are made of.

    With the gradient :math:`g_{ij}` of the loss by the logits, as :func:`fastce.cross_entropy_and_grad` has
    it,

    .. math::
        \frac{\partial \ell}{\partial x_i} = \sum_j g_{ij} w_j, \qquad
        \frac{\partial \ell}{\partial w_j} = \sum_i g_{ij} x_i, \qquad
        \frac{\partial \ell}{\partial b_j} = \sum_i g_{ij}

    Parameters
    ----------
    input, linear_weight, target, linear_bias
        As in :func:`linear_cross_entropy`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
        As in :func:`linear_cross_entropy`.
    reduction, normalizer, memory, n_threads
        As in :func:`linear_cross_entropy`.
    wrt : tuple of str, default ('input', 'linear_weight', 'linear_bias')
        Which gradients to compute. By default those of all arguments that are given and have one: without
        `linear_bias` none of it, and none of sparse features.
    out : tuple of ndarray or None, optional
        A `LinearGrad`, or its like, of arrays to write into, each of its argument's shape and dtype. Where
        it has None and `wrt` names the argument an array is made.
    accumulate : bool, default False
        Add to what `out` holds, to sum gradients over batches.

    Returns
    -------
    loss : float or ndarray
        As :func:`linear_cross_entropy`.
    grad : LinearGrad
        Named tuple ``(input, linear_weight, linear_bias)``, each of its argument's shape and dtype, or
        None. With ``reduction='none'`` of the sum of the losses.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`linear_cross_entropy`, before anything is written. And ValueError for a gradient of sparse
        features or of a bias that is not given, if `wrt` names them and is not the default; a name that `wrt`
        does not have; and an array of `out` that has another shape or dtype than its argument, is read-only,
        or overlaps an argument or another one.

    Notes
    -----
    Nothing that a row of `ignore_index` holds is used: where its features are NaN every gradient stays
    finite. At a target's logit :math:`g_{iy}` is :math:`-r / s`, not :math:`p_y - 1`: gradients of sure
    rows keep their digits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastce
    >>> features = np.array([[1.0, 2.0], [3.0, -1.0]])
    >>> weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss, grad = fastce.linear_cross_entropy_and_grad(features, weights, [2, 0])
    >>> grad.linear_weight.round(3)
    array([[-0.373,  0.229],
           [ 0.142,  0.238],
           [ 0.231, -0.467]])
    >>> grad.linear_bias is None
    True
    """
    call = _Call(input, linear_weight, linear_bias, memory)
    options = weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, softcap
    rows = call.rows(target, *options, reduction, normalizer, n_threads)
    grad = call.grads(wrt, out, accumulate)
    call.check_apart(grad, rows.named)
    return call.run(rows, grad, accumulate), grad


class _Call:
    """Features, weights and bias, checked."""

    def __init__(
        self, input: Any, linear_weight: ArrayLike, linear_bias: ArrayLike | None, memory: int
    ) -> None:
        self.is_sparse = hasattr(input, "tocsr")
        x = arguments.as_csr(input, "input") if self.is_sparse else arrays.float_array(input, "input")
        layer = arguments.layer(x, linear_weight, linear_bias, memory, "input")
        self.x, self.w, self.bias, self.dtype, self.memory = layer

    def rows(self, target: ArrayLike, *options: Any) -> Any:
        """Targets and options, checked but for the labels; see `LinearRows`."""
        shape = (*self.x.shape[:-1], len(self.w))
        try:
            return _kernels.kernels.LinearRows(shape, self.dtype, target, *options)
        except ValueError as error:  # the classes are where the weights have put them
            raise advice.retold(error, (": use axis=.* if the classes are there", "")) from None

    def grads(self, wrt: tuple[str, ...], out: Any, accumulate: bool) -> LinearGrad:
        """The arrays to write into."""
        wrt = (wrt,) if isinstance(wrt, str) else wrt
        if not isinstance(wrt, Iterable):
            raise TypeError(f"wrt is {advice.shown(wrt)}; expected names out of {', '.join(NAMES)}")
        wrt = tuple(wrt)
        for name in wrt:
            if name not in NAMES:
                raise ValueError(f"wrt has {name!r}; expected names out of {', '.join(NAMES)}")
        if not (out is None or (isinstance(out, (tuple, list)) and len(out) == len(NAMES))):
            given = f" of {len(out)}" if isinstance(out, (tuple, list)) else ""
            raise TypeError(
                f"out is a {type(out).__name__}{given}; expected a LinearGrad, or a tuple of three arrays or "
                f"None, for {', '.join(NAMES)}"
            )
        given = LinearGrad(None, None, None) if out is None else LinearGrad(*out)
        if self.is_sparse and "input" in wrt:
            if wrt != NAMES or given.input is not None:
                others = NAMES[1:] if self.bias is not None else ("linear_weight",)
                raise ValueError(
                    f"wrt has 'input', which is sparse; expected wrt={others}: sparse "
                    "features have no gradient here"
                )
            wrt = NAMES[1:]
        elif "linear_bias" in wrt and wrt != NAMES and self.bias is None:
            raise ValueError(
                "wrt has 'linear_bias', which is not given; expected names of arguments that are: give "
                "linear_bias=numpy.zeros(C) for the gradient by a bias of 0, or leave its name out of wrt"
            )
        if accumulate and out is None:
            raise ValueError("accumulate is True without out; expected arrays to add to")
        grads = []
        for name, argument, array in zip(NAMES, (self.x, self.w, self.bias), given, strict=True):
            if name not in wrt or argument is None:
                if array is not None:
                    raise ValueError(
                        f"out has an array for {name}, which wrt does not name or which is not given"
                    )
                grads.append(None)
            elif array is None:
                make = np.zeros_like if accumulate else np.empty_like
                grads.append(make(argument, dtype=argument.dtype.newbyteorder("=")))
            else:
                arrays.check_out_like(array, argument, f"out.{name}", name)
                grads.append(array)
        return LinearGrad(*grads)

    def check_apart(self, grad: LinearGrad, others: list[tuple[str, NDArray]]) -> None:
        """No array that is written shares memory with one that is read, or with another."""
        x = (self.x.data, self.x.indices, self.x.indptr) if self.is_sparse else (self.x,)
        read = [*(("input", a) for a in x), ("linear_weight", self.w), *others]
        read += [] if self.bias is None else [("linear_bias", self.bias)]
        for name, array in zip(NAMES, grad, strict=True):
            if array is None:
                continue
            for other, a in read:
                arrays.check_out_apart(array, a, other, False, f"out.{name}")
            read.append((f"out.{name}", array))

    def run(self, rows: Any, grad: LinearGrad, accumulate: bool) -> float | NDArray:
        """The loss; write the gradients."""
        x = self.x if self.is_sparse else rows_of(self.x, self.x.ndim - 1)
        of_x = None if grad.input is None else rows_of(grad.input, grad.input.ndim - 1)
        rows.check()
        if self._is_small(x.shape[0] * rows.row_bytes):
            x, of_x = where_they_are(x), where_they_are(of_x)
            rows.of_dense(x, self.w, self.bias, of_x, *grad[1:], accumulate, False, self.memory)
        else:
            flat = (of_x, *grad[1:])
            blocks.run(rows, x, self.w, self.bias, flat, accumulate, self.dtype, self.memory)
        return rows.result()

    def _is_small(self, gathered: int) -> bool:
        """Whether kernels do it all, with so many bytes of targets and weights gathered at once."""
        return (
            not self.is_sparse
            and arguments.is_small(*self.w.shape, self.memory)
            and arguments.is_wide(self.x) == (self.dtype == np.float64)
            and gathered <= self.memory // 2
        )
