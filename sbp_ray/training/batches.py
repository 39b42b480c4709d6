"""A micro-batch: packed rows as tensors, where their documents begin, and which tokens are graded.

Legend: B rows, T tokens a row, S supervised tokens, N documents of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.attention import Documents, find_documents
from sbp_ray.mixing import Address
from sbp_ray.nll import Targets, find_targets

PADDING = -1
"""Document id of padding."""


class Row(NamedTuple):
    """One row, padded; each is [T]."""

    input_ids_T: NDArray[np.int64]
    loss_mask_T: NDArray[np.bool_]
    document_ids_T: NDArray[np.int64]


def make_blank_row(seq_len: int) -> Row:
    """A row of padding."""
    return Row(np.zeros(seq_len, np.int64), np.zeros(seq_len, bool), np.full(seq_len, PADDING))


@dataclass(frozen=True)
class Batch:
    """Packed rows, and what is in them."""

    addresses: tuple[Address | None, ...]
    """Where the rows lie; None for a row of padding."""
    input_ids_BT: torch.Tensor
    targets: Targets
    documents: Documents
    num_supervised: int
    num_tokens: int
    """Padding not counted."""
    attended: int
    """Sum of the documents' squared lengths: what attention works on."""
    shown_ids_BT: torch.Tensor | None = None
    """What the model sees in the place of `input_ids_BT`, where there is noise."""

    def to(self, device: torch.device) -> Batch:
        """On the device; of pinned memory the copies are made while the host goes on."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory that a GPU can fetch by itself."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            input_ids_BT=change(self.input_ids_BT),
            targets=Targets(*map(change, self.targets)),
            documents=Documents(*map(change, self.documents)),
            shown_ids_BT=None if self.shown_ids_BT is None else change(self.shown_ids_BT),
        )


def make_batch(addresses: Sequence[Address | None], rows: Sequence[Row], *, is_pinned: bool = False) -> Batch:
    """Find documents and targets, here and not on a GPU, whose host would wait for how many there are; and count."""
    input_ids_BT, loss_mask_BT, document_ids_BT = (
        torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
    )
    documents = find_documents(document_ids_BT)
    starts_N = documents.bounds_N1[:-1].long()
    lengths_N = documents.bounds_N1.diff().long() * (document_ids_BT.flatten()[starts_N] != PADDING)
    targets = find_targets(input_ids_BT, loss_mask_BT)
    batch = Batch(
        tuple(addresses),
        input_ids_BT,
        targets,
        documents,
        num_supervised=len(targets.token_S),
        num_tokens=int(lengths_N.sum()),
        attended=int(lengths_N.square().sum()),
    )
    return batch.pin_memory() if is_pinned else batch
