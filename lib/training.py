"""One page for every training: parameter groups, schedule, step, train, validation, run.

On Hugging Face Accelerate, in one process or several. Killed and called again, a training goes on from its
checkpoint: on a CPU bit for bit.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import gather_object, send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib import clipseg
from lib.config import RUNS, listed, run_folder
from lib.data import Store, check_disjoint, organs_in, organs_shown, record_split, stores_of
from lib.files import InputError, locked, merge_csv, read_csv, replacing, results_root, unwritable, write_json
from lib.inference import HALF, mask_of, predict
from lib.metrics import KEY, counts_of, dice, keep_scores, mean_dice, score_case
from lib.organs import BY_KEY, KEYS, PROMPT_SETS, text_prompts
from lib.volumes import read_labels, write_nifti

CHECKPOINT_SECONDS = 600  # that a kill may lose
Losses = Callable[[nn.Module, Any, Any, float], dict[str, Tensor]]  # (model, batch, settings, share done)
Build = Callable[[Any], nn.Module]  # settings -> model
Sampler = Callable[..., Any]  # (stores, settings, ...) -> batches by step
Test = tuple[str, str, str]  # data set, variant of its scans, condition (of prompts or windows)


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
    return list(groups.values())


def rate(step: int, lr: float, settings: Any, epoch_steps: int) -> float:
    """The learning rate of a step, as a share of `lr`: cosine annealing with warm restarts (section 3.5), or
    constant; after a linear rise from a twentieth where asked."""
    if step < settings.warmup_steps:
        return 0.05 + 0.95 * step / settings.warmup_steps
    passed = (step - settings.warmup_steps) / epoch_steps  # epochs
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "restarts by epoch":
        passed = math.floor(passed)
    least, place = settings.lr_least / lr, passed % settings.restart_epochs / settings.restart_epochs
    return least + (1 - least) * (1 + math.cos(math.pi * place)) / 2


def make_optimizer(model: nn.Module, settings: Any, epoch_steps: int) -> tuple[Optimizer, LRScheduler]:
    """AdamW by parameter groups, and their schedule, which moves with every step."""
    groups = parameter_groups(model, settings)
    own = partial(rate, settings=settings, epoch_steps=epoch_steps)
    rates: list[Callable[[int], float]] = [partial(own, lr=group["lr"]) for group in groups]
    optimizer = AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    return optimizer, LambdaLR(optimizer, rates)


def effort(model: nn.Module, settings: Any, steps: int) -> dict[str, Any]:
    """What a training does: its optimizer steps, and by parameter group the sum of the steps' learning rates,
    which bounds how far AdamW moves a weight."""
    summed = {}
    for group in parameter_groups(model, settings):
        lr, epoch_steps = group["lr"], steps // settings.epochs
        summed[group["name"]] = sum(lr * rate(step, lr, settings, epoch_steps) for step in range(steps))
    return {"optimizer_steps": steps, "summed_lr": summed}


def assert_gradients_arrive(model: nn.Module) -> None:
    """Every trainable parameter has a gradient in one of the first steps; the released encoders had none."""
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

    def __init__(self, model: nn.Module, settings: Any, losses: Losses, total: int, folder: Path) -> None:
        """Goes on from the newest checkpoint in `folder` that can be read. InputError: none can."""
        self.settings, self.losses, self.total, self.pieces = settings, losses, total, 1
        self.progress = SimpleNamespace(step=0, best=-1.0, rows=[], recent=[], seconds=0.0, validating=0.0)
        once = DataLoaderConfiguration(split_batches=True)  # the schedule moves once a step of all processes
        mixed = settings.precision if settings.precision in HALF else "no"
        self.accelerator = Accelerator(mixed_precision=mixed, dataloader_config=once)
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # `backward` adds up
        parts = make_optimizer(model, settings, total // settings.epochs)
        self.optimizer, self.scheduler = self.accelerator.prepare(*parts)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.parts |= {"scaler": self.accelerator.scaler} if self.accelerator.scaler else {}
        self.paths = [folder / "checkpoint-0.pt", folder / "checkpoint-1.pt"]  # the first is written next
        there = sorted((path for path in self.paths if path.exists()), key=lambda path: -path.stat().st_mtime)
        for path in there:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                vars(self.progress).update(state.pop("progress"))
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
            except Exception as error:  # torch and zipfile raise their own for a damaged file
                if isinstance(error, MemoryError) or should_reduce_batch_size(error):
                    advice = "end other programs, or take more memory."
                    raise InputError(f"{path} does not fit into memory: {advice}") from error
                told = " ".join(f"{path} cannot be read ({error}):".split())
                if path == there[-1]:
                    raise InputError(f"{told} delete it, and the run starts anew.") from error
                print(f"{told} the run goes on from the one before.", flush=True)
                continue
            self.paths.sort(key=path.__eq__)
            break
        self.proven = self.progress.step > 0  # that gradients reach all parameters

    def checkpoint(self) -> None:
        """Writes the whole state over the older of two files, so that a kill leaves one of them whole. It is
        written in place, and on the local disk first: a mounted drive would keep all that are replaced."""
        state, path = {name: part.state_dict() for name, part in self.parts.items()}, self.paths[0]
        try:
            with tempfile.TemporaryFile() as local:
                torch.save(state | {"progress": vars(self.progress)}, local)
                local.seek(0)
                with open(path, "wb") as file:
                    shutil.copyfileobj(local, file, 1 << 24)
        except (RuntimeError, OSError) as error:  # the first is what torch raises for a full disk
            path.unlink(missing_ok=True)
            raise unwritable(path, error) from error
        self.paths.reverse()

    def step(self, batch: Any) -> None:
        """One step of the optimizer and of its schedule. InputError: memory holds no smallest piece of it."""
        self.model.train()
        while not (found := self.backward(batch)):  # twice as many pieces from here on
            self.optimizer.zero_grad()
            clear_device_cache(garbage_collection=True)
            if len(split(batch, 2 * self.pieces)) == len(split(batch, self.pieces)):
                told = f"A step does not fit into the memory of {self.accelerator.device}, not even in"
                raise InputError(f"{told} {self.pieces} pieces: end other programs, or take more memory.")
            self.pieces *= 2
        self.accelerator.unscale_gradients()
        if not self.proven:  # drop-path may silence a branch in one step, but hardly in five
            last = self.progress.step >= min(4, self.total - 1)
            with nullcontext() if last else suppress(AssertionError):
                assert_gradients_arrive(self.model)
                self.proven = True
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.recent.append(found)
        self.progress.step += 1

    def backward(self, batch: Any) -> dict[str, Tensor]:
        """Gradients of the batch in pieces; returns its losses, or {} where memory does not hold a piece. The
        losses stay on the device: to read one is to wait for it."""
        accelerator, step, found = self.accelerator, self.progress.step, dict[str, Any]()
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # drop-path is a function of the step
        try:
            for share, piece in split(batch, self.pieces):
                piece = send_to_device(piece, accelerator.device, non_blocking=True)
                with accelerator.autocast():
                    losses = self.losses(self.model, piece, self.settings, step / self.total)
                accelerator.backward(losses["loss"] * share)
                found = {name: found.get(name, 0.0) + share * x.detach() for name, x in losses.items()}
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or should_reduce_batch_size(error):
                return {}
            raise
        if accelerator.num_processes > 1:  # the mean of all, for each has a share of the step
            for p in self.model.parameters():
                p.grad = accelerator.reduce(p.grad, "mean") if p.grad is not None else None
        return accelerator.reduce(found, "mean")


def batches_of(sampler: Any, settings: Any, steps: Sequence[int], device: torch.device) -> DataLoader:
    """The batches of these steps, at full size prepared by other processes while the device computes."""
    workers = min(4, (os.cpu_count() or 1) - 1) if settings.full_size else 0
    pin = device.type == "cuda"
    return DataLoader(sampler, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin)


def train(model: nn.Module, sampler: Any, losses: Losses, settings: Any, folder: Path,
          validate: Callable[[Any], dict[str, float]] | None = None) -> pd.DataFrame:
    """Trains `model` in `folder`, from its checkpoint where it has one; returns its log.

    sampler: maps a step to its batch. validate: maps a model to "validation_dice" and other columns, every
    `settings.validate_every` epochs and after the last; the best weights are best.safetensors (without it, or
    if `settings.keep` says so, the last ones). config.json has the settings, what `effort` says, and at the
    end the seconds that it took, those of validation among them.
    """
    trainer = Trainer(model, settings, losses, len(sampler), folder)
    progress, epoch_steps = trainer.progress, len(sampler) // settings.epochs
    main, weights = trainer.accelerator.is_main_process, folder / "best-so-far.safetensors"
    device = trainer.accelerator.device
    record = {"settings": asdict(settings), **effort(model, settings, len(sampler))}
    record["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    own, headline = folder.parent.name, [run_folder(name, settings).parent.name for name in RUNS]
    place = f" (run {headline.index(own) + 1} of {len(headline)})" if own in headline else ""
    title = f"training {own}{place if settings.full_size else ''}"
    if main:
        write_json(folder / "config.json", record)
        summed = ", ".join(f"{part} {lr:.2g}" for part, lr in record["summed_lr"].items())
        told = f"{title}: {len(sampler)} optimizer steps; summed learning rate: {summed}"
        print(told, file=sys.stderr, flush=True)  # as its bar: neither stays in an executed notebook
    loader = batches_of(sampler, settings, range(progress.step, len(sampler)), device)
    bar = tqdm(loader, title, len(sampler), initial=progress.step, leave=False, disable=not main)
    clock = saved = time.monotonic()
    for batch in bar:
        trainer.step(batch)
        epoch, position = divmod(progress.step, epoch_steps)
        scored: dict[str, float] = {}
        last = progress.step == len(sampler)
        if position == 0 and (last or epoch % settings.validate_every == 0):
            bar.set_postfix_str("validating")
            began = time.monotonic()
            scored = validate(model) if validate else {}
            progress.validating += time.monotonic() - began
            score = scored["validation_dice"] if scored and settings.keep == "best" else float(epoch)
            if score > progress.best:
                progress.best = score
                if main:
                    clipseg.save_weights(model, weights)
        if position == 0 or progress.step % 25 == 0 or progress.step <= 10:  # a row of the log
            recent = progress.recent
            means = {name: sum(row[name].item() for row in recent) / len(recent) for name in recent[0]}
            lr = trainer.scheduler.get_last_lr()[0]
            progress.rows.append({"step": progress.step, **means, "epoch": epoch, "lr": lr, **scored})
            recent.clear()
            bar.set_postfix_str(f"loss {means['loss']:.3f}", refresh=False)
        now = time.monotonic()
        progress.seconds, clock = progress.seconds + now - clock, now
        if main and (position == 0 or now - saved > CHECKPOINT_SECONDS):
            trainer.checkpoint()
            with replacing(folder / "log.csv") as part:
                pd.DataFrame(progress.rows).to_csv(part, index=False)
            saved = time.monotonic()
    if main:
        took = {"seconds": round(progress.seconds, 1), "seconds_validating": round(progress.validating, 1)}
        write_json(folder / "config.json", record | took)
        weights.rename(folder / "best.safetensors")  # by which a run is finished
        for path in trainer.paths:
            path.unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()  # or another process would not find it finished
    return pd.DataFrame(progress.rows)


def processes() -> PartialState:
    """This process among those of `accelerate launch`, and its device; one may prepare scans for hours."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=6))


def volume_dice(model: nn.Module, stores: Sequence[Store], settings: Any) -> float:
    """Mean Dice over whole scans, 0 where no organ is there or found; processes share the scans.

    Organs that no label file of the data set shows are not asked for."""
    rows, process, shown = [], processes(), organs_shown(settings, settings.train_on)
    for store in stores[process.process_index :: process.num_processes]:
        truth = read_labels(store.source.labels, store.label_map, store.grid)  # type: ignore[arg-type]
        claims = store.grid.to_canonical(predict(model, store, settings, (), shown).claims)
        for key in (key for key in settings.organs if key in shown):
            mask, organ = mask_of(claims, KEYS.index(key)), truth == BY_KEY[key].label
            rows.append({"organ": key, "dice": dice(**counts_of(mask, organ))})
    return float(np.nan_to_num(mean_dice(pd.DataFrame(gather_object(rows)))))


@torch.inference_mode()
def validate(model: Any, settings: Any, sampler: Sampler, losses: Losses) -> dict[str, float]:
    """Columns of log.csv: Dice on validation scans; of slices also their loss, and Dice on training scans."""
    stores, device = stores_of(settings, "validation"), next(model.eval().parameters()).device
    if getattr(settings, "validation", "") == "augmented slices":  # as released: those that show the organ
        batches, found = sampler(stores, settings), []
        for step in range(40):
            batch = send_to_device(batches[step], device)
            masks, marked = batch.masks > 0, model(batch, list(KEYS))[0] > 0
            both, area = (masks & marked).sum((1, 2)), masks.sum((1, 2))
            found += (2 * both / (area + marked.sum((1, 2))))[area > 0].tolist()
        return {"validation_dice": float(np.mean(found)) if found else 0.0}
    scored = {"validation_dice": volume_dice(model, stores, settings)}
    if hasattr(settings, "intensity"):  # slices
        batches, lost = sampler(stores, settings, augmented=False), []
        for step in range(min(16, settings.epoch_steps or 16)):
            lost.append(losses(model, send_to_device(batches[step], device), settings, 1.0)["loss"].item())
        learned = stores_of(settings, "training")[: len(stores)]
        scored |= {"validation_loss": float(np.mean(lost))}
        scored |= {"training_dice": volume_dice(model, learned, settings)}
    return scored


def check_machine(settings: Any) -> None:
    """Sets a run's arithmetic. InputError: the device lacks it, or is a CPU and the model of full size.

    32 bits are 32 bits: torch would let convolutions on a GPU round to TF32. Where all steps have one shape,
    cuDNN tries which kernel is the fastest.
    """
    device, precision = processes().device, settings.precision
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = not hasattr(settings, "adapter")
    if settings.full_size and device.type == "cpu" and os.environ.get("CPU", "0") in ("", "0"):
        advice = "choose a machine with one, or set CPU=1 to go on without (a step takes up to 79 seconds)."
        raise InputError(f"PROFILE={settings.profile} needs a GPU, and none is found: {advice}")
    if precision in ("fp16", "tf32") and device.type == "cpu":
        raise InputError(f"PRECISION={precision} needs a GPU, and none is found: leave PRECISION out.")
    older = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    if precision in ("bf16", "tf32") and older:
        told = f"{torch.cuda.get_device_name(device)} does not compute in {precision}: take PRECISION=fp16."
        raise InputError(told)  # it would imitate it, slowly


def trained(name: str, settings: Any, build: Build, sampler: Sampler, losses: Losses) -> Any:
    """The run's model with its best weights; trains what is not trained yet. Processes share each step.

    Started twice at once, the second waits until the first has trained.
    """
    check_machine(settings)
    folder, process, model = run_folder(name, settings), processes(), build(settings)
    with locked(str(folder)) if process.is_main_process else nullcontext():
        process.wait_for_everyone()
        if not (folder / "best.safetensors").exists():
            with process.local_main_process_first():  # what a sampler keeps on disk is made once
                stores = stores_of(settings, "training")
                batches = sampler(stores, settings, process.process_index, process.num_processes)
            judge = partial(validate, settings=settings, sampler=sampler, losses=losses)
            train(model, batches, losses, settings, folder, judge if settings.test_on else None)
            model = build(settings)  # anew, for mixed precision leaves its mark on a model
    if process.is_main_process and settings.test_on:
        log = pd.read_csv(folder / "log.csv").set_index("step")
        log = pd.concat({(name, settings.seed): log}, names=["run", "seed"]).reset_index()
        home, by = results_root(settings.profile), ["run", "seed"]
        merge_csv(home / "logs.csv", log, by, [*by, "step"])
        record = json.loads((folder / "config.json").read_text())
        took = {part: record[part] for part in ("optimizer_steps", "seconds", "seconds_validating")}
        parts, summed = zip(*record["summed_lr"].items(), strict=True)
        steps = pd.DataFrame({"run": name, "seed": settings.seed, "part": parts, "summed_lr": summed, **took})
        merge_csv(home / "steps.csv", steps, by, [*by, "part"])
    clipseg.load_weights(model, folder / "best.safetensors")
    return model.to(process.device)


def run(name: str, settings: Any, build: Build, sampler: Sampler, losses: Losses, tests: Sequence[Test] = (),
        train: bool = True) -> pd.DataFrame:
    """Scores of a run, a row for each scan and organ; trains, predicts and scores what is not there yet.

    tests: beyond `settings.test_on`. train=False: the stored scores alone, or an empty table; so, too, where
    $RUNS ("baseline, adapter") does not name the run. The rows take their place in
    results/<profile>/scores.csv, and the scans of the split in splits.csv.
    """
    path, process = results_root(settings.profile) / "scores.csv", processes()
    if train and (named := listed("RUNS")) and name not in named:
        print(f"{name} is left out, for RUNS does not name it.", flush=True)
        train = False
    if not train:
        stored = read_csv(path) if path.is_file() else pd.DataFrame(columns=[*KEY, "config"])
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
        for dataset in dict.fromkeys((settings.train_on, *(one[0] for one in sets))):
            shown = organs_shown(settings, dataset)
            missing = ", ".join(key for key in settings.organs if key not in shown)
            where = "anywhere" if dataset == settings.train_on else "there"
            if missing and process.is_main_process:
                told = f"No label file of {dataset} shows {missing}: neither asked for nor scored {where}."
                print(f"{name}: {told}", flush=True)
    model = trained(name, settings, build, sampler, losses)
    folder = run_folder(name, settings) / "predictions"
    table = pd.concat([evaluate(model, settings, test, folder) for test in every if test[:2] in sets])
    table = table.assign(run=name, seed=settings.seed, profile=settings.profile, config=settings.hash())
    if process.is_main_process:
        table = keep_scores(table, settings.profile)
        record_split(settings, sets)
    return table


def evaluate(model: Any, settings: Any, test: Test, folder: Path, prompts: tuple = (),
             stores: Sequence[Store] = ()) -> pd.DataFrame:
    """Score rows of a model on one test, scan by scan; several processes share the scans. Organs that no
    label file of the training set or of the test set shows have no rows.

    folder: keeps each scan's scores, so that a killed evaluation goes on, and predictions for the figures.
    prompts: one's own, in the place of the condition's. stores: scans of no data set of the profile. All
    columns but one score each prompt's mask, and masks may overlap; `map_dice` is the Dice of the label map
    that is written, in which a voxel has but one organ: the one of the highest probability.
    """
    (dataset, variant, condition), process, asked = test, processes(), prompts
    own = organs_in([store.source for store in stores]) if stores else organs_shown(settings, dataset)
    learned = organs_shown(settings, settings.train_on)
    shown = {*own} & {*learned}
    stores, title = stores or stores_of(settings, dataset, variant), " ".join(filter(None, test))
    where, mine = folder / title, stores[process.process_index :: process.num_processes]
    if not asked and hasattr(settings, "adapter"):
        asked = PROMPT_SETS.get(condition, ())
    elif not asked and condition and getattr(settings, "bert", ""):
        asked = text_prompts(condition, settings.organs)
    seen = replace(settings, window_unit="mm") if condition == "window in mm" else settings
    for store in tqdm(mine, f"scoring {title}", leave=False, disable=not process.is_main_process):
        scores, made = where / f"{store.id}.csv", (store.folder / "case.json").stat().st_mtime
        with locked(str(scores)):  # or a run that is started twice at once would write it twice
            if scores.exists() and scores.stat().st_mtime >= made and not prompts:
                continue
            prediction = predict(model, store, seen, asked, learned)
            if not condition and variant in ("", "held out"):  # what the figures show
                write_nifti(prediction.winner, store.grid, where / f"{store.id}.nii.gz")
                with replacing(where / f"{store.id}.npz") as part, open(part, "wb") as file:
                    np.savez_compressed(file, claims=prediction.claims)
            truth = read_labels(store.source.labels, store.label_map, store.grid)  # type: ignore[arg-type]
            claims = store.grid.to_canonical(prediction.claims)
            masks = ((key, mask_of(claims, KEYS.index(key))) for key in KEYS if key in settings.organs)
            rows = list(score_case(masks, truth, store.label_map, store.grid.axes_mm))
            written = store.grid.to_canonical(prediction.winner)
            for row in rows:
                label = BY_KEY[row["organ"]].label
                row["map_dice"] = dice(**counts_of(written == label, truth == label))
            with replacing(scores) as part:
                pd.DataFrame(rows).to_csv(part, index=False)
    process.wait_for_everyone()
    tables = [pd.read_csv(where / f"{store.id}.csv").assign(case=store.id) for store in stores]
    table = pd.concat(tables).assign(dataset=dataset, variant=variant, condition=condition)
    return table[table["organ"].isin(shown)]
