"""A trained model from wherever it lies: a finished run, a folder or file of weights, a released checkpoint."""

import json
from pathlib import Path
from typing import Any

from lib.clipseg import TextPromptedSegmenter, build
from lib.paths import InputError
from lib.profiles import Settings, run_folder, settings_of
from lib.runs import processes
from lib.training import load_weights

RELEASED = "adapter, as released"  # the run whose model the released weights (.pt) fit


def load_checkpoint(checkpoint: Path | str = "adapter", profile: str | None = None) -> tuple[TextPromptedSegmenter, Settings]:
    """The model and its settings: of a finished run by its name or folder, of safetensors with a config.json beside them, or of a .pt.

    A released .pt holds no settings: it is taken for the full profile's, unless `profile` names another.

    Raises:
        InputError: there is no such checkpoint, its run is not finished, its files do not fit, or it takes no prompts.
    """
    path = Path(checkpoint)
    if not path.exists() and (len(path.parts) > 1 or path.suffix in (".pt", ".pth", ".safetensors")):
        raise InputError(f"{path} does not exist: name a finished run, its folder or a file of weights by CHECKPOINT.")
    if path.suffix in (".pt", ".pth"):
        settings, weights = settings_of(RELEASED, profile or "full"), path
    else:
        folder = path.parent if path.is_file() else path if path.is_dir() else run_folder(str(checkpoint), profile)
        weights = path if path.is_file() else folder / "best.safetensors"
        settings = _settings_in(folder, weights, finished=weights != path)
    if settings.model != "clipseg" or settings.align:
        raise InputError(f"{checkpoint} is a model that takes no prompts: choose a run of the baseline or the adapter.")
    model = build(settings)
    load_weights(model, weights)
    return model.to(processes().device), settings


def _settings_in(folder: Path, weights: Path, finished: bool) -> Settings:
    """Settings out of the config.json beside `weights` in `folder`, of a run that has to be `finished`."""
    config, advice = folder / "config.json", "train it (`make paper`), or name weights with their config.json beside them by CHECKPOINT."
    if not (config.is_file() and weights.is_file()):
        raise InputError(f"{folder} holds no trained model: {advice}")
    try:
        record = json.loads(config.read_text())
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record["settings"].items()}
        settings = Settings(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{config} is not the configuration of a run ({error}): take the one that was saved with the weights.") from error
    if finished and "finished" not in record:
        raise InputError(f"{folder} is a run whose training has not ended: {advice}")
    return settings


def note_of(settings: Settings) -> str:
    """What a segmentation by this model can claim: stands in the table and over the picture."""
    if settings.train_on == "samples":
        return "trained on slabs of one CT: no claim about accuracy"
    if settings.phantoms:
        return "trained on phantoms: not for real scans"
    return "research only: not a medical device"
