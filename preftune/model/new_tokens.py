"""Rows for tokens that a model has never seen: the markers of a chat template on a base model.

In: a model and the ids that its tokenizer has got. Out: the model with a row for each, in the input embeddings and in
the output head, and the names of what must be trained whole beside an adapter.

A new row is the mean of the old ones, which bounds what it changes: as an output it is about as likely as an average
token (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). No randomness, so that a policy
and its reference, or a run and its resume, start from the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from preftune.errors import ModelError
from preftune.model.sharding import gathered, shape_of


@torch.no_grad()
def embed_new_tokens(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Give the tokens `ids`, all above the old ones, their rows; rows that a model holds in reserve are used first.

    Raises:
        ModelError: the tokenizer had more tokens than the model embeds before it got these.
    """
    if not ids:
        return
    rows = _rows(model)
    if min(ids) > rows:
        raise ModelError(
            f"The tokenizer has {min(ids)} tokens without those that its chat template adds, but the model embeds "
            f"{rows}. Set tokenizer_name_or_path to the model's own tokenizer."
        )
    embed_rows(model, max(ids) + 1)
    tables = _tables(model)
    with gathered(tables, changed=True):
        for table in tables:
            table[list(ids)] = table[: min(ids)].float().mean(dim=0).to(table.dtype)


def embed_rows(model: PreTrainedModel, rows: int) -> None:
    """At least `rows` rows in embeddings and head; new ones hold anything."""
    if rows > _rows(model):
        model.resize_token_embeddings(rows, mean_resizing=False)


def _rows(model: PreTrainedModel) -> int:
    return shape_of(model.get_input_embeddings().weight)[0]


def modules_of_tokens(model: PreTrainedModel) -> list[str]:
    """The paths of the input embeddings and of the output head, where there is one."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is wanted for wanted in modules)]


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights with a row for each token: one where both sides are tied; and the head's bias, if it has one."""
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    return tables
