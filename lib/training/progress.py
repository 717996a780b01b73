"""Where a run in training stands."""

import csv
from pathlib import Path
from typing import Any

from lib.paths import replacing

COLUMNS = ["step", "epoch", "loss", "bce", "dice_loss", "gate", "lr", "validation_dice", "validation_loss", "training_dice"]


class Progress:
    """Where a run stands: saved with every checkpoint, and the source of log.csv."""

    def __init__(self) -> None:
        self.step, self.best, self.best_step = 0, -1.0, 0
        self.rows: list[dict[str, Any]] = []
        self.recent: list[dict[str, float]] = []  # losses of the steps since the last row
        self.gradients: dict[str, float] = {}  # norm of each parameter's gradient at the first step
        self.seconds, self.waited = 0.0, 0.0  # of all steps, and of these without a batch
        self.computed = 0.0  # seconds of the steps alone, without checkpoints and validation between them

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From Accelerate's checkpoints."""
        vars(self).update(state)

    def log(self, **columns: Any) -> None:
        """Adds a row: means over the steps since the last one."""
        means = {name: sum(row[name] for row in self.recent) / len(self.recent) for name in self.recent[0]}
        self.rows.append({"step": self.step, **means, **columns})
        self.recent = []

    def write(self, path: Path) -> None:
        """Writes log.csv."""
        with replacing(path) as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
