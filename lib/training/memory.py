"""A step that does not fit into memory: in pieces whose gradients add up to the whole's, and with activations computed twice."""

from itertools import pairwise
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers import PreTrainedModel

from lib.windows import Terms


def split(batch: Any, parts: int) -> list[tuple[float, Any]]:
    """At most `parts` pieces of a step's batch and their shares; the losses of the pieces, times their shares, add up to the batch's.

    Terms are divided by their centres, everything else (Slices, Patches) along the first axis of its tensors.
    """
    if parts == 1:
        return [(1.0, batch)]
    if isinstance(batch, Terms):
        return _split_terms(batch, parts)
    pieces = zip(*(field.chunk(parts) for field in batch), strict=True)
    return [(len(piece[0]) / len(batch[0]), type(batch)(*piece)) for piece in pieces]


def _split_terms(terms: Terms, parts: int) -> list[tuple[float, Terms]]:
    """Neighbouring centres stay together, with the slices that they see alone.

    A loss is a mean over terms, the gate's penalty one over centres: a piece's share is that of its centres, and its terms' weights
    make up for the difference.
    """
    asked = terms.centre.unique().chunk(parts)  # a piece without any term would have no mean
    edges = [0, *(int(piece[0]) for piece in asked[1:]), len(terms.windows)]
    pieces = []
    for start, stop in pairwise(edges):
        mine, share = (terms.centre >= start) & (terms.centre < stop), (stop - start) / len(terms.windows)
        needed, windows = terms.windows[start:stop].unique(return_inverse=True)
        weight = terms.weight[mine] * (int(mine.sum()) / len(mine) / share)
        own = terms.slices[needed], windows, terms.centre[mine] - start, terms.prompt[mine], terms.masks[mine], weight
        pieces.append((share, Terms(*own)))
    return pieces


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def recompute_activations(model: nn.Module) -> bool:
    """Makes transformer layers forget what they computed and compute it again in the backward pass; False where there are none."""
    encoders = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing]
    for encoder in encoders:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
    return bool(encoders)
