"""lib.training's step and loop: groups, pieces, precision, a real SIGKILL."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import PARTS, RELEASED, fake_store, tiny_settings
from tqdm import tqdm

from lib import training
from lib.baselines import Patches, volume_losses
from lib.clipseg import build, losses
from lib.files import InputError
from lib.med_vlm import med_vlm_losses, unet_losses
from lib.training import (
    Trainer,
    assert_gradients_arrive,
    check_machine,
    effort,
    parameter_groups,
    split,
    train,
)
from lib.windows import Slices, SliceSampler, Windows, WindowSampler

WEIGHTS = "best.safetensors"


# groups and gradients


@pytest.mark.parametrize("run", ["baseline", "adapter"])
def test_every_trainable_parameter_is_in_one_group_with_its_rate(run: str) -> None:
    settings = tiny_settings(run, lr_encoder=1.0, lr_decoder=2.0, lr_adapter=3.0, lr_gate=4.0)
    model = build(settings)
    groups = parameter_groups(model, settings)
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert {rate[id(p)] for p in model.base_model.clip.parameters() if p.requires_grad} == {1.0}
    assert {rate[id(p)] for p in model.base_model.decoder.parameters()} == {2.0}
    if run == "adapter":
        assert rate[id(model.adapter.temporal_pos_emb)] == 3 and rate[id(model.adapter.gate_proj.weight)] == 4


def test_a_parameter_without_gradient_is_named_and_a_zero_is_lora_s_alone() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("lora_A", "lora_B")})
    torch.nn.init.zeros_(model["lora_B"].weight)
    model["lora_B"](model["lora_A"](torch.ones(1, 2))).sum().backward()
    assert_gradients_arrive(model)
    model["lora_B"].weight.grad.fill_(torch.nan)  # half precision begins with a scale that overflows
    assert_gradients_arrive(model)
    model["lora_B"].weight.grad.zero_()
    with pytest.raises(AssertionError, match=r"lora_B\.weight"):
        assert_gradients_arrive(model)
    model["lora_A"].weight.grad = None
    with pytest.raises(AssertionError, match=r"lora_A\.weight"):
        assert_gradients_arrive(model)


@pytest.mark.parametrize(("run", "changes"), [
    ("adapter", {}), ("baseline", {"freeze_encoders": True}), ("adapter", RELEASED)])  # fmt: skip
def test_what_may_train_moves_and_all_else_stays(run: str, changes: dict, tmp_path: Path) -> None:
    settings = tiny_settings(run, **changes | {"epochs": 1, "epoch_steps": 3, "gate_bias": -1.0})
    model = build(settings)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    train(model, WindowSampler([fake_store(9)], settings), losses, settings, tmp_path)
    best = load_file(tmp_path / WEIGHTS)
    assert {name for name in start if not torch.equal(best[name], start[name])} == free
    parts = {name.split(".")[1] if name.startswith("base_model") else "adapter" for name in free}
    assert parts == ({"decoder"} if settings.freeze_encoders else {"clip", "decoder", "adapter"})
    assert ("adapter.temporal_pos_emb" in free) == (settings.adapter and not settings.frozen_embeddings)


# a step in pieces

SAMPLING: dict[str, dict] = {
    "shuffled": {"sampler": "shuffled", "batch": 8},
    "slab": {"sampler": "slab", "slab_centres": 8, "slab_prompts": 2},
    "slab of all prompts": {"sampler": "slab", "slab_centres": 8, "slab_prompts": 13},
    "rows of a manifest": {"sampler": "shuffled", "batch": 6, "neighbours": "manifest"},
}


def settings_for(name: str, **more: Any) -> Any:
    still = {"drop_path": 0.0, "gate_bias": 0.0, "gate_penalty": 1.0, "positive_weight": 3.0}
    return tiny_settings("adapter", **still, **SAMPLING[name], **more)


def sampled(name: str) -> Windows:
    return WindowSampler([fake_store(9), fake_store(7, seed=1)], settings_for(name))[3]


@pytest.mark.parametrize("parts", [2, 3, 99])
@pytest.mark.parametrize("name", SAMPLING)
def test_pieces_hold_every_sample_and_no_slice_that_they_do_not_see(name: str, parts: int) -> None:
    def shown(batch: Windows) -> list[tuple]:
        windows = zip(batch.windows[batch.centre], batch.prompt, batch.masks, strict=True)
        return [(batch.slices[w].numpy().tobytes(), int(p), m.numpy().tobytes()) for w, p, m in windows]

    whole = sampled(name)
    pieces = split(whole, parts)
    assert 1 < len(pieces) <= min(parts, len(whole.centre.unique()))
    assert sum(share for share, _ in pieces) == pytest.approx(1)
    assert sum(len(piece.windows) for _, piece in pieces) == len(whole.windows)
    for _, piece in pieces:
        assert piece.windows.unique().tolist() == list(range(len(piece.slices))) and len(piece.prompt)
    assert sorted(one for _, piece in pieces for one in shown(piece)) == sorted(shown(whole))


def test_a_centre_that_nobody_asks_about_stays_with_its_neighbours() -> None:
    """Of three centres two have no sample: one piece, for the gate's penalty is a mean over all three."""
    windows, nothing = torch.tensor([[0, 1], [1, 2], [2, 3]]), torch.zeros(1, 2, 2)
    asked, prompt = torch.tensor([2]), torch.tensor([0])
    (piece,) = split(Windows(torch.zeros(4, 2, 2), windows, asked, prompt, nothing, torch.ones(1)), 2)
    assert piece[0] == 1 and torch.equal(piece[1].windows, windows) and piece[1].weight.tolist() == [1]


def test_other_batches_divide_as_their_tensors_do() -> None:
    batch = Slices(torch.arange(5)[:, None, None].float(), torch.zeros(5, 1, 1, dtype=torch.uint8))
    (first, one), (second, two) = split(batch, 2)
    assert (first, second) == (3 / 5, 2 / 5) and len(one.image) == 3
    assert two.image.flatten().tolist() == [3, 4]


def gradients(model: torch.nn.Module, pieces: list, step_losses: Callable, settings: Any) -> tuple:
    """What a step in these pieces adds up to: gradients and losses."""
    model.zero_grad()
    found: dict[str, float] = {}
    for share, piece in pieces:
        parts = step_losses(model, piece, settings, 0.25)
        (parts["loss"] * share).backward()
        found = {name: found.get(name, 0.0) + share * part.item() for name, part in parts.items()}
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, found


def assert_pieces_are_the_whole(model: torch.nn.Module, batch: Any, step_losses: Callable, settings: Any,
                                parts: int) -> None:
    double = type(batch)(*(field.double() if field.is_floating_point() else field for field in batch))
    pieces = split(double, parts)
    assert 1 < len(pieces) <= parts
    with pytest.MonkeyPatch.context() as patch:  # losses that ask for 32 bits get 64
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        whole, losses_whole = gradients(model, [(1.0, double)], step_losses, settings)
        summed, losses_summed = gradients(model, pieces, step_losses, settings)
    assert losses_summed == pytest.approx(losses_whole, rel=1e-12) and set(summed) == set(whole)
    for name, expected in whole.items():
        assert (summed[name] - expected).abs().max() < 1e-10 * expected.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", SAMPLING)
def test_samples_in_pieces_have_the_gradients_of_the_whole(name: str, parts: int) -> None:
    model = build(settings_for(name)).double().train()
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)  # a gate of its own at every place
    assert_pieces_are_the_whole(model, sampled(name), losses, settings_for(name), parts)


def test_patches_in_pieces_have_the_gradients_of_the_whole() -> None:
    settings = tiny_settings("dynunet")
    boxes = torch.randint(0, 14, (4, 1, *settings.patch_voxels), dtype=torch.uint8)
    patches, model = Patches(torch.rand(boxes.shape), boxes), PARTS["dynunet"][0](settings).double().train()
    assert_pieces_are_the_whole(model, patches, volume_losses, settings, 2)


def test_slices_in_pieces_have_the_gradients_of_the_whole() -> None:
    settings = tiny_settings("med-vlm small")
    labels = torch.randint(0, len(settings.organs) + 1, (4, settings.size, settings.size), dtype=torch.uint8)
    model = PARTS["med-vlm small"][0](settings).double().eval()  # without BERT's dropout
    assert_pieces_are_the_whole(model, Slices(torch.rand(labels.shape), labels), med_vlm_losses, settings, 4)


def test_the_2d_unet_s_dice_is_one_over_the_batch() -> None:
    """So a step of it in pieces is another step: the mean of the pieces' losses is not the whole's."""
    settings = tiny_settings("unet")
    batch, model = SliceSampler([fake_store(9, size=32)], settings)[0], PARTS["unet"][0](settings)
    steps = [gradients(model, split(batch, parts), unet_losses, settings)[1]["loss"] for parts in (1, 4)]
    assert abs(steps[0] - steps[1]) > 1e-5


class Small:
    """Losses on a device that holds so many samples at once; notes the sizes that it was asked for."""

    def __init__(self, samples: int, error: Exception) -> None:
        self.samples, self.error, self.asked = samples, error, []

    def __call__(self, model: torch.nn.Module, batch: Windows, *rest: Any) -> dict[str, torch.Tensor]:
        self.asked.append(len(batch.prompt))
        found = losses(model, batch, *rest)
        if len(batch.prompt) > self.samples:
            raise self.error
        return found


FULL = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
    "Python": MemoryError(),
}


def furthest(one: Path, two: Path) -> float:
    """How far two runs' weights are apart; a key's bias has no gradient but rounding, which Adam blows up."""
    first, second = (load_file(folder / WEIGHTS) for folder in (one, two))
    return max(float((first[n] - second[n]).abs().max()) for n in first if not n.endswith("k_proj.bias"))


@pytest.mark.parametrize("where", FULL)
def test_memory_that_ends_makes_pieces_and_the_weights_are_those_of_whole_steps(
    where: str, tmp_path: Path
) -> None:
    settings = settings_for("shuffled", epochs=1, epoch_steps=3, clip_norm=1.0)
    sampler, small = WindowSampler([fake_store(9)], settings), Small(3, FULL[where])
    for name, step_losses in (("whole", losses), ("pieces", small)):
        train(build(settings), sampler, step_losses, settings, tmp_path / name)
    assert small.asked == [8, 4, *[2] * 12], "found once, and kept for the steps after"
    assert furthest(tmp_path / "whole", tmp_path / "pieces") < 1e-4
    logs = [pd.read_csv(tmp_path / name / "log.csv")["loss"].tolist() for name in ("whole", "pieces")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_what_does_not_fit_at_all_ends_in_one_sentence_and_other_errors_pass(tmp_path: Path) -> None:
    settings, small = settings_for("shuffled", epochs=1, epoch_steps=3), Small(0, FULL["GPU"])
    sampler = WindowSampler([fake_store(9)], settings)
    with pytest.raises(InputError, match=r"^A step does not fit into .* of cpu, not even in 8 pieces"):
        train(build(settings), sampler, small, settings, tmp_path / "adapter")
    assert small.asked == [8, 4, 2, 1]
    other = Small(0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(build(settings), sampler, other, settings, tmp_path / "other")
    assert other.asked == [8], "not taken for memory"


# half precision


def test_a_precision_that_the_device_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("no", "bf16"):
        check_machine(tiny_settings(precision=precision))
    for precision in ("fp16", "tf32"):
        with pytest.raises(InputError, match=f"PRECISION={precision} needs a GPU"):
            check_machine(tiny_settings(precision=precision))
    monkeypatch.setattr(training, "processes", lambda: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for precision in ("bf16", "tf32"):
        with pytest.raises(InputError, match=f"^Tesla T4 does not compute in {precision}: take"):
            check_machine(tiny_settings(precision=precision))
    check_machine(tiny_settings(precision="fp16"))


def test_32_bits_are_32_bits_on_a_gpu_but_where_tf32_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    monkeypatch.setattr(training, "processes", lambda: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for precision in ("tf32", "no", "tf32", "bf16"):
        check_machine(tiny_settings(precision=precision))
        assert cuda.allow_tf32 == cudnn.allow_tf32 == (precision == "tf32") and not cudnn.benchmark
    check_machine(tiny_settings("unet"))
    assert cudnn.benchmark, "each of its steps has one shape"
    check_machine(tiny_settings())


def test_what_was_read_while_scoring_trains_too() -> None:
    for run in ("baseline", "med-vlm small"):
        build, *_ = PARTS[run]
        model = build(tiny_settings(run))
        prompts = ["liver", "spleen"] if run == "baseline" else ("liver", "spleen")
        with torch.inference_mode():
            model.encode_text(prompts)
        read, features = dict(model.read), model.encode_text(prompts)
        if run == "baseline":  # frozen MiniLM's, in front of a decoder that learns
            torch.nn.Linear(384, 1)(features).sum().backward()
        else:
            sum(states.sum() for states in features).backward()
        assert all(model.read[key] is found for key, found in read.items()), "and is read once"


def test_bf16_computes_in_half_precision_and_keeps_weights_of_32_bits(tmp_path: Path) -> None:
    seen = set()

    def spied(model: torch.nn.Module, *rest: Any) -> dict[str, torch.Tensor]:
        layer = model.base_model.clip.vision_model.encoder.layers[0].mlp.fc1
        hook = layer.register_forward_hook(lambda _, given, out: seen.add(out.dtype))
        found = losses(model, *rest)
        hook.remove()
        return found

    for precision in ("no", "bf16"):
        own = settings_for("shuffled", epochs=1, epoch_steps=2, precision=precision)
        AcceleratorState._reset_state()  # a process has one precision
        train(build(own), WindowSampler([fake_store(9)], own), spied, own, tmp_path / precision)
    AcceleratorState._reset_state()
    assert seen == {torch.float32, torch.bfloat16}
    assert {tensor.dtype for tensor in load_file(tmp_path / "bf16" / WEIGHTS).values()} == {torch.float32}
    logs = [pd.read_csv(tmp_path / precision / "log.csv")["loss"] for precision in ("no", "bf16")]
    assert 0 < (logs[0] - logs[1]).abs().max() < 0.05


@pytest.mark.parametrize("clip_norm", [0.5, 0.0])
def test_a_scaler_changes_no_weight(clip_norm: float, tmp_path: Path) -> None:
    """fp16 multiplies the loss; gradients are divided again before they are clipped and used."""
    settings = settings_for("shuffled", epochs=1, epoch_steps=2, clip_norm=clip_norm)
    sampler, runs = WindowSampler([fake_store(9)], settings), []
    for scale in (0.0, 2.0**10):
        run = Trainer(build(settings), settings, losses, 2, tmp_path)
        if scale:
            run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"
            run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            run.optimizer = AcceleratedOptimizer(run.optimizer.optimizer, scaler=run.accelerator.scaler)
            run.accelerator._optimizers = run.scheduler.optimizers = [run.optimizer]
        try:
            run.accelerator.autocast = torch.enable_grad  # as precise as without
            for step in range(2):
                run.step(sampler[step])
        finally:
            run.accelerator.state._mixed_precision = "no"
        runs.append(run)
    one, two = (dict(run.model.named_parameters()) for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert runs[0].progress.recent == runs[1].progress.recent


# the loop


def run_training(folder: Path, pause: float = 0.0) -> None:
    """A small run with the adapter, drop-path included; pauses at each step where it is to be killed."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared by forks: a killed one keeps it
    settings = tiny_settings("adapter", epochs=2, epoch_steps=6, drop_path=0.3)

    def slow_losses(*arguments: Any) -> dict[str, torch.Tensor]:
        time.sleep(pause)
        return losses(*arguments)

    sampler = WindowSampler([fake_store(9)], settings)
    train(build(settings), sampler, slow_losses, settings, folder, lambda model: {"validation_dice": 0.5})


def test_killed_and_restarted_ends_bit_for_bit_as_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)  # one after each step
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run_training(unbroken)
    for rows in (2, 6, 8):  # of the log, which follows each checkpoint
        child = multiprocessing.get_context("fork").Process(target=run_training, args=(broken, 0.2))
        child.start()
        log = broken / "log.csv"
        while child.is_alive() and not (log.exists() and len(pd.read_csv(log)) >= rows):
            time.sleep(0.02)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert {path.name for path in broken.iterdir()} >= {"config.json", "log.csv", "checkpoint-0.pt"}
    run_training(broken)
    for name in (WEIGHTS, "log.csv"):
        assert (unbroken / name).read_bytes() == (broken / name).read_bytes()
    assert {path.name for path in broken.iterdir()} == {"config.json", "log.csv", WEIGHTS}


@pytest.mark.parametrize(("keep", "place"), [("best", 1), ("last", 2)])
def test_a_run_leaves_config_log_and_the_weights_that_its_settings_name(
    keep: str, place: int, tmp_path: Path
) -> None:
    settings = tiny_settings("baseline", epochs=3, epoch_steps=2, keep=keep)
    scores, seen = iter([0.2, 0.6, 0.4]), []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        assert not (tmp_path / WEIGHTS).exists(), "by which a run is known as finished"
        return {"validation_dice": next(scores), "validation_loss": 1.0 + len(seen)}

    sampler = WindowSampler([fake_store(9)], settings)
    log = train(build(settings), sampler, losses, settings, tmp_path, validate)
    best = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(tensor, seen[place][name]) for name, tensor in best.items())
    stored = pd.read_csv(tmp_path / "log.csv")
    pd.testing.assert_frame_equal(stored, log)
    assert stored["step"].tolist() == [1, 2, 3, 4, 5, 6], "each of the first ten steps has a row"
    columns = stored[["validation_dice", "validation_loss"]].dropna()
    assert columns.to_numpy().tolist() == [[0.2, 2], [0.6, 3], [0.4, 4]] and (stored["loss"] > 0).all()


def test_the_newest_checkpoint_that_can_be_read_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, files = tiny_settings("baseline"), [tmp_path / f"checkpoint-{place}.pt" for place in (0, 1)]

    def trainer() -> Trainer:
        return Trainer(build(settings), settings, losses, 6, tmp_path)

    first = trainer()
    for step in (1, 2, 3):
        first.progress.step = step
        first.checkpoint()
        os.utime(files[(step - 1) % 2], (step, step))  # seconds apart
    assert first.paths == files[::-1], "the older one is written next"
    assert (again := trainer()).progress.step == 3 and again.paths == files[::-1]
    files[0].write_bytes(b"cut short")
    assert (again := trainer()).progress.step == 2 and again.paths == files
    assert "checkpoint-0.pt cannot be read" in (told := capsys.readouterr().out)
    assert told.endswith("the run goes on from the one before.\n")
    files[1].write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"cannot be read .*delete it, and the run starts anew") as caught:
        trainer()
    assert "\n" not in str(caught.value) and all(path.exists() for path in files)


def test_a_disk_that_is_full_ends_in_one_sentence_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings("baseline")
    trainer = Trainer(build(settings), settings, losses, 6, tmp_path)
    trainer.checkpoint()
    before = (tmp_path / "checkpoint-0.pt").read_bytes()

    def full(state: dict, file: Any) -> None:
        file.write(b"cut short")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"checkpoint-1\.pt cannot be written .*free some space"):
        trainer.checkpoint()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0.pt"]
    assert (tmp_path / "checkpoint-0.pt").read_bytes() == before


def test_a_checkpoint_is_due_at_an_epoch_s_end_and_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, saved = tiny_settings("baseline", epochs=2, epoch_steps=3), []
    monkeypatch.setattr(Trainer, "checkpoint", lambda self: saved.append(self.progress.step))
    sampler = WindowSampler([fake_store(9)], settings)
    train(build(settings), sampler, losses, settings, tmp_path / "epochs")
    assert saved == [3, 6]
    saved.clear()
    readings = count(0, 301)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(readings)))
    train(build(settings), sampler, losses, settings, tmp_path / "clock")
    assert len(saved) > 2 and saved[-1] == 6, "half of the steps take ten minutes and more"


def test_the_effort_of_a_training_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four steps of a cosine add up to (4 + 1) / 2 of its first; five epochs of two steps to 2 x 3, and more
    with a floor; ten steps at a constant rate to ten."""
    model = build(tiny_settings())
    changes = {"epochs": 2, "restart_epochs": 1, "lr_encoder": 1.0, "lr_decoder": 2.0}
    assert effort(model, tiny_settings(**changes), 8) == {
        "optimizer_steps": 8, "summed_lr": {"encoder": pytest.approx(5.0), "decoder": pytest.approx(10.0)}}
    changes = {"epochs": 5, "restart_epochs": 5, "lr_encoder": 1.0, "lr_decoder": 0.2, "lr_least": 0.1}
    summed = effort(model, tiny_settings(schedule="restarts by epoch", **changes), 10)["summed_lr"]
    expected = {"encoder": 2 * (5 * 0.1 + 0.9 * 3), "decoder": 2 * (5 * 0.1 + 0.1 * 3)}
    assert summed == pytest.approx(expected)
    settings = tiny_settings("unet", schedule="constant", lr=1e-4, epochs=2, epoch_steps=5)
    assert effort(torch.nn.Linear(2, 2), settings, 10)["summed_lr"] == {"network": pytest.approx(1e-3)}
    settings = tiny_settings("baseline", epochs=5, epoch_steps=1, validate_every=2)
    (folder := tmp_path / "baseline" / "seed0").mkdir(parents=True)
    sampler = WindowSampler([fake_store(9)], settings)
    log = train(model, sampler, losses, settings, folder, lambda _: {"validation_dice": 0.5})
    assert log["validation_dice"].notna().tolist() == [False, True, False, True, True], "and after the last"
    kept = json.loads((folder / "config.json").read_text())
    assert kept["optimizer_steps"] == 5 and kept["seconds"] >= kept["seconds_validating"] >= 0
    told = "training baseline: 5 optimizer steps; summed learning rate: encoder "
    assert capsys.readouterr().err.startswith(told)


def test_the_schedule_rises_then_falls_and_restarts() -> None:
    settings = tiny_settings("dynunet", epochs=4, epoch_steps=4, restart_epochs=2, warmup_steps=4, lr=1.0)
    _, scheduler = training.make_optimizer(torch.nn.Linear(2, 2), settings, 4)
    rates = []
    for _ in range(16):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.05, 0.2875, 0.525, 0.7625, 1.0]), "up in four steps"
    assert rates[4:12] == sorted(rates[4:12], reverse=True), "down in two epochs"
    assert rates[12] == 1.0, "and up again"
