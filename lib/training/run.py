"""A model in training: its steps, in pieces where memory asks for it, and its checkpoints; one process or many, CPU or GPU."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lib.paths import InputError, clear_parts, replacing, unwritable, write_json
from lib.profiles import Settings, record_of
from lib.training.audit import audit
from lib.training.folders import take_up
from lib.training.memory import is_out_of_memory, recompute_activations, split
from lib.training.optimizer import assert_gradients_arrive, parameter_groups, schedule
from lib.training.progress import Progress
from lib.training.weights import save_weights

CHECKPOINT_SECONDS = 600  # that a session that ends may lose at most, where so many steps take longer
WHOLE = {"unet"}  # models whose Dice is taken over a batch as one, so that it cannot be computed in pieces
StepLosses = Callable[[nn.Module, Any, Settings, float], dict[str, Tensor]]


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError where the device does not compute in `precision`, or would only imitate it, slowly."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("PRECISION=fp16 needs a GPU, and none is found: leave PRECISION out.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name(device)} does not compute in bf16: take PRECISION=fp16.")


class Run:
    """A model in training, in a folder of its own: config.json, log.csv, best.safetensors, and the newest checkpoint."""

    def __init__(self, settings: Settings, model: nn.Module, epoch_steps: int, folder: Path) -> None:
        self.settings, self.folder, self.progress = settings, folder, Progress()
        check_precision(settings.precision, PartialState().device)
        once = DataLoaderConfiguration(split_batches=True)  # the schedule moves once a step, however many processes share it
        self.accelerator = Accelerator(mixed_precision=settings.precision, dataloader_config=once)
        optimizer = torch.optim.AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True)
        prepared = self.accelerator.prepare(model, optimizer, schedule(optimizer, settings, epoch_steps))
        self.model, self.optimizer, self.scheduler = prepared
        self.accelerator.register_for_checkpointing(self.progress)
        self.checked, self.saved, self.parts, self.clock = False, time.monotonic(), 1, time.perf_counter()
        self.recomputing = settings.recompute and recompute_activations(model)

    @property
    def bare_model(self) -> nn.Module:
        """The model without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def start(self) -> None:
        """Takes up the newest checkpoint; puts a run of other settings aside, and clears what a killed process left half.

        Raises:
            InputError: the checkpoint or a config.json cannot be read.
        """
        if self.accelerator.is_main_process:
            take_up(self.folder, self.settings, start=True)
            self.write_config()
            clear_parts(self.folder)
        self.accelerator.wait_for_everyone()
        if whole := sorted(self.folder.glob("checkpoint-*")):
            try:
                self.accelerator.load_state(str(whole[-1]))
            except (OSError, EOFError, KeyError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
                raise InputError(f"{whole[-1]} cannot be read ({error}): delete it, and the run starts anew.") from error

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; takes the time of every step, and of how long it waited for its batch."""
        iterator, self.clock = iter(loader), time.perf_counter()
        while (batch := next(iterator, None)) is not None:
            self.progress.waited += time.perf_counter() - self.clock
            yield batch
            self.take_time()

    def take_time(self) -> None:
        """Adds what has passed since the last time to the training's seconds."""
        self.clock, before = time.perf_counter(), self.clock
        self.progress.seconds += self.clock - before

    def step(self, batch: Any, step_losses: StepLosses, total: int) -> None:
        """One step of the optimizer and of its schedule. `batch`: a named tuple of tensors."""
        self.model.train()
        clock = time.perf_counter()
        found = self.backward(batch, step_losses, self.progress.step / total)
        if not self.checked:
            assert_gradients_arrive(self.bare_model)
            self.checked = True
        if self.settings.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        else:
            self.accelerator.unscale_gradients()
        if not self.progress.gradients:
            norms = {name: p.grad.norm().item() for name, p in self.bare_model.named_parameters() if p.grad is not None}
            self.progress.gradients = norms if all(map(math.isfinite, norms.values())) else {}  # half precision tries its scale first
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.recent.append(found)
        self.progress.step += 1
        self.progress.computed += time.perf_counter() - clock

    def backward(self, batch: Any, step_losses: StepLosses, done: float) -> dict[str, float]:
        """Gradients of the batch, in as many pieces as memory asks for; returns its losses. Drop-path draws anew for each piece."""
        while True:
            torch.manual_seed(self.settings.seed * 1_000_003 + self.progress.step)  # drop-path, too, is a function of the step
            found: dict[str, float] = defaultdict(float)
            try:
                with self.accelerator.no_sync(self.model):  # which process runs out of memory is its own affair
                    for share, piece in split(batch, self.parts):
                        piece = type(piece)(*(field.to(self.accelerator.device, non_blocking=True) for field in piece))
                        with self.accelerator.autocast():
                            parts = step_losses(self.model, piece, self.settings, done)
                        self.accelerator.backward(parts["loss"] * share)
                        for name, part in parts.items():
                            found[name] += share * part.item()
                return self.average(found)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.make_room(batch)  # once the error has let go of what was computed

    def average(self, found: dict[str, float]) -> dict[str, float]:
        """Losses, and the gradients with them, of all processes, each of which has computed its share of the step."""
        count = self.accelerator.num_processes
        if count == 1:
            return dict(found)
        values = torch.tensor(list(found.values()), device=self.accelerator.device, dtype=torch.float32)
        tensors = [values, *(p.grad for p in self.model.parameters() if p.grad is not None)]
        for work in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
        for tensor in tensors:
            tensor /= count
        return dict(zip(found, values.tolist(), strict=True))

    def make_room(self, batch: Any) -> None:
        """Twice as many pieces, or activations computed twice. InputError: neither is left to try."""
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        if self.settings.model not in WHOLE and len(split(batch, 2 * self.parts)) > len(split(batch, self.parts)):
            self.parts *= 2
        elif not self.recomputing and recompute_activations(self.bare_model):
            self.recomputing = True
        else:
            raise InputError(
                f"A step of {self.folder.name} does not fit into the memory of {self.accelerator.device}, not even in {self.parts} pieces: "
                "end other programs that use it, try PRECISION=fp16, or take a machine with more."
            )

    def assert_own_folder(self) -> None:
        """Raises InputError where another process has put this run aside for one of other settings, in whose folder it would write."""
        if record_of(self.folder).get("hash") != self.settings.hash():
            raise InputError(
                f"{self.folder} belongs to a run of other settings by now, which was started beside this one: wait until that has ended, "
                "and run the same command again to go on from the last checkpoint."
            )

    def judge(self, score: float) -> None:
        """Keeps the weights if their validation score is the best so far."""
        if score > self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            if self.accelerator.is_main_process:
                self.assert_own_folder()
                save_weights(self.bare_model, self.folder / "best.safetensors")

    def checkpoint(self) -> None:
        """Writes the whole state beside the last one, then removes that: a kill at any point leaves one that is whole."""
        self.take_time()  # of the step before it
        part = self.folder / "part-of-checkpoint"
        if self.accelerator.is_main_process:
            self.assert_own_folder()
            self.progress.write(self.folder / "log.csv")
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(part))
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors each raise their own for a full disk
            raise unwritable(part, error) from error
        self.accelerator.wait_for_everyone()  # each process writes its random state there
        if self.accelerator.is_main_process:
            older = list(self.folder.glob("checkpoint-*"))
            part.rename(self.folder / f"checkpoint-{self.progress.step:09d}")
            for folder in older:
                shutil.rmtree(folder)
        self.saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether a checkpoint is due within an epoch: by its steps, or by the clock of the first process."""
        late = [time.monotonic() - self.saved > CHECKPOINT_SECONDS]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(late)
        return late[0] or self.progress.step % self.settings.checkpoint_steps == 0

    def write_config(self, **more: Any) -> None:
        """The whole configuration, and at the end what came of it."""
        write_json(self.folder / "config.json", {"hash": self.settings.hash(), "settings": asdict(self.settings), **more})

    def finish(self, start: dict[str, Tensor]) -> None:
        """Writes the gradient audit, marks the run as finished and drops its checkpoint, which is of no more use."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            table = audit(self.bare_model, start, load_file(self.folder / "best.safetensors"), self.progress.gradients)
            with replacing(self.folder / "audit.csv") as part:
                table.to_csv(part, index=False, float_format="%.6g")
            progress = self.progress
            took = {name: round(getattr(progress, name), 1) for name in ("seconds", "waited", "computed")} | {"pieces": self.parts}
            judged = {"validation_dice": progress.best, "best_step": progress.best_step}
            self.write_config(finished=self.settings.hash(), **judged, **took)
            for folder in self.folder.glob("checkpoint-*"):
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()  # or another process, asking for this run again, would not find it finished
