"""nnU-Net's trainer in miniature, for the demo on a CPU: nnU-Net finds it by $nnUNet_extTrainer."""

import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerVanillaAdam1en3


class nnUNetTrainerBrief(nnUNetTrainerNoMirroring, nnUNetTrainerVanillaAdam1en3):
    """1,200 steps of a network of half the width, which a core takes in minutes; nnU-Net's own takes 250,000.

    It does not mirror: in so short a training a right kidney that is also shown as a left one is neither. And
    it steps by Adam: after 600 steps of nnU-Net's own SGD it marked the liver alone on validation scans.
    """

    def __init__(self, plans: dict[str, Any], configuration: str, fold: int, dataset_json: dict[str, Any],
                 device: torch.device) -> None:
        network = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
        network["features_per_stage"] = [width // 2 for width in network["features_per_stage"]]
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 40, 30, 2
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
        self.save_every = 5  # a killed training goes on from there
