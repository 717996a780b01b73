"""One page for every training, on Hugging Face Accelerate: groups, schedule, step, loop; and a run from start
to scores.

One process or several, CPU or GPU. Killed and called again, a training goes on from its checkpoint: on a CPU
bit for bit.
"""

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib import clipseg, med_vlm
from lib.clipseg import load_start, load_weights, save_weights
from lib.config import NO_NUMBER, Settings, is_finished, record_of, run_folder, settings_of
from lib.data import Store, check_disjoint, record_split, stores_of
from lib.files import NAMES, InputError, locked, merge_csv, replacing, results_root, unwritable, write_json
from lib.inference import mask_of, predict
from lib.metrics import KEY, dice, mean_dice, score_case
from lib.organs import BY_KEY, KEYS, PROMPT_SETS, text_prompts
from lib.volumes import read_labels, write_nifti
from lib.windows import SliceSampler, WindowSampler

LOG_STEPS, FIRST_STEPS = (
    25, 10,
)  # every so many steps log.csv has a row; each of the first steps has one of its own
CHECKPOINT_SECONDS = 600  # that a session that ends may lose at most
WORKERS = 4  # processes that prepare the batches of full-size slices and volumes
Losses = Callable[
    [nn.Module, Any, Any, float], dict[str, Tensor]
]  # (model, batch, settings, share of the training done)
Build = Callable[[Any], nn.Module]  # settings -> model
Sampler = Callable[..., Any]  # (stores, settings, ...) -> batches by step
Test = tuple[
    str, str, str
]  # data set, variant of its scans, condition: what is asked, or how windows are taken


def processes() -> PartialState:
    """This process among those of `accelerate launch`, and its device.

    Others may wait for hours while one prepares scans.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=6))


def parameter_groups(model: nn.Module, settings: Any) -> list[dict[str, Any]]:
    """Learning rates of section 3.5 by part of the model.

    Every trainable parameter is in exactly one group.
    """
    parts = {"base_model.clip.": "encoder", "base_model.decoder.": "decoder"}
    parts |= {"adapter.gate_proj.": "gate", "adapter.": "adapter"}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for start, part in parts.items() if name.startswith(start)), "network")
            lr = settings.lr if part == "network" else getattr(settings, f"lr_{part}")
            groups.setdefault(part, {"name": part, "lr": lr, "params": []})["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable), (
        "each trainable parameter belongs in exactly one optimizer group"
    )
    return list(groups.values())


def make_optimizer(
    model: nn.Module, settings: Settings, epoch_steps: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """AdamW by groups, and cosine annealing with warm restarts (section 3.5), after a linear rise where
    the settings say so."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True
    )
    cosine = CosineAnnealingWarmRestarts(optimizer, settings.restart_epochs * epoch_steps)
    if not settings.warmup_steps:
        return optimizer, cosine
    rise = LinearLR(optimizer, 0.05, total_iters=settings.warmup_steps)
    return optimizer, SequentialLR(optimizer, [rise, cosine], [settings.warmup_steps])


def assert_gradients_arrive(model: nn.Module) -> None:
    """After the first backward pass no trainable parameter may be without a gradient (the released baseline's
    encoders were).

    LoRA's first matrix has one of zeros, for its second starts at zero.
    """
    trainable = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    idle = [
        n for n, gradient in trainable.items() if gradient is None or not (gradient.any() or "lora_A" in n)
    ]
    assert not idle, f"no gradient reaches {', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''}"


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError where the device does not compute in `precision`, or would only imitate it,
    slowly."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("PRECISION=fp16 needs a GPU, and none is found: leave PRECISION out.")
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise InputError(
            f"{torch.cuda.get_device_name(device)} does not compute in bf16: take PRECISION=fp16."
        )


def check_machine(settings: Settings) -> None:
    """Raises InputError where this machine is not fit for the run.

    A model of full size needs a GPU unless $CPU says otherwise.
    """
    device = processes().device
    check_precision(settings.precision, device)
    if settings.full_size and device.type == "cpu" and os.environ.get("CPU", "0") in ("", "0"):
        raise InputError(
            f"PROFILE={settings.profile} needs a GPU, and none is found: on two processor cores a step "
            "takes 12 to 79 "
            "seconds (results/full_proof.txt), and a run has thousands; choose a machine with a GPU (on "
            "Colab: Runtime, "
            "Change runtime type), or set CPU=1 to go on without."
        )


class Progress(SimpleNamespace):
    """Where a training stands: saved with every checkpoint, and the source of log.csv."""

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From Accelerate's checkpoints."""
        vars(self).update(state)


class Trainer:
    """A model with its optimizer, schedule and progress, as one process holds them."""

    def __init__(self, model: nn.Module, settings: Any, losses: Losses, epoch_steps: int, total: int) -> None:
        self.settings, self.losses, self.total, self.parts = settings, losses, total, 1
        check_precision(settings.precision, processes().device)
        once = DataLoaderConfiguration(
            split_batches=True
        )  # the schedule moves once a step, however many processes share it
        self.accelerator = Accelerator(mixed_precision=settings.precision, dataloader_config=once)
        prepared = self.accelerator.prepare(model, *make_optimizer(model, settings, epoch_steps))
        self.model, self.optimizer, self.scheduler = prepared
        self.bare_model = self.accelerator.unwrap_model(self.model)
        self.progress = Progress(
            step=0, best=-1.0, best_step=0, seconds=0.0, rows=[], recent=[], gradients={}
        )
        self.accelerator.register_for_checkpointing(self.progress)

    def step(self, batch: Any) -> None:
        """One step of the optimizer and of its schedule."""
        self.model.train()
        found = self.backward(batch)
        if first := not self.progress.gradients:
            assert_gradients_arrive(self.bare_model)
        if self.settings.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        else:
            self.accelerator.unscale_gradients()
        if first:  # half precision tries its scale first
            norms = {
                n: p.grad.norm().item() for n, p in self.bare_model.named_parameters() if p.grad is not None
            }
            self.progress.gradients = norms if all(map(math.isfinite, norms.values())) else {}
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.recent.append(found)
        self.progress.step += 1

    def backward(self, batch: Any) -> dict[str, float]:
        """Gradients of the batch, in as many pieces as memory asks for; returns its losses."""
        while True:
            torch.manual_seed(
                self.settings.seed * 1_000_003 + self.progress.step
            )  # drop-path is a function of the step
            found: dict[str, float] = defaultdict(float)
            try:
                with self.accelerator.no_sync(
                    self.model
                ):  # which process runs out of memory is its own affair
                    for share, piece in split(batch, self.parts):
                        piece = type(piece)(
                            *(f.to(self.accelerator.device, non_blocking=True) for f in piece)
                        )
                        with self.accelerator.autocast():
                            parts = self.losses(
                                self.model, piece, self.settings, self.progress.step / self.total
                            )
                        self.accelerator.backward(parts["loss"] * share)
                        for name, part in parts.items():
                            found[name] += share * part.item()
                return self.average(found)
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                    raise
            self.optimizer.zero_grad()  # once the error has let go of what was computed
            clear_device_cache(garbage_collection=True)
            if len(split(batch, 2 * self.parts)) == len(split(batch, self.parts)):
                where = f"the memory of {self.accelerator.device}, not even in {self.parts} pieces"
                raise InputError(
                    f"A step does not fit into {where}: end other programs, or take a larger machine."
                )
            self.parts *= 2

    def average(self, found: dict[str, float]) -> dict[str, float]:
        """Losses, and the gradients with them, of all processes, each of which has computed its share of
        the step."""
        if (count := self.accelerator.num_processes) == 1:
            return dict(found)
        values = torch.tensor(list(found.values()), device=self.accelerator.device, dtype=torch.float32)
        tensors = [values, *(p.grad for p in self.model.parameters() if p.grad is not None)]
        for work in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
        for tensor in tensors:
            tensor /= count
        return dict(zip(found, values.tolist(), strict=True))

    def log(self, **columns: Any) -> None:
        """A row of the log: means over the steps since the last one, and other columns."""
        recent = self.progress.recent
        means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[0]}
        self.progress.rows.append({"step": self.progress.step, **means, **columns})
        self.progress.recent = []

    def resume(self, folder: Path) -> None:
        """Takes up the newest checkpoint. InputError: it cannot be read."""
        if whole := sorted(folder.glob("checkpoint-*")):
            try:
                self.accelerator.load_state(str(whole[-1]))
            except (
                Exception
            ) as error:  # torch, safetensors and pickle raise their own kinds for a damaged file
                raise InputError(
                    f"{whole[-1]} cannot be read ({error}): delete it, and the run starts anew."
                ) from error

    def checkpoint(self, folder: Path) -> None:
        """Writes the whole state beside the last one, then removes that: a kill at any point leaves one
        that is whole."""
        part, main = folder / "part-of-checkpoint", self.accelerator.is_main_process
        if main:
            with replacing(folder / "log.csv") as log:
                pd.DataFrame(self.progress.rows).to_csv(log, index=False)
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(part))
        except Exception as error:  # torch and safetensors each raise their own for a full disk
            raise unwritable(part, error) from error
        self.accelerator.wait_for_everyone()  # each process writes its random state there
        if main:
            older = list(folder.glob("checkpoint-*"))
            part.rename(folder / f"checkpoint-{self.progress.step:09d}")
            for old in older:
                shutil.rmtree(old)


def split(batch: Any, parts: int) -> list[tuple[float, Any]]:
    """At most `parts` pieces of a batch and their shares.

    The pieces' losses, times their shares, add up to the batch's.
    """
    if parts == 1:
        return [(1.0, batch)]
    if hasattr(batch, "split"):
        return batch.split(parts)
    pieces = zip(*(field.chunk(parts) for field in batch), strict=True)
    return [(len(piece[0]) / len(batch[0]), type(batch)(*piece)) for piece in pieces]


def train(
    model: nn.Module, sampler: Any, losses: Losses, settings: Any, folder: Path,
    validate: Callable[[Any], dict[str, float]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Trains `model` in `folder`, from its checkpoint where it has one; returns its log.

    sampler: maps a step to its batch. validate: maps a model to its "validation_dice" and other columns, once
    an epoch; the best weights are best.safetensors (without it, or if `settings.keep` says so, the last
    ones).
    """
    total = len(sampler)
    epoch_steps = total // settings.epochs
    start = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, settings, losses, epoch_steps, total)
    trainer.resume(folder)
    progress, accelerator = trainer.progress, trainer.accelerator
    main, device = accelerator.is_main_process, accelerator.device.type
    ahead = (
        min(WORKERS, (os.cpu_count() or 1) - 1) if settings.full_size else 0
    )  # processes that prepare batches
    steps = range(progress.step, total)
    loader = DataLoader(
        sampler, batch_size=None, sampler=steps, num_workers=ahead, pin_memory=device == "cuda"
    )
    bar = tqdm(
        loader, f"training {folder.parent.name}", total, initial=progress.step, leave=False, disable=not main
    )
    saved = clock = time.monotonic()
    for batch in bar:
        trainer.step(batch)
        epoch, position = divmod(progress.step, epoch_steps)
        late = [time.monotonic() - saved > CHECKPOINT_SECONDS]
        if accelerator.num_processes > 1:
            broadcast_object_list(late)  # the first process's clock counts
        due, scored = (
            position == 0 or late[0] or progress.step % settings.checkpoint_steps == 0, dict[str, float](),
        )
        if due and record_of(folder).get("hash", settings.hash()) != settings.hash():
            raise InputError(
                f"{folder} belongs to a run of other settings by now: start this one again, and it goes on."
            )
        if position == 0:
            bar.set_postfix_str("validating")
            scored = validate(trainer.bare_model) if validate else {}
            score = scored["validation_dice"] if scored and settings.keep == "best" else float(epoch)
            if score > progress.best:
                progress.best, progress.best_step = score, progress.step
                if main:
                    save_weights(trainer.bare_model, folder / "best.safetensors")
        if position == 0 or progress.step % LOG_STEPS == 0 or progress.step <= FIRST_STEPS:
            trainer.log(epoch=epoch, lr=trainer.scheduler.get_last_lr()[0], **scored)
            bar.set_postfix_str(f"loss {progress.rows[-1]['loss']:.3f}", refresh=False)
        if due:
            progress.seconds, clock = progress.seconds + time.monotonic() - clock, time.monotonic()
            trainer.checkpoint(folder)
            saved = time.monotonic()
    accelerator.wait_for_everyone()
    if main:
        table = audit(trainer.bare_model, start, load_file(folder / "best.safetensors"), progress.gradients)
        with replacing(folder / "audit.csv") as part:
            table.to_csv(part, index=False, float_format="%.6g")
        told = {"validation_dice": progress.best, "best_step": progress.best_step, "pieces": trainer.parts}
        write_config(folder, settings, finished=settings.hash(), seconds=round(progress.seconds, 1), **told)
        for old in folder.glob("checkpoint-*"):  # of no more use
            shutil.rmtree(old)
    # or another process, asking for this run again, would not find it finished
    accelerator.wait_for_everyone()
    return pd.DataFrame(progress.rows)


def write_config(folder: Path, settings: Settings, **more: Any) -> None:
    """The whole configuration of a run, and at the end what came of it."""
    write_json(folder / "config.json", {"hash": settings.hash(), "settings": asdict(settings), **more})


def claim_folder(folder: Path, settings: Settings) -> None:
    """Makes `folder` that of the run with these settings. A run of other settings is put aside beside it by
    its hash, and taken up again when its settings come back; nothing is ever deleted.

    Raises:
        InputError: a config.json cannot be read, or a folder cannot be renamed.
    """
    with locked(str(folder)):
        record, beside = record_of(folder), sorted(folder.parent.glob(f"{folder.name}-{settings.hash()}*"))
        if record.get("hash") == settings.hash():
            return
        mine = [
            path for path in beside if record_of(path).get("hash") == settings.hash()
        ]  # somebody may have copied it
        mine.sort(
            key=lambda path: (
                is_finished(path, settings), [c.name for c in sorted(path.glob("checkpoint-*"))],
            )
        )
        worth = "finished" in record or any(folder.glob("checkpoint-*"))
        try:
            if folder.is_dir() and any(folder.iterdir()) and (mine or worth):
                name, now = (
                    f"{folder.name}-{record.get('hash', 'unknown')}",
                    json.loads(json.dumps(asdict(settings))),
                )
                free = (
                    path
                    for n in count(1)
                    if not (path := folder.with_name(name + f"-{n}" * (n > 1))).exists()
                )
                aside, before = next(free), record.get("settings", {})
                differ = [key for key in now if key not in NO_NUMBER and before.get(key) != now[key]]
                print(
                    f"{folder} is kept as {aside.name}; other settings: "
                    f"{', '.join(differ) or 'the weights'}.",
                    flush=True,
                )
                folder.rename(aside)
            if mine:
                if folder.exists():
                    folder.rmdir()  # an empty one
                mine[-1].rename(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        if not mine:
            write_config(folder, settings)


def audit(
    model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], gradients: dict[str, float]
) -> pd.DataFrame:
    """What training did to each module: parameters, how many may train and did move, and by how much.

    gradient: norm at the first step, after clipping; change: norm of the change over the norm at the start.
    So two runs can be compared by what learned in them, which was not the same in the released code (its
    baseline trains the decoder alone).
    """
    rows = []
    for name, parameter in model.named_parameters():
        before, words = start[name].float(), name.split(".")
        after = (
            end[name].float() if name in end else before
        )  # frozen weights of the hub are not saved with a run
        number = next((place for place, word in enumerate(words) if word.isdigit()), len(words) - 2)
        deep = 3 if words[1:2] == ["temporal_layers"] else 2
        module = ".".join(
            words[: deep if words[0] == "adapter" else number + 1]
        )  # whole layers taken together
        squares = (
            (after - before).square().sum().item(), before.square().sum().item(),
            gradients.get(name, 0.0) ** 2,
        )
        trainable, moved = parameter.numel() * parameter.requires_grad, int((before != after).sum())
        rows.append((module, parameter.numel(), trainable, moved, *squares))
    columns = ["module", "parameters", "trainable", "moved", "change", "norm", "gradient"]
    table = pd.DataFrame(rows, columns=columns).groupby("module", sort=False, as_index=False).sum()
    table["change"] = (table["change"] / table["norm"].where(table["norm"] > 0)) ** 0.5
    return table.assign(gradient=table["gradient"] ** 0.5).drop(columns="norm")


# Validation


def volume_dice(model: nn.Module, stores: Sequence[Store], settings: Any) -> float:
    """Mean Dice over whole scans, which chooses the best weights.

    Several processes share the scans; each has the mean.
    """
    rows, process = [], processes()
    for store in stores[process.process_index :: process.num_processes]:
        truth = read_labels(store.source.labels, store.label_map, store.grid)  # type: ignore[arg-type]
        claims = store.grid.to_canonical(predict(model, store, settings).claims)
        for key in settings.organs:
            mask, organ = mask_of(claims, KEYS.index(key)), truth == BY_KEY[key].label
            score = dice(int((mask & organ).sum()), int(organ.sum()), int(mask.sum()))
            rows.append({"organ": key, "dice": score})
    return float(
        np.nan_to_num(mean_dice(pd.DataFrame(gather_object(rows))))
    )  # 0 where no organ is there or found


@torch.inference_mode()
def slice_dice(model: Any, sampler: Any, steps: int = 40) -> float:
    """As released: mean Dice over augmented validation slices, those that show the organ alone."""
    found, device = [], next(model.eval().parameters()).device
    for batch in map(sampler.__getitem__, range(steps)):
        batch = type(batch)(*(field.to(device) for field in batch))
        masks, marked = batch.masks > 0, model(batch, list(KEYS))[0] > 0
        both, area = (masks & marked).sum((1, 2)), masks.sum((1, 2))
        found += (2 * both / (area + marked.sum((1, 2))))[area > 0].tolist()
    return float(np.mean(found)) if found else 0.0


def validator(settings: Any, sampler: Sampler, losses: Losses) -> Callable[[nn.Module], dict[str, float]]:
    """Model -> columns of log.csv: Dice on the validation scans.

    For models of slices also their loss, and training Dice.
    """
    stores = stores_of(settings, "validation")
    if getattr(settings, "validation", "") == "augmented slices":
        return lambda model: {"validation_dice": slice_dice(model, sampler(stores, settings))}
    if not hasattr(settings, "intensity"):
        return lambda model: {"validation_dice": volume_dice(model, stores, settings)}
    batches, learned = (
        sampler(stores, settings, augmented=False), stores_of(settings, "training")[: len(stores)],
    )

    @torch.inference_mode()
    def validate(model: nn.Module) -> dict[str, float]:
        device, lost = next(model.eval().parameters()).device, []
        for batch in map(batches.__getitem__, range(min(16, settings.epoch_steps or 16))):
            moved = type(batch)(*(field.to(device) for field in batch))
            lost.append(losses(model, moved, settings, 1.0)["loss"].item())
        columns = {
            "validation_dice": volume_dice(model, stores, settings), "validation_loss": float(np.mean(lost)),
        }
        return columns | {"training_dice": volume_dice(model, learned, settings)}

    return validate


# A run from its parts to its scores


def train_start(settings: Any) -> None:
    """Trains the stand-in for pretrained weights that a run starts from, where it is not there yet
    (notebook 00)."""
    if name := settings.start_from:
        start = settings_of(name, settings.profile)
        if hasattr(start, "vit"):
            trained(name, start, med_vlm.build_patch_classifier, SliceSampler, med_vlm.patch_losses)
        else:
            trained(name, start, clipseg.build, WindowSampler, clipseg.losses)


def trained(name: str, settings: Any, build: Build, sampler: Sampler, losses: Losses) -> Any:
    """The run's model with its best weights.

    Trains what is not trained yet. Several processes share each step.
    """
    check_machine(settings)
    folder, process = run_folder(name, settings.profile, settings.seed), processes()
    if process.is_main_process:
        claim_folder(folder, settings)
    process.wait_for_everyone()
    model = build(settings)
    if not is_finished(folder, settings):
        train_start(settings)
        load_start(model, settings)
        with process.local_main_process_first():  # what a sampler keeps on disk is made once
            stores = stores_of(settings, "training")
            batches = sampler(stores, settings, process.process_index, process.num_processes)
        validate = validator(settings, sampler, losses) if settings.test_on else None
        log = train(model, batches, losses, settings, folder, validate)
        if process.is_main_process and settings.test_on:
            moved, root = pd.read_csv(folder / "audit.csv"), results_root(settings.profile)
            for file, table in (("logs.csv", log), ("audit.csv", moved.rename_axis("place").reset_index())):
                own = table.assign(run=name, seed=settings.seed)
                order = ["run", "seed", "step" if "step" in own else "place"]
                merge_csv(root / file, own[[*order, *(c for c in own if c not in order)]], order[:2], order)
        model = build(settings)  # anew, for mixed precision leaves its mark on a model
    load_weights(model, folder / "best.safetensors")
    return model.to(process.device)


def run(
    name: str, settings: Any, build: Build, sampler: Sampler, losses: Losses, tests: Sequence[Test] = (),
    train: bool = True,
) -> pd.DataFrame:
    """Scores of a run, a row for each scan and organ; trains the run, predicts and scores what is not there
    yet.

    tests: beyond `settings.test_on`. train=False: the stored scores alone, or an empty table. The rows take
    their place in results/<profile>/scores.csv, and the scans of the split in splits.csv.
    """
    path, process = results_root(settings.profile) / "scores.csv", processes()
    if not train:
        if not path.is_file():
            return pd.DataFrame(columns=[*KEY, "config"])
        stored = pd.read_csv(path, dtype=NAMES).fillna({"variant": "", "condition": ""})
        return stored[(stored["run"] == name) & (stored["seed"] == settings.seed)]
    check_machine(settings)
    own = ((dataset, settings.test_variant, "") for dataset in settings.test_on)
    every = list(dict.fromkeys([*own, *tests]))
    with process.local_main_process_first():
        sets = usable(
            name, settings, list(dict.fromkeys((dataset, variant) for dataset, variant, _ in every))
        )
    every = [test for test in every if test[:2] in sets]
    model = trained(name, settings, build, sampler, losses)
    folder = run_folder(name, settings.profile, settings.seed) / "predictions"
    table = pd.concat([evaluate(model, settings, test, folder) for test in every])
    table = table.assign(run=name, seed=settings.seed, profile=settings.profile, config=settings.hash())
    table = table[[*KEY, "config", *(column for column in table if column not in (*KEY, "config"))]]
    if process.is_main_process:
        merge_csv(
            path, table, ["run", "seed", "dataset", "variant", "condition"], KEY
        )  # rows of other tests stay
        record_split(settings, sets)
    return table


def usable(name: str, settings: Settings, sets: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those test sets (data set, variant) that can be scored; the others are left out with a line each, and
    scored another time.

    Raises:
        InputError: scans to train on are missing, or no test set can be scored.
    """
    if settings.phantoms:  # which are made, and so never missing
        check_disjoint(settings, sets)
        return sets
    check_disjoint(settings, [])
    found: list[tuple[str, str]] = []
    for dataset, variant in sets:
        try:
            check_disjoint(settings, [(dataset, variant)])
            found.append((dataset, variant))
        except InputError as error:
            if (dataset, variant) == sets[-1] and not found:
                raise
            if processes().is_main_process:
                print(
                    f"{name} is not scored on {' '.join(filter(None, (dataset, variant)))}: {error}",
                    flush=True,
                )
    return found


def evaluate(
    model: Any, settings: Any, test: Test, folder: Path, prompts: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Score rows of a model on one test, scan by scan; several processes share the scans.

    folder: keeps each scan's scores, so that a killed evaluation goes on where it was, and predictions for
    the figures.
    prompts: in the place of the condition's own.
    """
    dataset, variant, condition = test
    stores, process, where = (
        stores_of(settings, dataset, variant), processes(), folder / " ".join(filter(None, test)),
    )
    asked = prompts or prompts_of(settings, condition)
    seen = replace(settings, window_unit="mm") if condition == "window in mm" else settings
    mine, title = (
        stores[process.process_index :: process.num_processes], f"scoring {' '.join(filter(None, test))}",
    )
    for store in tqdm(mine, title, leave=False, disable=not process.is_main_process):
        scores = where / f"{store.id}.csv"
        if (
            scores.exists()
            and scores.stat().st_mtime >= (store.folder / "case.json").stat().st_mtime
            and not prompts
        ):
            continue
        prediction = predict(model, store, seen, asked)
        if not condition and variant in ("", "held out"):  # what the figures show
            write_nifti(prediction.winner, store.grid, where / f"{store.id}.nii.gz")
            with replacing(where / f"{store.id}.npz") as part, open(part, "wb") as file:
                np.savez_compressed(file, claims=prediction.claims)
        with replacing(scores) as part:
            pd.DataFrame(score_rows(prediction.claims, store, settings.organs)).to_csv(part, index=False)
    process.wait_for_everyone()
    own = {"dataset": dataset, "variant": variant, "condition": condition}
    return pd.concat(
        [pd.read_csv(where / f"{store.id}.csv").assign(**own, case=store.id) for store in stores]
    )


def score_rows(claims: np.ndarray, store: Store, organs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Score rows of native (A, B, C) claims, bit p for ORGANS[p], against the scan's ground truth on its
    own voxels."""
    assert store.source.labels is not None
    truth, own = (
        read_labels(store.source.labels, store.label_map, store.grid), store.grid.to_canonical(claims),
    )
    masks = ((key, mask_of(own, place)) for place, key in enumerate(KEYS) if key in organs)
    return score_case(masks, truth, store.label_map, store.grid.spacing_mm)


def prompts_of(settings: Any, condition: str) -> tuple[str, ...]:
    """What a model is asked under a condition: one of PROMPT_SETS, or of Med-VLM's TEXTS.

    () for what it was trained by.
    """
    if hasattr(settings, "adapter"):
        return PROMPT_SETS.get(condition, ())
    return text_prompts(condition, settings.organs) if condition and getattr(settings, "bert", "") else ()
