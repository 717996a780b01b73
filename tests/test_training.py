"""lib.training's step and loop: groups, pieces, precision, a real SIGKILL, several processes, the audit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import PARTS, RELEASED, fake_store, tiny_settings

from lib import training
from lib.baselines import Patches, volume_losses
from lib.clipseg import build, losses
from lib.config import is_finished
from lib.files import ROOT, InputError
from lib.med_vlm import med_vlm_losses, unet_losses
from lib.training import (
    Trainer,
    assert_gradients_arrive,
    audit,
    check_machine,
    parameter_groups,
    split,
    train,
)
from lib.windows import Slices, SliceSampler, Windows, WindowSampler

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
WEIGHTS, TABLES = "best.safetensors", ("log.csv", "audit.csv")


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
        assert (
            rate[id(model.adapter.temporal_pos_emb)] == 3.0
            and rate[id(model.adapter.gate_proj.weight)] == 4.0
        )


def test_a_parameter_without_gradient_is_named_and_a_zero_is_lora_s_alone() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("lora_A", "lora_B")})
    torch.nn.init.zeros_(model["lora_B"].weight)
    model["lora_B"](model["lora_A"](torch.ones(1, 2))).sum().backward()
    assert_gradients_arrive(model)
    model["lora_B"].weight.grad.zero_()
    with pytest.raises(AssertionError, match=r"lora_B\.weight"):
        assert_gradients_arrive(model)
    model["lora_A"].weight.grad = None
    with pytest.raises(AssertionError, match=r"lora_A\.weight"):
        assert_gradients_arrive(model)


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
    """Three centres, the first two without a sample: one piece, for the gate's penalty is a mean over all
    three."""
    windows, nothing = torch.tensor([[0, 1], [1, 2], [2, 3]]), torch.zeros(1, 2, 2)
    batch = Windows(
        torch.zeros(4, 2, 2), windows, torch.tensor([2]), torch.tensor([0]), nothing, torch.ones(1)
    )
    (piece,) = split(batch, 2)
    assert piece[0] == 1 and torch.equal(piece[1].windows, windows) and piece[1].weight.tolist() == [1]


def test_other_batches_divide_as_their_tensors_do() -> None:
    batch = Slices(torch.arange(5)[:, None, None].float(), torch.zeros(5, 1, 1, dtype=torch.uint8))
    pieces = split(batch, 2)
    assert [share for share, _ in pieces] == [3 / 5, 2 / 5] and pieces[1][1].image.flatten().tolist() == [
        3,
        4,
    ]


def gradients(
    model: torch.nn.Module, pieces: list, step_losses: Callable, settings: Any
) -> tuple[dict, dict]:
    """What a step in these pieces adds up to: gradients and losses."""
    model.zero_grad()
    found: dict[str, float] = {}
    for share, piece in pieces:
        parts = step_losses(model, piece, settings, 0.25)
        (parts["loss"] * share).backward()
        found = {name: found.get(name, 0.0) + share * part.item() for name, part in parts.items()}
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, found


def assert_pieces_are_the_whole(
    model: torch.nn.Module, batch: Any, step_losses: Callable, settings: Any, parts: int
) -> None:
    double = type(batch)(*(field.double() if field.is_floating_point() else field for field in batch))
    pieces = split(double, parts)
    assert 1 < len(pieces) <= parts
    with pytest.MonkeyPatch.context() as patch:  # losses that ask for 32 bits get 64
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        whole, losses_whole = gradients(model, [(1.0, double)], step_losses, settings)
        summed, losses_summed = gradients(model, pieces, step_losses, settings)
    assert losses_summed == pytest.approx(losses_whole, rel=1e-12) and set(summed) == set(whole)
    apart = {
        name: (summed[name] - whole[name]).abs().max() / whole[name].abs().max().clamp_min(1e-3)
        for name in whole
    }
    assert max(apart.values()) < 1e-10, max(apart, key=apart.get)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", SAMPLING)
def test_samples_in_pieces_have_the_gradients_of_the_whole(name: str, parts: int) -> None:
    model = build(settings_for(name)).double().train()
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)  # a gate of its own at every place
    assert_pieces_are_the_whole(model, sampled(name), losses, settings_for(name), parts)


def test_patches_and_slices_in_pieces_have_the_gradients_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    settings = tiny_settings("dynunet")
    boxes = torch.from_numpy(rng.integers(0, 14, (4, 1, *settings.patch_voxels), dtype=np.uint8))
    patches = Patches(torch.rand(4, 1, *settings.patch_voxels), boxes)
    assert_pieces_are_the_whole(
        PARTS["dynunet"][0](settings).double().train(), patches, volume_losses, settings, 2
    )
    builders = {
        "med-vlm small": (PARTS["med-vlm small"][0], med_vlm_losses),
    }
    for run, (make, step_losses) in builders.items():
        settings = tiny_settings(run)
        shape = (4, settings.size, settings.size)
        labels = torch.from_numpy(rng.integers(0, len(settings.organs) + 1, shape, dtype=np.uint8))
        model = make(settings).double().eval()  # without BERT's dropout
        assert_pieces_are_the_whole(model, Slices(torch.rand(shape), labels), step_losses, settings, 4)


class Small:
    """Losses on a device that holds so many samples at once; notes the sizes that it was asked for."""

    def __init__(self, samples: int, error: Exception) -> None:
        self.samples, self.error, self.asked = samples, error, []

    def __call__(
        self, model: torch.nn.Module, batch: Windows, settings: Any, done: float
    ) -> dict[str, torch.Tensor]:
        self.asked.append(len(batch.prompt))
        found = losses(model, batch, settings, done)
        if len(batch.prompt) > self.samples:
            raise self.error
        return found


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."
    ),
    MemoryError(),
]


def furthest(one: Path, two: Path) -> float:
    """How far two runs' weights are apart; a key's bias has no gradient but rounding, which Adam blows up."""
    first, second = (load_file(folder / WEIGHTS) for folder in (one, two))
    return max(float((first[n] - second[n]).abs().max()) for n in first if not n.endswith("k_proj.bias"))


@pytest.mark.parametrize("error", FULL, ids=["GPU", "CPU", "Python"])
def test_memory_that_ends_makes_pieces_and_the_weights_are_those_of_whole_steps(
    error: Exception, tmp_path: Path
) -> None:
    settings = settings_for("shuffled", epochs=1, epoch_steps=3, clip_norm=1.0)
    sampler, small = WindowSampler([fake_store(9)], settings), Small(3, error)
    for name, step_losses in (("whole", losses), ("pieces", small)):
        train(build(settings), sampler, step_losses, settings, tmp_path / name)
    assert small.asked == [8, 4, *[2] * 12], "found once, and kept for the steps after"
    assert furthest(tmp_path / "whole", tmp_path / "pieces") < 1e-4
    assert json.loads((tmp_path / "pieces/config.json").read_text())["pieces"] == 4


def test_what_does_not_fit_at_all_ends_in_one_sentence_and_other_errors_pass(tmp_path: Path) -> None:
    settings, small = settings_for("shuffled", epochs=1, epoch_steps=3), Small(0, FULL[0])
    sampler = WindowSampler([fake_store(9)], settings)
    with pytest.raises(InputError) as caught:
        train(build(settings), sampler, small, settings, tmp_path / "adapter")
    text = str(caught.value)
    assert (
        text.startswith("A step does not fit into the memory of cpu, not even in 8 pieces")
        and "\n" not in text
    )
    assert small.asked == [8, 4, 2, 1]
    other = Small(0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(build(settings), sampler, other, settings, tmp_path / "other")
    assert other.asked == [8], "not taken for memory"


def test_the_2d_unet_s_dice_is_one_over_the_batch() -> None:
    """So a step of it in pieces is another step: the mean of the pieces' losses is not the whole's."""
    settings = tiny_settings("unet")
    batch, model = SliceSampler([fake_store(9, size=32)], settings)[0], PARTS["unet"][0](settings)
    whole, pieces = (
        gradients(model, split(batch, parts), unet_losses, settings)[1]["loss"] for parts in (1, 4)
    )
    assert abs(whole - pieces) > 1e-5


# half precision


def test_a_precision_that_the_device_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    check_machine(tiny_settings(precision="no"))
    check_machine(tiny_settings(precision="bf16"))
    with pytest.raises(InputError, match="PRECISION=fp16 needs a GPU"):
        check_machine(tiny_settings(precision="fp16"))
    monkeypatch.setattr(training, "processes", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(InputError, match=r"^Tesla T4 does not compute in bf16: take PRECISION=fp16\.$"):
        check_machine(tiny_settings(precision="bf16"))
    check_machine(tiny_settings(precision="fp16"))


def test_bf16_computes_in_half_precision_and_keeps_weights_of_32_bits(tmp_path: Path) -> None:
    seen = set()

    def spied(model: torch.nn.Module, *rest: Any) -> dict[str, torch.Tensor]:
        layer = getattr(model, "module", model).base_model.clip.vision_model.encoder.layers[0].mlp.fc1
        hook = layer.register_forward_hook(lambda _, given, out: seen.add(out.dtype))
        found = losses(model, *rest)
        hook.remove()
        return found

    settings = settings_for("shuffled", epochs=1, epoch_steps=2)
    for precision in ("no", "bf16"):
        own = settings_for("shuffled", epochs=1, epoch_steps=2, precision=precision)
        AcceleratorState._reset_state()  # a process has one precision
        train(build(own), WindowSampler([fake_store(9)], settings), spied, own, tmp_path / precision)
    AcceleratorState._reset_state()
    assert seen == {torch.float32, torch.bfloat16}
    assert {tensor.dtype for tensor in load_file(tmp_path / "bf16" / WEIGHTS).values()} == {torch.float32}
    logs = [pd.read_csv(tmp_path / precision / "log.csv")["loss"] for precision in ("no", "bf16")]
    assert 0 < (logs[0] - logs[1]).abs().max() < 0.05


@pytest.mark.parametrize("clip_norm", [0.5, 0.0])
def test_a_scaler_changes_no_weight(clip_norm: float) -> None:
    """fp16 multiplies the loss; gradients are divided again before they are clipped, recorded and used."""
    settings = settings_for("shuffled", epochs=1, epoch_steps=2, clip_norm=clip_norm)
    sampler, runs = WindowSampler([fake_store(9)], settings), []
    for scale in (0.0, 2.0**10):
        run = Trainer(build(settings), settings, losses, 2, 2)
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
    one, two = (dict(run.bare_model.named_parameters()) for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert runs[0].progress.gradients == runs[1].progress.gradients
    assert runs[0].progress.recent == runs[1].progress.recent


def test_a_first_scale_that_is_too_large_is_no_gradient() -> None:
    """fp16 begins with a scale that overflows; the audit shows the first gradient that is a number."""
    settings = settings_for("shuffled", epochs=1, epoch_steps=2, clip_norm=0.0)
    run, sampler = Trainer(build(settings), settings, losses, 2, 2), WindowSampler([fake_store(9)], settings)
    run.losses = lambda *a: {"loss": losses(*a)["loss"] * torch.inf}
    run.step(sampler[0])
    assert run.progress.gradients == {}
    run.bare_model.load_state_dict(build(settings).state_dict())
    run.losses = losses
    run.step(sampler[1])
    assert run.progress.gradients and all(np.isfinite(list(run.progress.gradients.values())))


# the loop


def run_training(folder: Path, steps: int = 12, pause: float = 0.0) -> None:
    """A small run with the adapter, drop-path included; pauses at each step where it is to be killed."""
    torch.set_num_threads(1)
    settings = tiny_settings("adapter", epochs=2, epoch_steps=steps // 2, checkpoint_steps=2, drop_path=0.5)

    def slow_losses(*arguments: Any) -> dict[str, torch.Tensor]:
        time.sleep(pause)
        return losses(*arguments)

    sampler = WindowSampler([fake_store(9)], settings)
    train(build(settings), sampler, slow_losses, settings, folder, lambda model: {"validation_dice": 0.5})


def checkpointed(folder: Path) -> int:
    """Steps behind the newest checkpoint."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def test_killed_and_restarted_ends_bit_for_bit_as_unbroken(tmp_path: Path) -> None:
    run_training(tmp_path / "unbroken")
    broken, kills = tmp_path / "broken", 0
    code = f"import pathlib, test_training as t; t.run_training(pathlib.Path({str(broken)!r}), pause=0.3)"
    for attempt in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=os.environ | ENVIRONMENT
        )
        deadline, wanted = time.time() + 120, (attempt + 1) * 4 - 2
        while child.poll() is None and time.time() < deadline and checkpointed(broken) < wanted:
            time.sleep(0.02)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills >= 2
    run_training(broken)
    whole, pieces = (load_file(folder / WEIGHTS) for folder in (tmp_path / "unbroken", broken))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    for name in TABLES:
        assert (tmp_path / "unbroken" / name).read_bytes() == (broken / name).read_bytes()
    assert not list(broken.glob("*checkpoint*")) and not list(broken.glob(".*part*"))


@pytest.mark.parametrize(("keep", "place"), [("best", 1), ("last", 2)])
def test_a_run_leaves_config_log_and_the_weights_that_its_settings_name(
    keep: str, place: int, tmp_path: Path
) -> None:
    settings = tiny_settings("baseline", epochs=3, epoch_steps=2, keep=keep)
    scores, seen = iter([0.2, 0.6, 0.4]), []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"validation_dice": next(scores), "validation_loss": 1.0 + len(seen)}

    log = train(
        build(settings), WindowSampler([fake_store(9)], settings), losses, settings, tmp_path, validate
    )
    best = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(tensor, seen[place][name]) for name, tensor in best.items())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["best_step"] == 2 * (place + 1) and config["settings"]["epochs"] == 3
    stored = pd.read_csv(tmp_path / "log.csv")
    pd.testing.assert_frame_equal(stored, log)
    assert stored["step"].tolist() == [1, 2, 3, 4, 5, 6], "each of the first ten steps has a row"
    columns = stored[["validation_dice", "validation_loss"]].dropna()
    assert columns.to_numpy().tolist() == [[0.2, 2], [0.6, 3], [0.4, 4]] and (stored["loss"] > 0).all()
    assert is_finished(tmp_path, settings) and not is_finished(tmp_path, tiny_settings("baseline", seed=9))
    assert not list(tmp_path.glob("*checkpoint*")), "the optimizer's state of a finished run is of no use"


def test_a_checkpoint_that_cannot_be_read_ends_in_one_sentence(tmp_path: Path) -> None:
    settings = tiny_settings("baseline")
    (tmp_path / "checkpoint-000000002").mkdir()
    (tmp_path / "checkpoint-000000002" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"cannot be read .*delete it, and the run starts anew") as caught:
        Trainer(build(settings), settings, losses, 2, 6).resume(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_due_by_its_steps_at_an_epoch_s_end_and_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, saved = tiny_settings("baseline", epochs=1, epoch_steps=6, checkpoint_steps=4), []
    monkeypatch.setattr(Trainer, "checkpoint", lambda self, folder: saved.append(self.progress.step))
    sampler = WindowSampler([fake_store(9)], settings)
    train(build(settings), sampler, losses, settings, tmp_path / "steps")
    assert saved == [4, 6]
    saved.clear()
    clock = SimpleNamespace(monotonic=lambda: 301.0 * len(readings) if readings.append(0) is None else 0.0)
    readings: list[int] = []
    monkeypatch.setattr(training, "time", clock)
    train(build(settings), sampler, losses, settings, tmp_path / "clock")
    assert len(saved) > 2 and saved[-1] == 6, "half of the steps take ten minutes and more"


def test_the_schedule_rises_then_falls_and_restarts(tmp_path: Path) -> None:
    settings = tiny_settings("dynunet", epochs=4, epoch_steps=4, restart_epochs=2, warmup_steps=4, lr=1.0)
    _, scheduler = training.make_optimizer(torch.nn.Linear(2, 2), settings, 4)
    rates = []
    for _ in range(16):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.05, 0.2875, 0.525, 0.7625, 1.0]), "up in four steps"
    assert rates[4:12] == sorted(rates[4:12], reverse=True) and rates[12] == 1.0, (
        "down in two epochs, and up again"
    )


# the audit


def test_audit_by_hand() -> None:
    """A layer of three numbers, 3, 0 and 4, that becomes 3, 0 and 1; and a frozen one that stays."""
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 1), "second": torch.nn.Linear(1, 1, bias=False)})
    model["second"].requires_grad_(False)
    start = {"first.weight": torch.tensor([[3.0, 0.0]]), "first.bias": torch.tensor([4.0])}
    start["second.weight"] = torch.zeros(1, 1)
    end = start | {"first.bias": torch.tensor([1.0])}
    table = audit(model, start, end, {"first.weight": 6.0, "first.bias": 8.0}).set_index("module")
    assert list(table) == ["parameters", "trainable", "moved", "change", "gradient"]
    assert table.loc["first"].tolist() == [3, 3, 1, pytest.approx(3 / 5), pytest.approx(10)]
    assert table.loc["second"].fillna(-1).tolist() == [1, 0, 0, -1, 0], (
        "nothing was there, so no relative change"
    )


@pytest.mark.parametrize(
    ("run", "changes"), [("adapter", {}), ("baseline", {"freeze_encoders": True}), ("adapter", RELEASED)]
)
def test_the_audit_of_a_run_says_what_learned(run: str, changes: dict, tmp_path: Path) -> None:
    settings = tiny_settings(
        run, **changes | {"epochs": 1, "epoch_steps": 3, "clip_norm": 0.05, "gate_bias": -1.0}
    )
    model = build(settings)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, WindowSampler([fake_store(9)], settings), losses, settings, tmp_path)
    best, table = load_file(tmp_path / WEIGHTS), pd.read_csv(tmp_path / "audit.csv").set_index("module")
    assert table["parameters"].sum() == sum(parameter.numel() for parameter in model.parameters())
    assert table["moved"].sum() == sum(int((best[name] != start[name]).sum()) for name in start)
    frozen, moving = table[table["trainable"] == 0], table[table["trainable"] > 0]
    assert not frozen[["moved", "change", "gradient"]].to_numpy().any(), "what is frozen did not move"
    assert (moving[["moved", "change", "gradient"]] > 0).all(None) and (
        table["moved"] <= table["trainable"]
    ).all()
    assert moving["gradient"].pow(2).sum() ** 0.5 == pytest.approx(0.05, rel=1e-3), "clipped"
    learned = {name.split(".")[1] if name.startswith("base_model") else "adapter" for name in moving.index}
    assert learned == ({"decoder"} if settings.freeze_encoders else {"clip", "decoder", "adapter"})
    assert ("adapter.temporal_pos_emb" in frozen.index) == settings.frozen_embeddings
    rows = {"adapter.temporal_layers.1", "adapter.spatial_context"} if settings.adapter else set()
    assert rows | {"base_model.clip.vision_model.encoder.layers.1", "base_model.decoder.film_mul"} <= set(
        table.index
    )


# several processes

SHARED = """
import sys
from pathlib import Path
import torch
from tiny import fake_store, tiny_settings
from lib.clipseg import build, losses
from lib.training import processes, train
from lib.windows import WindowSampler
torch.set_num_threads(1)
process = processes()
settings = tiny_settings("adapter", epochs=1, epoch_steps=4, drop_path=0.0, sampler="shuffled", batch=8)
sampler = WindowSampler([fake_store(9)], settings, process.process_index, process.num_processes)
train(build(settings), sampler, losses, settings, Path(sys.argv[1]))
assert process.num_processes == int(sys.argv[2])
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    (script := tmp_path / "run.py").write_text(SHARED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, how, count in (("alone", [], "1"), ("shared", launch, "2")):
        command = [sys.executable, *how, str(script), str(tmp_path / name), count]
        done = subprocess.run(
            command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert furthest(tmp_path / "alone", tmp_path / "shared") < 1e-4
    rates = [pd.read_csv(tmp_path / name / "log.csv")["lr"].tolist() for name in ("alone", "shared")]
    assert rates[0] == rates[1], "the schedule moves once a step"
