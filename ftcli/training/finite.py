"""A loss or a gradient that is no number ends a training before the weights take it up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftcli.errors import FtcliError
from ftcli.training.rows import Rows

ADVICE = "look at these rows, or lower training.learning_rate"


class NotFiniteError(FtcliError):
    """The step in hand came to nothing; the weights are those of the step before."""

    def __init__(self, message: str) -> None:
        super().__init__("loss_not_finite", message)


def require_finite_loss(
    losses: Sequence[Tensor], batches: Sequence[Sequence[int]], rows: Rows, where: str
) -> None:
    """Raise NotFiniteError naming the rows of the batches whose loss is no number.

    `losses` are scalars, one a batch of row numbers.
    """
    if bool(torch.isfinite(torch.stack(list(losses))).all()):
        return
    bad = [i for i, loss in enumerate(losses) if not torch.isfinite(loss)]
    found = losses[bad[0]].item()
    named = rows.names(row for i in bad for row in batches[i])
    raise NotFiniteError(
        f"the loss became {found} in {where}, before any weight was changed, on {named}; {ADVICE}"
    )


def gradient_not_finite(
    norm: float, window: Sequence[int], rows: Rows, step: int
) -> NotFiniteError:
    """What to say of a gradient whose norm is no number, naming the step's rows."""
    return NotFiniteError(
        f"the gradient became {norm} in step {step}, before any weight was changed, on "
        f"{rows.names(window)}; {ADVICE}"
    )


def require_finite_weights(model: PreTrainedModel, step: int) -> None:
    """Raise NotFiniteError where a trained weight is no number: nothing of it is saved."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise NotFiniteError(
                f"{name} holds NaN or infinity after step {step}; train with a lower "
                "training.learning_rate, beside this run (--fresh)"
            )
