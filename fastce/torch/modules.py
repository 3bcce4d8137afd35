"""The modules of torch.nn, computed by fastce: subclasses, with the same arguments, buffers and pickles."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastce.torch import functional

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "FocalLoss", "LinearCrossEntropyLoss"]


class _WithOptions(nn.Module):
    """What fastce has beside the arguments of PyTorch's module."""

    def __init__(
        self,
        *args: Any,
        z_loss: float = 0.0,
        temperature: float = 1.0,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.z_loss, self.temperature, self.softcap = z_loss, temperature, softcap


class CrossEntropyLoss(_WithOptions, nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss`, and the options of fastce.

    Parameters
    ----------
    *args, **kwargs
        As `torch.nn.CrossEntropyLoss`: weight, ignore_index, reduction, label_smoothing.
    z_loss, temperature, softcap
        As in :func:`fastce.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import CrossEntropyLoss
    >>> CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            temperature=self.temperature,
            softcap=self.softcap,
        )


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss`.

    Parameters
    ----------
    *args, **kwargs
        As `torch.nn.BCEWithLogitsLoss`: weight, reduction, pos_weight.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import BCEWithLogitsLoss
    >>> BCEWithLogitsLoss()(torch.tensor([-20.0]), torch.tensor([0.0]))
    tensor(2.0612e-09)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class FocalLoss(nn.modules.loss._WeightedLoss):
    """The focal loss of :func:`fastce.torch.focal_loss`.

    Parameters
    ----------
    gamma : float, default 2
        How fast sure rows fade.
    weight : Tensor, optional
        Weight of each class, of shape (C,).
    ignore_index : int, default -100
        Rows with this label do not count.
    reduction : {'mean', 'sum', 'none'}, default 'mean'
        As in :func:`fastce.torch.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import FocalLoss
    >>> FocalLoss(gamma=2)(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    tensor(0.7019)
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, reduction=reduction)
        self.gamma, self.ignore_index = gamma, ignore_index

    def extra_repr(self) -> str:
        """What its repr shows."""
        return f"gamma={self.gamma}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        return functional.focal_loss(
            input, target, self.gamma, self.weight, self.ignore_index, self.reduction
        )


class LinearCrossEntropyLoss(_WithOptions, nn.LinearCrossEntropyLoss):
    """:class:`torch.nn.LinearCrossEntropyLoss`: a linear layer and its loss, without the logits as a whole.

    Parameters
    ----------
    *args, **kwargs
        As `torch.nn.LinearCrossEntropyLoss`: in_features, num_classes, out_features, bias, device, dtype,
        reduction, weight, ignore_index, label_smoothing, options.
    z_loss, temperature, softcap
        As in :func:`fastce.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from fastce.torch import LinearCrossEntropyLoss
    >>> criterion = LinearCrossEntropyLoss(8, 1000, bias=True)
    >>> criterion(torch.zeros(4, 8), torch.arange(4)).shape
    torch.Size([])
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch of features."""
        shape, bias = (self.num_classes, *self.out_features), self.linear.bias
        return functional.linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            z_loss=self.z_loss,
            temperature=self.temperature,
            softcap=self.softcap,
        )
