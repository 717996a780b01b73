"""A step in pieces: its gradients are the whole step's, memory that runs out makes smaller pieces, and scaled gradients are unscaled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from tiny import fake_store, tiny_settings

from lib.baselines import Patches, PatchSampler, volume_losses
from lib.clipseg import build, losses
from lib.med_vlm import med_vlm_losses, patch_losses, unet_losses
from lib.paths import InputError
from lib.profiles import Settings
from lib.runs import KINDS, build_model
from lib.training import recompute_activations, split, train
from lib.training.memory import is_out_of_memory
from lib.training.run import Run, check_precision
from lib.windows import Slices, SliceSampler, Terms, TermSampler

SAMPLING = {
    "shuffled": {"sampler": "shuffled", "batch": 8},
    "slab": {"sampler": "slab", "batch": 8, "prompts": 2},
    "slab of all prompts": {"sampler": "slab", "batch": 8, "prompts": 13},
    "rows of a manifest": {"sampler": "shuffled", "batch": 6, "neighbours": "manifest"},
}


def settings_for(name: str, **more: Any) -> Settings:
    return tiny_settings("adapter", drop_path=0.0, gate_bias=0.0, gate_penalty=1.0, positive_weight=3.0, **SAMPLING[name], **more)


@pytest.mark.parametrize("parts", [2, 3, 8, 99])
@pytest.mark.parametrize("name", SAMPLING)
def test_pieces_hold_every_term_and_no_slice_that_they_do_not_see(name: str, parts: int) -> None:
    terms = TermSampler([fake_store(9), fake_store(7, seed=1)], settings_for(name))[3]
    pieces = split(terms, parts)
    assert 1 < len(pieces) <= min(parts, len(terms.centre.unique())) and sum(share for share, _ in pieces) == pytest.approx(1)
    assert sum(len(piece.windows) for _, piece in pieces) == len(terms.windows)
    seen = []
    for _, piece in pieces:
        assert piece.windows.unique().tolist() == list(range(len(piece.slices))) and len(piece.prompt)
        for term in range(len(piece.prompt)):
            pictures = piece.slices[piece.windows[piece.centre[term]]]
            seen.append((pictures.numpy().tobytes(), int(piece.prompt[term]), piece.masks[term].numpy().tobytes()))
    whole = [
        (terms.slices[terms.windows[centre]].numpy().tobytes(), int(prompt), mask.numpy().tobytes())
        for centre, prompt, mask in zip(terms.centre, terms.prompt, terms.masks, strict=True)
    ]
    assert sorted(seen) == sorted(whole)


def test_a_centre_that_nobody_asks_about_stays_with_its_neighbours() -> None:
    """Three centres, the first two without a term: one piece, for the gate's penalty is a mean over all three."""
    windows, nothing = torch.tensor([[0, 1], [1, 2], [2, 3]]), torch.zeros(1, 2, 2)
    terms = Terms(torch.zeros(4, 2, 2), windows, torch.tensor([2]), torch.tensor([0]), nothing, torch.ones(1))
    (piece,) = split(terms, 2)
    assert piece[0] == 1 and torch.equal(piece[1].windows, windows) and piece[1].weight.tolist() == [1]


def gradients(model: torch.nn.Module, pieces: list[tuple[float, Any]], step_losses: Callable, settings: Settings) -> tuple[dict, dict]:
    """What a step in these pieces adds up to: gradients and losses."""
    model.zero_grad()
    found: dict[str, float] = {}
    for share, piece in pieces:
        parts = step_losses(model, piece, settings, 0.25)
        (parts["loss"] * share).backward()
        found = {name: found.get(name, 0.0) + share * part.item() for name, part in parts.items()}
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, found


def assert_pieces_are_the_whole(model: torch.nn.Module, batch: Any, step_losses: Callable, settings: Settings, parts: int) -> None:
    double = type(batch)(*(field.double() if field.is_floating_point() else field for field in batch))
    pieces = split(double, parts)
    assert 1 < len(pieces) <= parts
    with pytest.MonkeyPatch.context() as patch:  # losses that ask for 32 bits get 64, for a bound far below the rounding of 32
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        whole, losses_whole = gradients(model, [(1.0, double)], step_losses, settings)
        summed, losses_summed = gradients(model, pieces, step_losses, settings)
    assert losses_summed == pytest.approx(losses_whole, rel=1e-12) and set(summed) == set(whole)
    apart = {name: float((summed[name] - whole[name]).abs().max() / whole[name].abs().max().clamp_min(1e-3)) for name in whole}
    assert max(apart.values()) < 1e-10, max(apart, key=apart.get)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", SAMPLING)
def test_terms_in_pieces_have_the_gradients_of_the_whole(name: str, parts: int) -> None:
    settings = settings_for(name)
    terms = TermSampler([fake_store(9), fake_store(7, seed=1)], settings)[3]
    model = build(settings).double().train()
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)  # a gate of its own at every place
    assert_pieces_are_the_whole(model, terms, losses, settings, parts)


def test_patches_and_slices_in_pieces_have_the_gradients_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    settings = tiny_settings("dynunet")
    boxes = torch.from_numpy(rng.integers(0, 14, (4, 1, *settings.patch_voxels), dtype=np.uint8))
    patches = Patches(torch.rand(4, 1, *settings.patch_voxels), boxes)
    assert_pieces_are_the_whole(build_model(settings).double().train(), patches, volume_losses, settings, 2)
    for run, step_losses in (("med-vlm small", med_vlm_losses), ("vit small", patch_losses)):
        settings = tiny_settings(run)
        labels = torch.from_numpy(rng.integers(0, len(settings.organs) + 1, (4, settings.size, settings.size), dtype=np.uint8))
        slices = Slices(torch.rand(4, settings.size, settings.size), labels)
        assert_pieces_are_the_whole(build_model(settings).double().eval(), slices, step_losses, settings, 4)  # without BERT's dropout


def test_the_2d_unet_s_dice_is_one_over_the_batch() -> None:
    """Why it is never taken in pieces: the mean of the pieces' losses is another."""
    settings = tiny_settings("unet")
    batch = SliceSampler([fake_store(9, size=32)], settings)[0]
    model = build_model(settings)
    whole, pieces = (gradients(model, split(batch, parts), unet_losses, settings)[1]["loss"] for parts in (1, 4))
    assert abs(whole - pieces) > 1e-5


@pytest.mark.parametrize("run", ["adapter", "med-vlm small"])
def test_activations_computed_twice_change_no_bit(run: str) -> None:
    settings = tiny_settings(run)
    batch = KINDS[settings.model][1]([fake_store(9)], settings)[0]
    model, step_losses = build_model(settings).train(), KINDS[settings.model][2]
    kept: list[int] = []
    both = []
    for _ in range(2):
        sizes: list[int] = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            both.append(gradients(model, [(1.0, batch)], step_losses, settings))
        kept.append(sum(sizes))
        assert recompute_activations(model)
    assert both[0][1] == both[1][1] and all(torch.equal(both[0][0][name], both[1][0][name]) for name in both[0][0])
    assert kept[1] < 0.7 * kept[0], "that is what it is for"
    assert not recompute_activations(build_model(tiny_settings("dynunet"))), "a network without transformer layers"


class Small:
    """Losses on a device that holds so many terms at once; notes the sizes that it was asked for."""

    def __init__(self, terms: int, error: Exception) -> None:
        self.terms, self.error, self.asked = terms, error, []

    def __call__(self, model: torch.nn.Module, terms: Terms, settings: Settings, done: float) -> dict[str, torch.Tensor]:
        self.asked.append(len(terms.prompt))
        found = losses(model, terms, settings, done)
        if len(terms.prompt) > self.terms:
            raise self.error
        return found


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL, ids=["GPU", "CPU", "Python"])
def test_memory_that_ends_makes_pieces_and_the_weights_are_those_of_whole_steps(error: Exception, tmp_path: Path) -> None:
    settings = settings_for("shuffled", epochs=1, epoch_steps=3, clip_norm=1.0)
    sampler, small = TermSampler([fake_store(9)], settings), Small(3, error)
    for name, step_losses in (("whole", losses), ("pieces", small)):
        train(settings, build(settings), sampler, None, tmp_path / name, step_losses)
    assert small.asked == [8, 4, *[2] * 12], "found once, and kept for the steps after"
    whole, pieces = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "pieces"))
    # a key's bias has no gradient but rounding, which Adam blows up
    apart = {name: (whole[name] - pieces[name]).abs().max() for name in whole if not name.endswith("k_proj.bias")}
    assert max(apart.values()) < 1e-4, max(apart, key=apart.get)
    config = json.loads((tmp_path / "pieces/config.json").read_text())
    assert config["pieces"] == 4 and 0 <= config["waited"] <= config["seconds"]


def test_what_does_not_fit_at_all_ends_in_one_sentence(tmp_path: Path) -> None:
    settings, small = settings_for("shuffled", epochs=1, epoch_steps=3), Small(0, FULL[0])
    with pytest.raises(InputError) as caught:
        train(settings, build(settings), TermSampler([fake_store(9)], settings), None, tmp_path / "adapter", small)
    text = str(caught.value)
    assert text.startswith("A step of adapter does not fit into the memory of cpu, not even in 8 pieces") and "\n" not in text
    assert small.asked == [8, 4, 2, 1, 1], "at the end with activations computed twice"
    with pytest.raises(InputError, match="not even in 1 pieces"):
        unet = tiny_settings("unet", epochs=1)
        train(unet, build_model(unet), SliceSampler([fake_store(9, size=32)], unet), None, tmp_path / "unet", lambda *_: full())


def full() -> None:
    raise FULL[0]


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(KeyboardInterrupt())
    settings, small = settings_for("shuffled", epochs=1, epoch_steps=1), Small(0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(settings, build(settings), TermSampler([fake_store(9)], settings), None, tmp_path, small)
    assert small.asked == [8]


@pytest.mark.parametrize("clip_norm", [0.5, 0.0])
def test_a_scaler_changes_no_weight(clip_norm: float, tmp_path: Path) -> None:
    """Half precision multiplies the loss; gradients are divided again before they are clipped, recorded and used."""
    settings = settings_for("shuffled", epochs=1, epoch_steps=2, clip_norm=clip_norm)
    sampler, runs = TermSampler([fake_store(9)], settings), []
    for scale in (0.0, 2.0**10):
        run = Run(settings, build(settings), 2, tmp_path / str(scale))
        if scale:
            run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"
            run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            run.optimizer = AcceleratedOptimizer(run.optimizer.optimizer, scaler=run.accelerator.scaler)
            run.accelerator._optimizers = run.scheduler.optimizers = [run.optimizer]
        try:
            run.accelerator.autocast = torch.enable_grad  # as precise as without
            for step in range(2):
                run.step(sampler[step], losses, 2)
        finally:
            run.accelerator.state._mixed_precision = "no"
        runs.append(run)
    one, two = (dict(run.bare_model.named_parameters()) for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one) and runs[0].progress.gradients == runs[1].progress.gradients
    assert runs[0].progress.recent == runs[1].progress.recent


def test_a_first_scale_that_is_too_large_is_no_gradient(tmp_path: Path) -> None:
    """Half precision begins with a scale that overflows; the audit shows the first gradient that is a number."""
    settings = settings_for("shuffled", epochs=1, epoch_steps=2, clip_norm=0.0)
    run, sampler = Run(settings, build(settings), 2, tmp_path), TermSampler([fake_store(9)], settings)
    run.step(sampler[0], lambda *a: {"loss": losses(*a)["loss"] * torch.inf}, 2)
    assert run.progress.gradients == {}
    run.bare_model.load_state_dict(build(settings).state_dict())
    run.step(sampler[1], losses, 2)
    assert run.progress.gradients and all(np.isfinite(list(run.progress.gradients.values())))


def test_a_precision_that_the_device_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_precision("no", torch.device("cpu"))
    check_precision("bf16", torch.device("cpu"))
    with pytest.raises(InputError, match="PRECISION=fp16 needs a GPU"):
        check_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(InputError, match=r"^Tesla T4 does not compute in bf16: take PRECISION=fp16\.$"):
        check_precision("bf16", torch.device("cuda"))
    check_precision("fp16", torch.device("cuda"))


def test_patch_samplers_and_slices_divide_as_their_tensors_do() -> None:
    batch = Slices(torch.arange(5)[:, None, None].float(), torch.zeros(5, 1, 1, dtype=torch.uint8))
    pieces = split(batch, 2)
    assert [share for share, _ in pieces] == [3 / 5, 2 / 5] and pieces[1][1].image.flatten().tolist() == [3, 4]
    assert all(isinstance(piece, Slices) for _, piece in pieces) and PatchSampler is KINDS["dynunet"][1]
