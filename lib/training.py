"""One page for every training: parameter groups, schedule, step, train, validation, run.

On Hugging Face Accelerate, in one process or several. Killed and called again, a training goes on from its
checkpoint: on a CPU bit for bit.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib import clipseg
from lib.config import NO_NUMBER, Settings, is_finished, record_of, run_folder
from lib.data import Store, check_disjoint, record_split, stores_of
from lib.files import InputError, locked, merge_csv, replacing, results_root, unwritable, write_json
from lib.inference import mask_of, predict
from lib.metrics import KEY, dice, mean_dice, score_case
from lib.organs import BY_KEY, KEYS, PROMPT_SETS, text_prompts
from lib.tables import read_scores
from lib.volumes import read_labels, write_nifti

Losses = Callable[[nn.Module, Any, Any, float], dict[str, Tensor]]  # (model, batch, settings, share done)
Build = Callable[[Any], nn.Module]  # settings -> model
Sampler = Callable[..., Any]  # (stores, settings, ...) -> batches by step
Test = tuple[str, str, str]  # data set, variant of its scans, condition (of prompts or windows)


# Parameter groups, schedule, step


def parameter_groups(model: nn.Module, settings: Any) -> list[dict[str, Any]]:
    """Learning rates of section 3.5 by part of the model; each trainable parameter is in one group."""
    parts = {"base_model.clip.": "encoder", "base_model.decoder.": "decoder", "adapter.gate_proj.": "gate"}
    parts |= {"adapter.": "adapter", "": "network"}  # the first that fits
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next(part for start, part in parts.items() if name.startswith(start))
            lr = settings.lr if part == "network" else getattr(settings, f"lr_{part}")
            groups.setdefault(part, {"name": part, "lr": lr, "params": []})["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters() if p.requires_grad}), "one group each"
    return list(groups.values())


def make_optimizer(model: nn.Module, settings: Any, epoch_steps: int) -> tuple[Optimizer, LRScheduler]:
    """AdamW by groups; cosine annealing with warm restarts (section 3.5), after a linear rise where asked."""
    optimizer = AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True)
    cosine = CosineAnnealingWarmRestarts(optimizer, settings.restart_epochs * epoch_steps)
    if not settings.warmup_steps:
        return optimizer, cosine
    rise = LinearLR(optimizer, 0.05, total_iters=settings.warmup_steps)
    return optimizer, SequentialLR(optimizer, [rise, cosine], [settings.warmup_steps])


def assert_gradients_arrive(model: nn.Module) -> None:
    """Every trainable parameter has a gradient after the first step; the released encoders had none."""
    for name, p in model.named_parameters():
        arrived = p.grad is not None and (p.grad.any() or "lora_A" in name)  # lora_B starts at zero
        assert arrived or not p.requires_grad, f"no gradient reaches {name}"


def split(batch: Any, parts: int) -> list[tuple[float, Any]]:
    """At most `parts` pieces of a batch with their shares, by which their losses add up to the batch's."""
    if parts == 1:
        return [(1.0, batch)]
    if hasattr(batch, "split"):
        return batch.split(parts)
    pieces = zip(*(field.chunk(parts) for field in batch), strict=True)
    return [(len(piece[0]) / len(batch[0]), type(batch)(*piece)) for piece in pieces]


class Trainer:
    """A model with its optimizer, schedule and progress, as one process holds them."""

    def __init__(self, model: nn.Module, settings: Any, losses: Losses, epoch_steps: int, total: int) -> None:
        self.settings, self.losses, self.total, self.parts = settings, losses, total, 1
        once = DataLoaderConfiguration(split_batches=True)  # the schedule moves once a step of all processes
        self.accelerator = Accelerator(mixed_precision=settings.precision, dataloader_config=once)
        prepared = self.accelerator.prepare(model, *make_optimizer(model, settings, epoch_steps))
        self.model, self.optimizer, self.scheduler = prepared
        self.bare_model = self.accelerator.unwrap_model(self.model)
        self.progress = SimpleNamespace(step=0, best=-1.0, best_step=0, seconds=0.0)
        self.progress.rows, self.progress.recent, self.progress.gradients = [], [], {}
        self.accelerator.register_for_checkpointing(self)

    def state_dict(self) -> dict[str, Any]:  # what Accelerate's checkpoints hold beside the model's state
        return vars(self.progress).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.progress).update(state)

    def step(self, batch: Any) -> None:
        """One step of the optimizer and of its schedule, on one batch."""
        self.model.train()
        while not (found := self.backward(batch)):  # memory does not hold a piece
            self.divide(batch)
        if first := not self.progress.gradients:
            assert_gradients_arrive(self.bare_model)
        if self.settings.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        else:
            self.accelerator.unscale_gradients()
        if first:  # half precision tries its scale first
            named = self.bare_model.named_parameters()
            norms = {name: p.grad.norm().item() for name, p in named if p.grad is not None}
            self.progress.gradients = norms if np.isfinite(list(norms.values())).all() else {}
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.recent.append(found)
        self.progress.step += 1

    def backward(self, batch: Any) -> dict[str, float]:
        """Gradients of the batch in `parts` pieces; returns its losses, or {} where memory holds no piece."""
        accelerator, step, found = self.accelerator, self.progress.step, dict[str, float]()
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # drop-path is a function of the step
        try:
            with accelerator.no_sync(self.model):  # each process has pieces of its own
                for share, piece in split(batch, self.parts):
                    piece = send_to_device(piece, accelerator.device, non_blocking=True)
                    with accelerator.autocast():
                        losses = self.losses(self.model, piece, self.settings, step / self.total)
                    accelerator.backward(losses["loss"] * share)
                    found = {name: found.get(name, 0.0) + share * x.item() for name, x in losses.items()}
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
            return {}
        if accelerator.num_processes > 1:  # the mean of all, for each has a share of the step
            for p in self.model.parameters():
                p.grad = accelerator.reduce(p.grad, "mean") if p.grad is not None else None
            values = torch.tensor(list(found.values()), device=accelerator.device)
            found = dict(zip(found, accelerator.reduce(values, "mean").tolist(), strict=True))
        return found

    def divide(self, batch: Any) -> None:
        """Makes twice as many pieces from here on. InputError: there are no more."""
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        if len(split(batch, 2 * self.parts)) == len(split(batch, self.parts)):
            where = f"the memory of {self.accelerator.device}, not even in {self.parts} pieces"
            raise InputError(f"A step does not fit into {where}: end other programs, or take more memory.")
        self.parts *= 2

    def resume(self, folder: Path) -> None:
        """Takes up the newest checkpoint. InputError: it cannot be read."""
        for newest in sorted(folder.glob("checkpoint-*"))[-1:]:
            try:
                self.accelerator.load_state(str(newest))
            except Exception as error:  # torch, safetensors and pickle raise their own for a damaged file
                told = f"{newest} cannot be read ({error}): delete it, and the run starts anew."
                raise InputError(told) from error

    def checkpoint(self, folder: Path) -> None:
        """Writes the whole state beside the last one, then removes that: after a kill one is whole."""
        part, older = folder / "part-of-checkpoint", list(folder.glob("checkpoint-*"))
        try:
            self.accelerator.save_state(str(part))
        except Exception as error:  # torch and safetensors raise their own for a full disk
            raise unwritable(part, error) from error
        self.accelerator.wait_for_everyone()  # each process writes its random state there
        if self.accelerator.is_main_process:
            with replacing(folder / "log.csv") as log:
                pd.DataFrame(self.progress.rows).to_csv(log, index=False)
            part.rename(folder / f"checkpoint-{self.progress.step:09d}")
            for old in older:
                shutil.rmtree(old)


# Train


def train(model: nn.Module, sampler: Any, losses: Losses, settings: Any, folder: Path,
          validate: Callable[[Any], dict[str, float]] | None = None) -> pd.DataFrame:
    """Trains `model` in `folder`, from its checkpoint where it has one; returns its log.

    sampler: maps a step to its batch. validate: maps a model to "validation_dice" and other columns, once an
    epoch; the best weights are best.safetensors (without it, or if `settings.keep` says so, the last ones).
    """
    total = len(sampler)
    epoch_steps = total // settings.epochs
    start = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, settings, losses, epoch_steps, total)
    trainer.resume(folder)
    progress, accelerator = trainer.progress, trainer.accelerator
    main, gpu = accelerator.is_main_process, accelerator.device.type == "cuda"
    workers = min(4, (os.cpu_count() or 1) - 1) if settings.full_size else 0  # that prepare batches
    steps = range(progress.step, total)
    loader = DataLoader(sampler, batch_size=None, sampler=steps, num_workers=workers, pin_memory=gpu)
    title = f"training {folder.parent.name}"
    bar = tqdm(loader, title, total, initial=progress.step, leave=False, disable=not main)
    clock = time.monotonic()
    for batch in bar:
        trainer.step(batch)
        epoch, position = divmod(progress.step, epoch_steps)
        late, scored = [time.monotonic() - clock > 600], dict[str, float]()  # seconds that a kill may lose
        if accelerator.num_processes > 1:
            broadcast_object_list(late)  # the first process's clock counts
        due = position == 0 or late[0] or progress.step % settings.checkpoint_steps == 0
        if due and record_of(folder).get("hash", settings.hash()) != settings.hash():
            told = f"{folder} belongs to a run of other settings by now"
            raise InputError(f"{told}: start this one again, and it goes on.")
        if position == 0:
            bar.set_postfix_str("validating")
            scored = validate(trainer.bare_model) if validate else {}
            score = scored["validation_dice"] if scored and settings.keep == "best" else float(epoch)
            if score > progress.best:
                progress.best, progress.best_step = score, progress.step
                if main:
                    clipseg.save_weights(trainer.bare_model, folder / "best.safetensors")
        if position == 0 or progress.step % 25 == 0 or progress.step <= 10:  # a row of the log
            recent, progress.recent = progress.recent, []
            means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[0]}
            lr = trainer.scheduler.get_last_lr()[0]
            progress.rows.append({"step": progress.step, **means, "epoch": epoch, "lr": lr, **scored})
            bar.set_postfix_str(f"loss {means['loss']:.3f}", refresh=False)
        if due:
            progress.seconds, clock = progress.seconds + time.monotonic() - clock, time.monotonic()
            trainer.checkpoint(folder)
    accelerator.wait_for_everyone()
    if main:
        table = audit(trainer.bare_model, start, load_file(folder / "best.safetensors"), progress.gradients)
        with replacing(folder / "audit.csv") as part:
            table.to_csv(part, index=False, float_format="%.6g")
        record = {"hash": settings.hash(), "settings": asdict(settings), "finished": settings.hash()}
        record |= {"seconds": round(progress.seconds, 1), "validation_dice": progress.best}
        record |= {"best_step": progress.best_step, "pieces": trainer.parts}
        write_json(folder / "config.json", record)
        for old in folder.glob("checkpoint-*"):  # of no more use
            shutil.rmtree(old)
    accelerator.wait_for_everyone()  # or another process, asking for this run, would not find it finished
    return pd.DataFrame(progress.rows)


def audit(model: nn.Module, start: dict, end: dict, gradients: dict) -> pd.DataFrame:
    """What training did to each module: how many parameters may train and did move, and by how much.

    change: its norm over the norm at the start. gradient: norm at the first step, after clipping. Of each
    parameter by its name are given: start and end, tensors, and gradients, norms.
    """
    rows = []
    for name, parameter in model.named_parameters():
        before, words = start[name].float(), name.split(".")
        after = end[name].float() if name in end else before  # frozen weights of the hub are not saved
        number = next((place for place, word in enumerate(words) if word.isdigit()), len(words) - 2)
        deep = number + 1 if words[0] != "adapter" else 3 if words[1] == "temporal_layers" else 2
        trainable, moved = parameter.numel() * parameter.requires_grad, int((before != after).sum())
        change, norm = (after - before).square().sum().item(), before.square().sum().item()
        module, gradient = ".".join(words[:deep]), gradients.get(name, 0.0) ** 2  # whole layers together
        rows.append((module, parameter.numel(), trainable, moved, change, norm, gradient))
    columns = ["module", "parameters", "trainable", "moved", "change", "norm", "gradient"]
    table = pd.DataFrame(rows, columns=columns).groupby("module", sort=False, as_index=False).sum()
    table["change"] = (table["change"] / table["norm"].where(table["norm"] > 0)) ** 0.5
    return table.assign(gradient=table["gradient"] ** 0.5).drop(columns="norm")


# Validation


def processes() -> PartialState:
    """This process among those of `accelerate launch`, and its device; one may prepare scans for hours."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=6))


def volume_dice(model: nn.Module, stores: Sequence[Store], settings: Any) -> float:
    """Mean Dice over whole scans, which chooses the best weights; processes share the scans."""
    rows, process = [], processes()
    for store in stores[process.process_index :: process.num_processes]:
        truth = read_labels(store.source.labels, store.label_map, store.grid)  # type: ignore[arg-type]
        claims = store.grid.to_canonical(predict(model, store, settings).claims)
        for key in settings.organs:
            mask, organ = mask_of(claims, KEYS.index(key)), truth == BY_KEY[key].label
            score = dice(int((mask & organ).sum()), int(organ.sum()), int(mask.sum()))
            rows.append({"organ": key, "dice": score})
    found = mean_dice(pd.DataFrame(gather_object(rows)))
    return float(np.nan_to_num(found))  # 0 where no organ is there or found


@torch.inference_mode()
def slice_dice(model: Any, sampler: Any, steps: int = 40) -> float:
    """As released: mean Dice over augmented validation slices, those that show the organ alone."""
    found, device = [], next(model.eval().parameters()).device
    for step in range(steps):
        batch = send_to_device(sampler[step], device)
        masks, marked = batch.masks > 0, model(batch, list(KEYS))[0] > 0
        both, area = (masks & marked).sum((1, 2)), masks.sum((1, 2))
        found += (2 * both / (area + marked.sum((1, 2))))[area > 0].tolist()
    return float(np.mean(found)) if found else 0.0


def validator(settings: Any, sampler: Sampler, losses: Losses) -> Callable[[nn.Module], dict[str, float]]:
    """Model -> columns of log.csv: Dice on validation scans; of slices also their loss, and training Dice."""
    stores = stores_of(settings, "validation")
    if getattr(settings, "validation", "") == "augmented slices":
        return lambda model: {"validation_dice": slice_dice(model, sampler(stores, settings))}
    if not hasattr(settings, "intensity"):
        return lambda model: {"validation_dice": volume_dice(model, stores, settings)}
    batches = sampler(stores, settings, augmented=False)
    learned = stores_of(settings, "training")[: len(stores)]

    @torch.inference_mode()
    def validate(model: nn.Module) -> dict[str, float]:
        device, lost = next(model.eval().parameters()).device, []
        for step in range(min(16, settings.epoch_steps or 16)):
            lost.append(losses(model, send_to_device(batches[step], device), settings, 1.0)["loss"].item())
        found, own = volume_dice(model, stores, settings), volume_dice(model, learned, settings)
        return {"validation_dice": found, "validation_loss": float(np.mean(lost)), "training_dice": own}

    return validate


# A run from its parts to its scores


def check_machine(settings: Any) -> None:
    """InputError where the device lacks the run's precision, or is a CPU and the model of full size."""
    device, precision = processes().device, settings.precision
    if settings.full_size and device.type == "cpu" and os.environ.get("CPU", "0") in ("", "0"):
        slow = "on two processor cores a step takes 12 to 79 seconds (results/full_proof.txt)"
        advice = "choose a machine with a GPU, or set CPU=1 to go on without."
        raise InputError(f"PROFILE={settings.profile} needs a GPU, and none is found: {slow}; {advice}")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("PRECISION=fp16 needs a GPU, and none is found: leave PRECISION out.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        told = f"{torch.cuda.get_device_name(device)} does not compute in bf16: take PRECISION=fp16."
        raise InputError(told)  # it would imitate it, slowly


def claim_folder(folder: Path, settings: Settings) -> None:
    """Makes `folder` that of the run with these settings; nothing is ever deleted.

    A run of other settings is put aside beside it by its hash, and taken up again when they come back.
    """
    with locked(str(folder)):
        record, wanted = record_of(folder), settings.hash()
        if record.get("hash") == wanted:
            return
        beside = sorted(folder.parent.glob(f"{folder.name}-{wanted}*"))  # somebody may have copied it
        mine = [path for path in beside if record_of(path).get("hash") == wanted]
        worth = mine or "finished" in record or any(folder.glob("checkpoint-*"))
        if worth and folder.is_dir() and any(folder.iterdir()):
            name = f"{folder.name}-{record.get('hash', 'unknown')}"
            names = (name, *(f"{name}-{n}" for n in range(2, 1000)))
            aside = next(path for path in map(folder.with_name, names) if not path.exists())
            now, before = json.loads(json.dumps(asdict(settings))), record.get("settings", {})
            differ = [key for key in now if key not in NO_NUMBER and before.get(key) != now[key]]
            told = f"{folder} is kept as {aside.name}; other settings: {', '.join(differ) or 'the weights'}."
            print(told, flush=True)
            folder.rename(aside)
        if not mine:
            write_json(folder / "config.json", {"hash": wanted, "settings": asdict(settings)})
            return
        if folder.exists():
            folder.rmdir()  # an empty one
        max(mine, key=lambda path: is_finished(path, settings)).rename(folder)


def trained(name: str, settings: Any, build: Build, sampler: Sampler, losses: Losses) -> Any:
    """The run's model with its best weights; trains what is not trained yet. Processes share each step."""
    check_machine(settings)
    folder, process = run_folder(name, settings.profile, settings.seed), processes()
    if process.is_main_process:
        claim_folder(folder, settings)
    process.wait_for_everyone()
    model = build(settings)
    if not is_finished(folder, settings):
        with process.local_main_process_first():  # what a sampler keeps on disk is made once
            stores = stores_of(settings, "training")
            batches = sampler(stores, settings, process.process_index, process.num_processes)
        validate = validator(settings, sampler, losses) if settings.test_on else None
        log = train(model, batches, losses, settings, folder, validate)
        if process.is_main_process and settings.test_on:
            moved = pd.read_csv(folder / "audit.csv").rename_axis("place").reset_index()
            for file, table, place in (("logs.csv", log, "step"), ("audit.csv", moved, "place")):
                order = ["run", "seed", place]
                own = table.assign(run=name, seed=settings.seed).set_index(order).reset_index()
                merge_csv(results_root(settings.profile) / file, own, order[:2], order)
        model = build(settings)  # anew, for mixed precision leaves its mark on a model
    clipseg.load_weights(model, folder / "best.safetensors")
    return model.to(process.device)


def run(name: str, settings: Any, build: Build, sampler: Sampler, losses: Losses, tests: Sequence[Test] = (),
        train: bool = True) -> pd.DataFrame:
    """Scores of a run, a row for each scan and organ; trains, predicts and scores what is not there yet.

    tests: beyond `settings.test_on`. train=False: the stored scores alone, or an empty table. The rows take
    their place in results/<profile>/scores.csv, and the scans of the split in splits.csv.
    """
    path, process = results_root(settings.profile) / "scores.csv", processes()
    if not train:
        if not path.is_file():
            return pd.DataFrame(columns=[*KEY, "config"])
        stored = read_scores(settings.profile)
        return stored[(stored["run"] == name) & (stored["seed"] == settings.seed)]
    check_machine(settings)
    own = ((dataset, settings.test_variant, "") for dataset in settings.test_on)
    every = list(dict.fromkeys([*own, *tests]))
    asked, sets = list(dict.fromkeys(test[:2] for test in every)), []
    with process.local_main_process_first():
        check_disjoint(settings, [])  # the scans to train on
        for one in asked:
            try:
                check_disjoint(settings, [one])
                sets.append(one)
            except InputError as error:  # a test set that cannot be used is left out
                if settings.phantoms or (one == asked[-1] and not sets):
                    raise
                if process.is_main_process:
                    print(f"{name} is not scored on {' '.join(filter(None, one))}: {error}", flush=True)
    model = trained(name, settings, build, sampler, losses)
    folder = run_folder(name, settings.profile, settings.seed) / "predictions"
    table = pd.concat([evaluate(model, settings, test, folder) for test in every if test[:2] in sets])
    table = table.assign(run=name, seed=settings.seed, profile=settings.profile, config=settings.hash())
    table = table.set_index([*KEY, "config"]).reset_index()  # these columns first
    if process.is_main_process:  # rows of other tests stay
        merge_csv(path, table, ["run", "seed", "dataset", "variant", "condition"], KEY)
        record_split(settings, sets)
    return table


def evaluate(model: Any, settings: Any, test: Test, folder: Path, prompts: tuple = ()) -> pd.DataFrame:
    """Score rows of a model on one test, scan by scan; several processes share the scans.

    folder: keeps each scan's scores, so that a killed evaluation goes on, and predictions for the figures.
    prompts: in the place of the condition's own.
    """
    (dataset, variant, condition), process = test, processes()
    stores, title = stores_of(settings, dataset, variant), " ".join(filter(None, test))
    where, asked = folder / title, prompts or prompts_of(settings, condition)
    seen = replace(settings, window_unit="mm") if condition == "window in mm" else settings
    mine = stores[process.process_index :: process.num_processes]
    for store in tqdm(mine, f"scoring {title}", leave=False, disable=not process.is_main_process):
        scores, made = where / f"{store.id}.csv", (store.folder / "case.json").stat().st_mtime
        if scores.exists() and scores.stat().st_mtime >= made and not prompts:
            continue
        prediction = predict(model, store, seen, asked)
        if not condition and variant in ("", "held out"):  # what the figures show
            write_nifti(prediction.winner, store.grid, where / f"{store.id}.nii.gz")
            with replacing(where / f"{store.id}.npz") as part, open(part, "wb") as file:
                np.savez_compressed(file, claims=prediction.claims)
        with replacing(scores) as part:
            pd.DataFrame(score_rows(prediction.claims, store, settings.organs)).to_csv(part, index=False)
    process.wait_for_everyone()
    tables = [pd.read_csv(where / f"{store.id}.csv").assign(case=store.id) for store in stores]
    return pd.concat(tables).assign(dataset=dataset, variant=variant, condition=condition)


def score_rows(claims: np.ndarray, store: Store, organs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Score rows of native (A, B, C) claims, bit p for ORGANS[p], against the scan's own ground truth."""
    truth = read_labels(store.source.labels, store.label_map, store.grid)  # type: ignore[arg-type]
    claims = store.grid.to_canonical(claims)
    masks = ((key, mask_of(claims, place)) for place, key in enumerate(KEYS) if key in organs)
    return score_case(masks, truth, store.label_map, store.grid.spacing_mm)


def prompts_of(settings: Any, condition: str) -> tuple[str, ...]:
    """What a model is asked under a condition: PROMPT_SETS, or Med-VLM's TEXTS; () for its training's own."""
    if hasattr(settings, "adapter"):
        return PROMPT_SETS.get(condition, ())
    return text_prompts(condition, settings.organs) if condition and getattr(settings, "bert", "") else ()
