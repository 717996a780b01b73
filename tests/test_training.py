"""The training loop: loss by hand, groups, resuming after a real SIGKILL, what a run leaves behind, and the audit of what it moved."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from tiny import fake_store, tiny_settings

from lib.clipseg import build, losses, segmentation_loss
from lib.paths import ROOT, InputError
from lib.profiles import is_finished
from lib.training import assert_gradients_arrive, audit, load_weights, module_of, parameter_groups, save_weights, train
from lib.windows import Terms, TermSampler


def terms_of(masks: torch.Tensor, weight: list[float]) -> Terms:
    nothing = torch.zeros(0)
    return Terms(nothing, nothing, nothing, nothing, masks, torch.tensor(weight))


def test_loss_by_hand() -> None:
    """Two terms of 2 x 2 pixels: one organ in one pixel, one absent organ; logits 0, so p = 1/2 everywhere."""
    masks = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    logits = torch.zeros(2, 2, 2)
    bce, dice = segmentation_loss(logits, terms_of(masks, [1.0, 1.0]), 1.0)
    assert bce.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    # 1 - (2 * 0.5 + 1) / (1 + 2 + 1) = 1/2 and 1 - (0 + 1) / (0 + 2 + 1) = 2/3
    assert dice.item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    weighted = segmentation_loss(logits, terms_of(masks, [2.0, 0.0]), 1.0)[1]
    assert weighted.item() == pytest.approx(1 / 2)
    heavier = segmentation_loss(logits, terms_of(masks, [1.0, 1.0]), 5.0)[0]
    assert heavier.item() == pytest.approx(torch.log(torch.tensor(2.0)).item() * (8 + 4) / 8)


def test_positive_weight_anneals_to_one() -> None:
    settings = tiny_settings(positive_weight=15.0, anneal=0.5)
    model, terms = build(settings).eval(), TermSampler([fake_store(9)], settings)[0]
    with torch.no_grad():
        start, middle, end = (losses(model, terms, settings, done)["bce"].item() for done in (0.0, 0.5, 1.0))
        plain = losses(model, terms, tiny_settings(positive_weight=1.0), 0.0)["bce"].item()
    assert start > middle == end == pytest.approx(plain)


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
        assert rate[id(model.adapter.temporal_pos_emb)] == 3.0 and rate[id(model.adapter.gate_proj.weight)] == 4.0


def test_a_parameter_without_gradient_is_named() -> None:
    model = torch.nn.Linear(2, 2)
    model(torch.ones(1, 2))[0, 0].backward()
    assert_gradients_arrive(model)
    model.weight.grad = None
    with pytest.raises(AssertionError, match="weight"):
        assert_gradients_arrive(model)


def run_training(folder: Path, steps: int = 12, pause: float = 0.0) -> None:
    """A small run with the adapter, drop-path included; pauses after each step where it is to be killed."""
    torch.set_num_threads(1)
    settings = tiny_settings("adapter", epochs=2, epoch_steps=steps // 2, checkpoint_steps=2, drop_path=0.5)

    def slow_losses(*arguments):
        time.sleep(pause)
        return losses(*arguments)

    train(settings, build(settings), TermSampler([fake_store(9)], settings), lambda model: {"validation_dice": 0.5}, folder, slow_losses)


def test_killed_and_restarted_ends_bit_for_bit_as_unbroken(tmp_path: Path) -> None:
    run_training(tmp_path / "unbroken")
    code = "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_training import run_training; "
    broken, kills = tmp_path / "broken", 0
    for attempt in range(3):
        command = [sys.executable, "-c", code + f"run_training(Path({str(broken)!r}), pause=0.3)"]
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline, wanted = time.time() + 120, (attempt + 1) * 4
        while child.poll() is None and time.time() < deadline and logged_steps(broken) < wanted:
            time.sleep(0.02)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills >= 2
    run_training(broken)
    whole, pieces = (load_file(folder / "best.safetensors") for folder in (tmp_path / "unbroken", broken))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    for name in ("log.csv", "audit.csv"):
        assert (tmp_path / "unbroken" / name).read_bytes() == (broken / name).read_bytes(), "gradients are the first step's, too"
    took = json.loads((broken / "config.json").read_text())
    assert took["seconds"] >= took["computed"] > 2, "the step before a checkpoint counts"


def logged_steps(folder: Path) -> int:
    """Steps behind the newest checkpoint, as its progress says."""
    found = sorted(folder.glob("checkpoint-*"))
    return int(found[-1].name.split("-")[1]) if found else 0


def test_a_run_leaves_config_log_and_the_best_weights(tmp_path: Path) -> None:
    settings = tiny_settings("baseline", epochs=3, epoch_steps=2)
    scores = iter([0.2, 0.6, 0.4])
    seen = []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"validation_dice": next(scores)}

    model = build(settings)
    best = train(settings, model, TermSampler([fake_store(9)], settings), validate, tmp_path / "run")
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in load_file(best).items()), "the second epoch was best"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["validation_dice"] == 0.6 and config["best_step"] == 4 and config["settings"]["epochs"] == 3
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert log["validation_dice"].dropna().tolist() == [0.2, 0.6, 0.4] and (log["loss"] > 0).all()
    assert is_finished(tmp_path / "run", settings) and not is_finished(tmp_path / "run", tiny_settings("baseline", seed=9))
    assert train(settings, model, None, None, tmp_path / "run") == best, "a finished run is not trained again"
    assert not list((tmp_path / "run").glob("*checkpoint*")), "the optimizer state of a finished run is of no use"


def test_the_last_weights_count_where_the_settings_say_so(tmp_path: Path) -> None:
    settings = tiny_settings("baseline", epochs=3, epoch_steps=2, keep="last")
    scores, seen = iter([0.2, 0.6, 0.4]), []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"validation_dice": next(scores), "validation_loss": 1.0 + len(seen), "training_dice": 0.9}

    best = load_file(train(settings, build(settings), TermSampler([fake_store(9)], settings), validate, tmp_path))
    assert all(torch.equal(tensor, seen[2][name]) for name, tensor in best.items())
    assert not all(torch.equal(tensor, seen[1][name]) for name, tensor in best.items()), "which were the best on validation"
    assert json.loads((tmp_path / "config.json").read_text())["best_step"] == 6
    log = pd.read_csv(tmp_path / "log.csv")
    assert log[["validation_dice", "validation_loss", "training_dice"]].to_numpy().tolist() == [[0.2, 2, 0.9], [0.6, 3, 0.9], [0.4, 4, 0.9]]


def test_a_first_gradient_of_zero_is_lora_s_alone() -> None:
    model = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2, bias=False), "lora_B": torch.nn.Linear(2, 2, bias=False)})
    torch.nn.init.zeros_(model["lora_B"].weight)
    model["lora_B"](model["lora_A"](torch.ones(1, 2))).sum().backward()
    assert_gradients_arrive(model)
    model["lora_B"].weight.grad.zero_()
    with pytest.raises(AssertionError, match=r"lora_B\.weight"):
        assert_gradients_arrive(model)
    model["lora_A"].weight.grad = None
    with pytest.raises(AssertionError, match=r"lora_A\.weight"):
        assert_gradients_arrive(model)


def test_other_settings_start_anew(tmp_path: Path) -> None:
    settings = tiny_settings("baseline", epochs=1, epoch_steps=1)
    train(settings, build(settings), TermSampler([fake_store(9)], settings), None, tmp_path)
    other = tiny_settings("baseline", epochs=1, epoch_steps=1, seed=1)
    train(other, build(other), TermSampler([fake_store(9)], other), None, tmp_path)
    assert is_finished(tmp_path, other) and not is_finished(tmp_path, settings)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("base_model.clip.vision_model.encoder.layers.3.mlp.fc1.weight", "base_model.clip.vision_model.encoder.layers.3"),
        ("base_model.clip.text_model.embeddings.token_embedding.weight", "base_model.clip.text_model.embeddings.token_embedding"),
        ("base_model.decoder.film_mul.bias", "base_model.decoder.film_mul"),
        ("base_model.decoder.layers.0.self_attn.q_proj.bias", "base_model.decoder.layers.0"),
        ("adapter.temporal_layers.1.ff.0.weight", "adapter.temporal_layers.1"),
        ("adapter.spatial_context.mlp.3.weight", "adapter.spatial_context"),
        ("adapter.temporal_pos_emb", "adapter.temporal_pos_emb"),
        ("adapter.gate_proj.bias", "adapter.gate_proj"),
    ],
)
def test_rows_of_the_audit(name: str, module: str) -> None:
    assert module_of(name) == module


def test_audit_by_hand() -> None:
    """A layer of three numbers, 3, 0 and 4, that becomes 3, 0 and 1; and a frozen one that stays."""
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 1), "second": torch.nn.Linear(1, 1, bias=False)})
    model["second"].requires_grad_(False)
    start = {"first.weight": torch.tensor([[3.0, 0.0]]), "first.bias": torch.tensor([4.0]), "second.weight": torch.zeros(1, 1)}
    end = start | {"first.bias": torch.tensor([1.0])}
    table = audit(model, start, end, {"first.weight": 6.0, "first.bias": 8.0}).set_index("module")
    assert list(table) == ["parameters", "trainable", "moved", "change", "gradient"]
    assert table.loc["first"].tolist() == [3, 3, 1, pytest.approx(3 / 5), pytest.approx(10)]
    assert table.loc["second"].fillna(-1).tolist() == [1, 0, 0, -1, 0], "nothing was there, so no relative change"


@pytest.mark.parametrize("run", ["adapter", "baseline, released frozen encoders", "adapter, released optimizer", "adapter, as released"])
def test_the_audit_of_a_run_says_what_learned(run: str, tmp_path: Path) -> None:
    settings = tiny_settings(run, epochs=1, epoch_steps=3, clip_norm=0.5, gate_bias=-1.0)
    model = build(settings)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    best = load_file(train(settings, model, TermSampler([fake_store(9)], settings), None, tmp_path))
    table = pd.read_csv(tmp_path / "audit.csv").set_index("module")
    assert table["parameters"].sum() == sum(parameter.numel() for parameter in model.parameters())
    moved = {name: int((best[name] != start[name]).sum()) for name in start}
    for module, row in table.iterrows():
        names = [name for name in start if module_of(name) == module]
        assert row["moved"] == sum(moved[name] for name in names)
        assert row["trainable"] == sum(start[name].numel() for name in names if model.get_parameter(name).requires_grad)
    frozen, trained = table[table["trainable"] == 0], table[table["trainable"] > 0]
    assert not frozen[["moved", "change", "gradient"]].to_numpy().any(), "what is frozen did not move"
    assert (trained[["moved", "change", "gradient"]] > 0).all(None)
    whole = trained[~trained.index.str.contains("text_model.embeddings")]  # of which the prompts' own letters and places move
    assert (whole["moved"] > 0.5 * whole["trainable"]).all()
    assert (table["moved"] <= table["trainable"]).all() and trained["gradient"].pow(2).sum() ** 0.5 == pytest.approx(0.5, rel=1e-3)
    learned = {name.split(".")[1] if name.startswith("base_model") else "adapter" for name in trained.index}
    assert learned == {"decoder"} if "frozen encoders" in run else {"clip", "decoder", "adapter"}
    assert ("adapter.temporal_pos_emb" in frozen.index) == ("optimizer" in run or "as released" in run)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    adapter = build(tiny_settings("adapter"))
    save_weights(adapter, tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="another model"):
        load_weights(build(tiny_settings("baseline")), tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        load_weights(adapter, tmp_path / "nothing.safetensors")
    save_weights(build(tiny_settings("baseline")), tmp_path / "baseline.safetensors")
    load_weights(adapter, tmp_path / "baseline.safetensors", strict=False)
    with pytest.raises(InputError, match="adapter"):
        load_weights(adapter, tmp_path / "baseline.safetensors")


def run_one_of(folder: Path) -> None:
    """A small run whose steps are shared by all processes of `torchrun`."""
    torch.set_num_threads(1)
    process = PartialState(cpu=True)
    settings = tiny_settings("adapter", epochs=1, epoch_steps=4, drop_path=0.0, sampler="shuffled", batch=8)
    sampler = TermSampler([fake_store(9)], settings, process.process_index, process.num_processes)
    train(settings, build(settings), sampler, None, folder)
    assert process.num_processes == int(os.environ.get("WORLD_SIZE", 1))


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(f"from pathlib import Path; from test_training import run_one_of; run_one_of(Path({str(tmp_path / 'shared')!r}))")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    alone = [sys.executable, "-c", script.read_text().replace("/shared'", "/alone'")]
    subprocess.run(alone, env=environment, check=True, capture_output=True, timeout=300)
    one, two = (load_file(tmp_path / name / "best.safetensors") for name in ("alone", "shared"))
    # a key's bias has no gradient but rounding, which Adam blows up
    apart = {name: (one[name] - two[name]).abs().max() for name in one if not name.endswith("k_proj.bias")}
    assert max(apart.values()) < 1e-4, max(apart, key=apart.get)
    rates = [pd.read_csv(tmp_path / name / "log.csv")["lr"].tolist() for name in ("alone", "shared")]
    assert rates[0] == rates[1], "the schedule moves once a step"
