"""`make gpu-proof`: what the full profile does on a GPU, at full size on phantoms and random weights.

Steps of each kind of model in each precision; inference beside the released way; a training with its loader,
validation and resume, and what the plan said of it. It writes results/gpu_proof.json and gpu_proof.md.
"""

import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers as hub

from lib.config import Values, settings_of
from lib.data import Store, prepare
from lib.files import ROOT, replacing, write_json
from lib.inference import HALF, predict, slice_probabilities
from lib.organs import PROMPTS
from lib.training import Trainer, batches_of, check_machine, processes, train, volume_dice
from tools.bench import byte_tokenizer, few_slices, inference, made_up_case, model_of
from tools.plan import FIRST, measure, seconds_of, wait
from tools.train import PARTS

SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {  # a run, and what is changed in it
    **{run: (run, {}) for run in ("baseline", "adapter", "dynunet", "med-vlm large", "unet")},
    "adapter, FAST=1": ("adapter", {"sampler": "slab"}),
}
PRECISIONS = {"fp32": "no", "tf32": "tf32", "fp16": "fp16", "bf16": "bf16"}
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS: dict[str, tuple[Any, Any]] = {  # sizes of Med-VLM's image and text encoders
    "large": ({}, {}),  # ViT-base, BERT-base
    "small": ({"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
              {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}),
    "narrow": (NARROW | {"image_size": 48}, NARROW),
}  # fmt: skip


def write_weights(home: Path, towers: str, narrow: bool) -> None:
    """Random weights as the hub's files: home/clipseg of its sizes or narrow, home/vit and home/bert."""
    torch.manual_seed(0)
    text, vision = {"eos_token_id": 2, "bos_token_id": 0}, {"patch_size": 16}  # as in the hub's file
    sizes: dict[str, Any] = {"reduce_dim": 64, "extract_layers": [3, 6, 9], "projection_dim": 512}
    if narrow:
        text, vision = text | NARROW, vision | NARROW | {"num_hidden_layers": 4}
        sizes = {"reduce_dim": 16, "extract_layers": [0, 1, 2], "projection_dim": 32}
    sizes |= {"text_config": text, "vision_config": vision, "use_complex_transposed_convolution": True}
    clipseg = hub.CLIPSegForImageSegmentation(hub.CLIPSegConfig(**sizes))
    last: Any = clipseg.decoder.transposed_convolution[-1]
    if not narrow:  # else half of all voxels are marked, here and there: distances between them take hours
        last.weight.data *= 1e-3
        last.bias.data.fill_(-3)
    clipseg.save_pretrained(home / "clipseg")
    byte_tokenizer().save_pretrained(home / "clipseg")
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vit, bert = hub.ViTConfig(**TOWERS[towers][0]), hub.BertConfig(**TOWERS[towers][1])
    if narrow:
        bert.vocab_size = len(words)
    hub.ViTModel(vit, add_pooling_layer=False).save_pretrained(home / "vit")
    hub.BertModel(bert, add_pooling_layer=False).save_pretrained(home / "bert")
    (home / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")


def matrix_tflops(precision: str, edge: int) -> float:
    """TFLOP/s of a plain matrix product in a precision: what a step is held against."""
    device = processes().device
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    a = torch.randn(edge, edge, device=device).to(HALF.get(precision, torch.float32))

    def multiply(times: int) -> None:
        for _ in range(times):
            a @ a

    multiply(3)  # not measured
    return 10 * 2 * edge**3 / seconds_of(lambda: multiply(10)) / 1e12


def steps_of(systems: dict[str, Any], stores: dict[str, list[Store]], precisions: dict[str, str], edge: int,
             steps: int) -> pd.DataFrame:
    """A row for each system and precision: seconds of a step, memory, share of a plain matrix product's rate,
    and the greatest difference of its losses from those in 32 bits, step by step."""
    rows, exact = [], dict[str, list[float]]()
    for precision, own in precisions.items():
        most = matrix_tflops(precision, edge)
        for name, (run, settings) in systems.items():
            took = measure(run, replace(settings, precision=own), stores[run], steps)
            exact.setdefault(name, took.losses)
            apart = max(abs(x / y - 1) for x, y in zip(took.losses, exact[name], strict=True))
            rate = took.tflop / took.seconds
            row = {"system": name, "precision": precision, "seconds a step": took.seconds,
                   "TFLOP a step": took.tflop, "TFLOP/s": rate, "share of a matrix product's": rate / most,
                   "peak GB": took.peak_gb, "pieces": took.pieces, "loss against fp32": apart}
            if precision == "fp32":
                for _ in range(2):  # the first chooses kernels
                    scan = partial(predict, took.model, stores[run][0], settings)
                    row["seconds of a scan"] = seconds_of(scan)
            rows.append(row)
            told = (f"{key} {x:.3g}" if isinstance(x, float) else x for key, x in row.items())
            print(*told, sep=", ", flush=True)
    return pd.DataFrame(rows)


def training(run: str, settings: Any, stores: list[Store], home: Path) -> dict[str, float]:
    """A whole training of one epoch with its loader and a validation: what the plan says of it, what it took;
    the share of time that the loader is waited for; and the losses of a run that is killed and goes on."""
    build, sampler, losses = PARTS[run]
    batches, device, half = sampler(stores, settings), processes().device, settings.epoch_steps // 2
    took = measure(run, settings, stores)
    validation = seconds_of(lambda: volume_dice(took.model, stores[:1], settings))
    judge = lambda model: {"validation_dice": volume_dice(model, stores[:1], settings)}  # noqa: E731
    began = wait(device)
    log = train(build(settings), batches, losses, settings, home / "whole", judge)
    whole = wait(device) - began

    (home / "killed").mkdir()
    trainer = Trainer(build(settings), settings, losses, len(batches), home / "killed")
    waited, began, at = 0.0, time.perf_counter(), time.perf_counter()
    for step, batch in enumerate(batches_of(batches, settings, range(half), device)):
        if step == FIRST:  # its processes have started
            waited, began = 0.0, wait(device)
        else:
            waited += time.perf_counter() - at
        trainer.step(batch)
        wait(device)
        at = time.perf_counter()
    share = waited / (time.perf_counter() - began)
    trainer.checkpoint()
    there = Trainer(build(settings), settings, losses, len(batches), home / "killed")
    apart = []
    for batch in batches_of(batches, settings, range(half, len(batches)), device):
        trainer.step(batch)
        there.step(batch)
        ours, resumed = (one.progress.recent[-1]["loss"].item() for one in (trainer, there))
        apart.append(abs(resumed / ours - 1))
    return {
        "steps": int(log["step"].iloc[-1]),
        "seconds planned": len(batches) * took.seconds + validation,
        "seconds taken": whole, "seconds of a validation scan": validation,
        "share waiting for the loader": share, "steps after the kill": len(apart),
        "greatest relative difference of losses after it": max(apart),
    }


def slices_a_second(profile: str, store: Store) -> dict[str, float]:
    """Slices a second for 13 prompts by each way of `make bench`, and how many times the released way's."""
    check_machine(settings_of("adapter", profile))
    rates = {name: 1 / float(np.median(took)) for name, took in inference(profile, store, 16, 4).items()}
    return rates | {"times the released way": rates["ours"] / rates["released"]}


def beside_the_processor(profile: str, store: Store, slices: int = 4) -> dict[str, float]:
    """How far the adapter's probabilities and claims on a GPU are from a processor's."""
    model, settings = model_of(profile)
    few, found = few_slices(store, slices), []
    for device in (processes().device, "cpu"):
        model = model.to(device)
        maps = torch.cat([*slice_probabilities(model, few, [*PROMPTS], settings)], 1).cpu()
        found.append((maps, predict(model, few, settings).claims))
    (there, marked), (here, claims) = found
    return {"greatest difference of a probability": float((there - here).abs().max()),
            "share of voxels that differ": float((marked != claims).mean())}


def proof(profile: str, home: Path, precisions: dict[str, str], shape: tuple[int, int, int], finer: int,
          edge: int, steps: int) -> dict[str, Any]:
    """All parts; `profile` "full", or "smoke" for a dry run on a processor."""
    case, systems, stores, starts = made_up_case(home, shape, finer), {}, {}, dict[str, Any]()
    if profile == "full":
        write_weights(home, "large", narrow=False)
        starts = dict.fromkeys(("baseline", "adapter"), Values(weights=str(home / "clipseg")))
        starts["med-vlm large"] = Values(vit=str(home / "vit"), bert=str(home / "bert"))
    for name, (run, changes) in SYSTEMS.items():
        settings = settings_of(run, profile, **changes, **starts.get(run, {}))
        systems[name] = run, settings
        stores[run] = prepare([case], replace(settings, phantoms=True), home / "stores", 1)
    table = steps_of(systems, stores, precisions, edge, steps)
    run, fast = systems["adapter, FAST=1"]
    brief = replace(fast, epochs=1, epoch_steps=12 * steps, restart_epochs=1)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "machine": {
            "device": name, "torch": torch.__version__, "CUDA": torch.version.cuda, "cores": os.cpu_count()},
        "steps": table.to_dict("records"),
        "inference": slices_a_second(profile, stores["adapter"][0]),
        "training": training(run, brief, stores[run], home),
        "beside a processor": beside_the_processor(profile, stores["adapter"][0]),
    }


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    steps = pd.DataFrame(found["steps"]).map(lambda x: f"{x:.3g}" if isinstance(x, float) else x)
    lines = [f"`make gpu-proof`: {', '.join(f'{k} {v}' for k, v in found['machine'].items())}.", "",
             "| " + " | ".join(steps) + " |", "|" + " --- |" * steps.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in steps.to_numpy().tolist()]
    for part in ("inference", "training", "beside a processor"):
        lines += ["", f"**{part.capitalize()}**", "", "| measured | |", "| --- | ---: |"]
        lines += [f"| {key} | {value:.4g} |" for key, value in found[part].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs and writes all of it. SystemExit: there is no GPU."""
    if not torch.cuda.is_available():
        sys.exit("gpu-proof: no GPU is found: run it where `nvidia-smi` lists one.")
    began = time.time()
    with tempfile.TemporaryDirectory() as home:
        found = proof("full", Path(home), PRECISIONS, (128, 128, 100), 4, 8192, 8)
    found["minutes"] = (time.time() - began) / 60
    write_json(ROOT / "results" / "gpu_proof.json", found)
    with replacing(ROOT / "results" / "gpu_proof.md") as part:
        part.write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
