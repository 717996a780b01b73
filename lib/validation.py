"""Any model on a scan, and how a model in training is judged after each epoch."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from lib.baselines import segment_volume
from lib.clipseg import TextPromptedSegmenter
from lib.datasets import Store, stores_of
from lib.inference import Prediction, mask_of, predict, prediction_of, prediction_of_claims, segment_slices
from lib.med_vlm import med_vlm_losses, unet_losses
from lib.metrics import dice
from lib.organs import BY_KEY, KEYS, PROMPTS
from lib.profiles import Settings
from lib.statistics import mean_dice
from lib.volumes import read_labels
from lib.windows import SliceSampler, Terms, TermSampler

VALIDATION_STEPS = 16  # batches whose loss is the validation's; no more than an epoch has
SLICE_LOSSES = {"med-vlm": med_vlm_losses, "unet": unet_losses}


def predict_any(model: nn.Module, store: Store, settings: Settings, prompts: tuple[str, ...] = PROMPTS) -> Prediction:
    """Segments a prepared scan by whatever kind of model it is; `prompts` are CLIPSeg's alone."""
    if isinstance(model, TextPromptedSegmenter):
        return predict(model, store, settings, prompts)
    if hasattr(model, "probabilities"):
        return prediction_of_claims(segment_slices(model, store, settings), store)
    return prediction_of(segment_volume(model, store, settings), store)


def validator(stores: list[Store], settings: Settings) -> Callable[[nn.Module], float]:
    """Model -> mean Dice over whole validation scans, by which the best checkpoint is chosen; or as released, see `slice_validator`.

    Several processes share the scans, and each returns the mean over all.
    """

    def validate(model: nn.Module) -> float:
        rows, process = [], PartialState()
        for store in stores[process.process_index :: process.num_processes]:
            truth = read_labels(store.source.labels, store.label_map, store.grid)  # type: ignore[arg-type]
            claims = store.grid.to_canonical(predict_any(model, store, settings).claims)
            for key in settings.organs:
                mask, organ = mask_of(claims, KEYS.index(key)), truth == BY_KEY[key].label
                rows.append({"organ": key, "dice": dice(int((mask & organ).sum()), int(organ.sum()), int(mask.sum()))})
        rows = gather_object(rows)
        return float(np.nan_to_num(mean_dice(pd.DataFrame(rows))))  # 0 where no organ is there or found: some weights must be kept

    return slice_validator(stores, settings) if settings.validation == "augmented slices" else validate


def judged(settings: Settings) -> Callable[[nn.Module], dict[str, float]]:
    """Model -> columns of log.csv: Dice on the validation scans; for the models of slices also their loss there, and the training's Dice.

    The training's Dice is one over as many whole scans as there are to validate, without augmentation.
    """
    stores = stores_of(settings, "validation")
    validate = validator(stores, settings)
    if settings.model not in SLICE_LOSSES:
        return lambda model: {"validation_dice": validate(model)}
    sampler, step_losses = SliceSampler(stores, settings, augmented=False), SLICE_LOSSES[settings.model]
    learned = validator(stores_of(settings, "training")[: len(stores)], settings)
    steps = range(min(VALIDATION_STEPS, settings.epoch_steps or VALIDATION_STEPS))

    @torch.inference_mode()
    def judge(model: nn.Module) -> dict[str, float]:
        model.eval()
        device = next(model.parameters()).device
        batches = (type(batch)(*(field.to(device) for field in batch)) for batch in map(sampler.__getitem__, steps))
        lost = [step_losses(model, batch, settings, 1.0)["loss"].item() for batch in batches]
        return {"validation_dice": validate(model), "validation_loss": float(np.mean(lost)), "training_dice": learned(model)}

    return judge


def slice_validator(stores: list[Store], settings: Settings, steps: int = 40) -> Callable[[nn.Module], float]:
    """As released: model -> mean Dice over augmented validation slices, those that show the organ alone."""
    sampler = TermSampler(stores, settings)

    @torch.inference_mode()
    def validate(model: nn.Module) -> float:
        model.eval()
        found, device = [], next(model.parameters()).device
        for step in range(steps):
            terms = Terms(*(field.to(device) for field in sampler[step]))
            masks, marked = terms.masks > 0, model(terms, list(PROMPTS))[0] > 0
            both, area = (masks & marked).sum((1, 2)), masks.sum((1, 2))
            found += (2 * both / (area + marked.sum((1, 2))))[area > 0].tolist()
        return float(np.mean(found)) if found else 0.0

    return validate
