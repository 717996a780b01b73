# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · What stands in for pretrained weights
#
# **Question.** The papers start from CLIPSeg and from a ViT that have seen millions of pictures. What does a small model
# start from that may download nothing?
#
# **Reproduces.** Nothing in the papers. It makes the weights that every small model of notebooks 02 to 07 starts from.
#
# | profile | what happens | time |
# |---|---|---|
# | smoke | three steps for each stand-in | seconds |
# | demo, sample | four short trainings on 30 phantoms of a site of their own | a few minutes on 2 cores |
# | full | nothing: the weights come from the hub | none |
#
# All runs start from the same stand-ins, and the stand-ins never see a scan that a run trains or is tested on. They are
# weak: thirty phantoms are no substitute for CLIP, and no number of the demo profile can be read as CLIPSeg's.

# %% [markdown] tags=["colab"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/00_stand_in.ipynb) On Colab the next cell fetches the repository and installs what Colab lacks; elsewhere it does nothing.

# %% tags=["colab"]
import os
import runpy
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/REPOSITORY"  # or your fork's, and @branch if not main
ON_DRIVE = False  # True: results on your Google Drive, where the next session takes them up

if "google.colab" in sys.modules:
    if not os.path.exists("../tools/colab.py"):
        address, branch = f"{REPOSITORY}@main".split("@")[:2]
        assert "/OWNER/" not in address, "Put your fork's address into REPOSITORY and run this cell again."
        if not os.path.exists(home := os.path.basename(address)):
            subprocess.run(["git", "clone", "--depth=1", "-b", branch, address, home], check=True)
        os.chdir(f"{home}/notebooks")
    runpy.run_path("../tools/colab.py", {"ON_DRIVE": ON_DRIVE}, run_name="colab")

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from lib import clipseg, figures, med_vlm
from lib.clipseg import load_start
from lib.config import FULL_SIZE, settings_of
from lib.data import stores_of
from lib.organs import PROMPTS
from lib.training import trained
from lib.windows import SliceSampler, WindowSampler

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")
TRAIN = True  # False: show the tasks on untrained models, and train nothing

# %%
SMALL = PROFILE not in FULL_SIZE
print("Stand-ins are made here." if SMALL else "The weights come from the hub: nothing to do.")

# %% [markdown]
# ## First task, as CLIP: match patches with prompts
#
# The vision encoder turns a slice into patches $v_\ell$, the text encoder a prompt into a vector $t_p$. Both are
# normalised, and their scaled cosine, less an offset, says whether patch $\ell$ shows the organ of prompt $p$:
#
# $$z_{\ell p} = e^{\tau}\,\frac{v_\ell \cdot t_p}{\lVert v_\ell\rVert\,\lVert t_p\rVert} - 4.$$
#
# The target is the share $y_{\ell p}$ of the patch's pixels that show the organ, and the loss is the binary cross-entropy
# between $\sigma(z_{\ell p})$ and $y_{\ell p}$. A batch holds slices of clean phantoms, each asked for all 13 organs.

# %%
if SMALL:
    match = settings_of("encoders", PROFILE)
    sampler = WindowSampler(stores_of(match, "training"), match)
    model, batch = clipseg.build(match), sampler[0]
    z, _ = model(batch, list(PROMPTS))  # (N, side, side)
    y = F.adaptive_avg_pool2d(batch.masks, z.shape[1:])  # (N, side, side): shares of the patches
    loss = F.binary_cross_entropy_with_logits(z, y)
    by_lib = clipseg.losses(model, batch, match, 0.0)["loss"]
    print("slices", tuple(batch.slices.shape), "| logits", tuple(z.shape))
    print(f"loss of the untrained encoders {loss:.4f}, by lib {by_lib:.4f}")

# %% [markdown]
# One slice of the batch, and its targets for the four organs that fill most of it. A patch is all that the encoders are
# asked about: they learn where an organ is, not how to draw its outline.

# %%
if SMALL:
    figures.theme()
    fullest = torch.bincount(batch.centre, y.sum((1, 2))).argmax()
    amount = y.sum((1, 2)) * (batch.centre == fullest)
    page, axes = plt.subplots(1, 5, figsize=(7.5, 1.8))
    axes[0].imshow(batch.slices[batch.windows[fullest, 0]], cmap="gray", vmin=0, vmax=255)
    axes[0].set(title="slice", xticks=[], yticks=[])
    for axis, sample in zip(axes[1:], amount.argsort(descending=True), strict=False):
        axis.imshow(y[sample], cmap="viridis", vmin=0, vmax=1)
        axis.set(title=PROMPTS[batch.prompt[sample]], xticks=[], yticks=[])
    caption = "A slice, and the share of each patch that shows the organ (yellow: all of it)."
    figures.save(page, "stand_in_patches", caption, PROFILE)

# %% [markdown]
# The training itself is the loop of notebook 02, with this loss. It keeps the weights of the last step.

# %%
if SMALL and TRAIN:
    encoders = trained("encoders", match, clipseg.build, WindowSampler, clipseg.losses).cpu()
    after = clipseg.losses(encoders, batch, match, 0.0)["loss"]
    print(f"loss on this batch: {loss:.4f} before, {after:.4f} after {len(sampler)} steps")

# %% [markdown]
# ## Second task, as CLIPSeg: a decoder learns to draw
#
# CLIPSeg's authors froze CLIP and trained a decoder on photographs. Here the decoder learns on the same phantoms, on top of
# the encoders that the first task has left, which stay frozen. The loss is that of notebook 02: binary cross-entropy and
# soft Dice in equal parts.

# %%
if SMALL:
    draw = settings_of("pretraining", PROFILE)
    model = load_start(clipseg.build(draw), draw) if TRAIN else clipseg.build(draw)
    batch = WindowSampler(stores_of(draw, "training"), draw)[0]
    parts = clipseg.losses(model, batch, draw, 0.0)
    print({name: round(value.item(), 4) for name, value in parts.items()})

# %%
# NBVAL_CHECK_OUTPUT
if SMALL:
    parts["loss"].backward()
    names = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    print("gradients reach the decoder alone:", all(".decoder." in name for name in names))

# %%
if SMALL and TRAIN:
    decoder = trained("pretraining", draw, clipseg.build, WindowSampler, clipseg.losses).cpu()
    after = clipseg.losses(decoder, batch, draw, 0.0)["loss"]
    print(f"loss on this batch: {parts['loss']:.4f} before, {after:.4f} after training")

# %% [markdown]
# ## For Med-VLM: which organ does a patch show?
#
# Med-VLM starts from a ViT that was trained on ImageNet. Its stand-in classifies each patch: the target is the share of
# each organ, and of the background, among the patch's pixels, and the loss is the cross-entropy.

# %%
if SMALL:
    tissues = settings_of("vit small", PROFILE)
    slices = SliceSampler(stores_of(tissues, "training"), tissues)[0]
    vit = med_vlm.build_patch_classifier(tissues)
    logits = vit(slices.image)  # (B, 14, side, side)
    shares = F.one_hot(slices.labels.long(), 14).movedim(-1, 1).float()
    loss = F.cross_entropy(logits, F.adaptive_avg_pool2d(shares, logits.shape[2:]))
    print(
        "images", tuple(slices.image.shape), "| logits", tuple(logits.shape), f"| loss {loss:.4f}"
    )

# %%
if SMALL and TRAIN:
    build, losses = med_vlm.build_patch_classifier, med_vlm.patch_losses
    for name in ("vit large", "vit small"):
        vit = trained(name, settings_of(name, PROFILE), build, SliceSampler, losses).cpu()
    after = losses(vit, slices, tissues, 0.0)["loss"]
    print(f"vit small, loss on this batch: {loss:.4f} before, {after:.4f} after training")

# %% [markdown]
# **What we found.** The tasks are small enough for minutes of two cores. They teach how organs look in phantoms, and the
# small runs are trained and tested on phantoms, too: how far such weights help on real scans is not shown here.
