"""Which parameters a training moved, and by how much."""

import pandas as pd
from torch import Tensor, nn


def module_of(name: str) -> str:
    """Row of the gradient audit that a parameter belongs to: its module, whole layers and the adapter's parts taken together."""
    parts = name.split(".")
    if parts[0] == "adapter":
        return ".".join(parts[: 3 if parts[1] == "temporal_layers" else 2])
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: number + 1])


def audit(model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], gradients: dict[str, float]) -> pd.DataFrame:
    """What training did to each module: parameters, how many may train and did move, and by how much.

    gradient: norm at the first step, after clipping; change: norm of the change over the norm at the start. So a comparison of two
    runs shows that the same parts learned in both, which was not so in the released code (its baseline trains the decoder alone).
    """
    rows = []
    for name, parameter in model.named_parameters():
        before = start[name].float()
        after = end[name].float() if name in end else before  # frozen weights of the hub are not saved with a run
        moved = int((before != after).sum())
        squares = ((after - before).square().sum().item(), before.square().sum().item(), gradients.get(name, 0.0) ** 2)
        rows.append((module_of(name), parameter.numel(), parameter.numel() * parameter.requires_grad, moved, *squares))
    table = pd.DataFrame(rows, columns=["module", "parameters", "trainable", "moved", "change", "norm", "gradient"])
    table = table.groupby("module", sort=False, as_index=False).sum()
    table["change"] = (table["change"] / table["norm"].where(table["norm"] > 0)) ** 0.5
    return table.assign(gradient=table["gradient"] ** 0.5).drop(columns="norm")
