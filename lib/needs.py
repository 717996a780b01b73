"""What a run needs, looked at before it starts: a machine that is fit for it, weights, folders that can be written, and data sets."""

import os
import tempfile
from collections.abc import Iterable

import torch

from lib.datasets import cases_of
from lib.paths import InputError, cache_root, results_root, unwritable
from lib.profiles import Settings
from lib.profiles.pretrained import check_weights
from lib.training.run import check_precision


def check_machine(settings: Settings, device: torch.device) -> None:
    """Raises InputError where a model of full size would run on a processor, unless $CPU says that it may."""
    if settings.full_size and device.type == "cpu" and os.environ.get("CPU", "0") in ("", "0"):
        raise InputError(
            f"PROFILE={settings.profile} needs a GPU, and none is found: on two processor cores a step takes 12 to 79 seconds "
            "(results/full_proof.txt), and a run has thousands; choose a machine with a GPU (on Colab: Runtime, Change runtime type), "
            "or set CPU=1 to go on without."
        )


def check_setup(settings: Settings, device: torch.device) -> None:
    """Whether a training can start on this machine, data sets apart.

    Raises:
        InputError: there is no GPU at full size (see `check_machine`), the device does not compute in the precision, the weights are
            neither in a folder nor in the hub's cache nor on the hub, or a folder cannot be written.
    """
    check_machine(settings, device)
    check_precision(settings.precision, device)
    if settings.model == "clipseg" and settings.weights and not settings.weights.endswith((".pt", ".pth")):
        check_weights(settings.weights, "CLIPSeg", settings.revision)
    for weights, what in ((settings.vit, "the image encoder"), (settings.bert, "the text encoder")):
        if weights:
            check_weights(weights, what)
    for folder in (results_root(settings.profile) / "runs", cache_root()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise unwritable(folder, error) from error


def missing_data(settings: Settings, datasets: Iterable[str]) -> dict[str, str]:
    """{data set: why} for those of `datasets` that are not there to be scored on; phantoms are made, and so never missing.

    Raises:
        InputError: the scans to train and to validate on are not there.
    """
    missing: dict[str, str] = {}
    for part in () if settings.phantoms else ("training", "validation", *datasets):
        try:
            cases_of(settings, part)
        except InputError as error:
            if part in ("training", "validation"):
                raise
            missing[part] = str(error)
    return missing
