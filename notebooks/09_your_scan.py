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
# # 09 · Your scan, your words
#
# **Question.** What do the baseline and the adapter find in your scan, and what do they make of words that they were not trained on?
#
# **Reproduces.** No table: it applies the models of *T-Gated Adapter* (section 3) and its prompt test (section 4.4) to one scan.
#
# | profile | scan | time, training included |
# |---|---|---|
# | smoke | a tiny phantom | seconds |
# | demo | a phantom, or yours | about 5 minutes on 2 cores, seconds once trained |
# | sample | a slab of a real CT, or yours | about 5 minutes |
# | full | yours | a minute a scan on one T4, once trained |
#
# The demo's models have seen **phantoms alone**: they run on a real scan, but their answer means nothing there. Models of the full
# profile are for research. Nothing here is a medical device.

# %% [markdown] tags=["colab"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/09_your_scan.ipynb) On Colab the next cell fetches the repository and installs what Colab lacks; elsewhere it does nothing.

# %% tags=["colab"]
import os
import runpy
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/REPOSITORY"  # or your fork's, and @branch if not main
ON_DRIVE = False  # True: results on your Google Drive, where the next session takes them up
SETTINGS = {}  # at full size such as {"PROFILE": "full", "DATA_ROOT": "/content/data"}: see data/colab.md

if "google.colab" in sys.modules:
    if not os.path.exists("../tools/colab.py"):
        address, branch = f"{REPOSITORY}@main".split("@")[:2]
        assert "/OWNER/" not in address, "Put your fork's address into REPOSITORY and run this cell again."
        if not os.path.exists(home := os.path.basename(address)):
            subprocess.run(["git", "clone", "--depth=1", "-b", branch, address, home], check=True)
        os.chdir(f"{home}/notebooks")
    runpy.run_path("../tools/colab.py", {"ON_DRIVE": ON_DRIVE, "SETTINGS": SETTINGS}, run_name="colab")

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from lib import clipseg
from lib.config import RUNS as NAMED
from lib.config import settings_of
from lib.data import cases_of
from lib.inference import slice_gates
from lib.organs import KEYS, PROMPTS, labelled
from lib.training import trained
from lib.volumes import read_labels
from lib.windows import WindowSampler, store_window, window_mm
from tools.segment import load_checkpoint, modality_of, read_any, segment_scan, store_of
from tools.viewer import TRUTH, Playground, Scene, Solid, Viewer

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")
TRAIN = True  # False: the scan alone, which needs no trained model
SCAN = ""  # a .nii or .nii.gz file, or a folder of DICOM files; empty: a test scan of the profile
ASK = PROMPTS  # organs or any other text: ("liver", "spleen", "a bright vessel")
RUNS = ("baseline", "adapter")  # names of runs, their folders, or files of weights

# %% [markdown]
# ## A scan
#
# Without a `SCAN` of yours, this is the first scan of the first test set. Its ground truth is known, so false positives can be
# marked. Any orientation and spacing will do: the voxels are turned to one set of axes here, and the masks are turned back.

# %%
settings = settings_of("adapter", PROFILE)
case = None if SCAN else cases_of(settings, settings.test_on[0])[0]
scan = SCAN or case.image
voxels, grid, series = read_any(scan)
spacing = grid.spacing_mm
print(f"{voxels.shape} voxels of {np.round(spacing, 2)} mm, values {voxels.min():.0f} to {voxels.max():.0f}")

# %% [markdown]
# ## Organs by name
#
# Without a scan of yours, models that are not trained yet are trained now. Then one call per model does all: it reads the scan,
# encodes each slice once, asks every prompt, and resizes the probabilities to the scan's own pixels. With `out="a_folder"` it writes
# a label map (NIfTI, and a DICOM segmentation for a DICOM scan), the volumes and a picture.

# %%
if TRAIN and not SCAN:
    for run in RUNS:
        if run in NAMED:
            trained(run, settings_of(run, PROFILE), clipseg.build, WindowSampler, clipseg.losses)
found = {run: segment_scan(scan, ASK, run, profile=PROFILE) for run in RUNS} if TRAIN else {}
last = found[RUNS[-1]] if TRAIN else None
print(last.note if TRAIN else "This notebook needs trained models, so with TRAIN = False it shows the scan alone.")

# %% [markdown]
# What the pictures below show is put together here: the scan, each model's label map, and the ground truth where it is known.

# %%
if TRAIN:
    names = last.names  # {label: prompt}
    labels = {run: one.grid.to_canonical(one.labels) for run, one in found.items()}
    known = ()  # what the ground truth labels: nothing else can be called false
    if case:
        labels = {TRUTH: read_labels(case.labels, case.label_map, grid), **labels}
        known = tuple(label for label, name in names.items() if name in labelled(case.label_map))
    scene = Scene(voxels, spacing, last.modality, names, labels, known)
else:
    empty = np.zeros(voxels.shape, np.uint8)
    scene = Scene(voxels, spacing, modality_of(scan, voxels, series), {}, {"scan": empty})

# %% [markdown]
# A volume is the number of voxels times the size of one, which is the determinant of the affine. An organ that reaches the first or
# the last slice is *cut*: a part of it may lie outside of the scan.

# %%
def volume_ml(labels: np.ndarray) -> dict[str, float]:
    counts = np.bincount(labels.ravel(), minlength=256)
    voxel_ml = abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    return {name: counts[label] * voxel_ml for label, name in scene.names.items()}


if TRAIN:
    volumes = pd.DataFrame({panel: volume_ml(labels) for panel, labels in scene.labels.items()})
    ends = scene.labels[RUNS[-1]][:, :, [0, -1]]
    volumes["cut"] = [bool((ends == label).any()) for label in scene.names]
    display(volumes.round(1))

# %% [markdown]
# In the demo both models make the right kidney too large and the left one too small, and neither finds an adrenal gland or the
# gallbladder. A volume that is right can still lie in the wrong place, so look at the slices.
#
# ## Slice by slice
#
# In a running notebook (JupyterLab, VS Code, Colab) this is a viewer with a slider through the slices, a choice of organs, and the
# grey window. In the printed notebook it is a picture of one slice. The patient's right is on the left and the front is up. What a
# model claims and the ground truth does not have is cyan.

# %%
viewer = Viewer(scene)
viewer

# %% [markdown]
# The viewer opens on a slice that shows most organs. The demo's models see 96 pixels a side.
#
# ## The gate on this slice
#
# The adapter's gate says, for each patch, how much it takes from the neighbouring slices: 0 leaves the centre slice as it is. This is
# its mean over the channels, in colours from the lowest to the highest value in the whole scan.

# %%
if TRAIN:
    model, model_settings = load_checkpoint(RUNS[-1], PROFILE)
    store = store_of(last.grey, grid, last.modality, model_settings)
    gate = slice_gates(model, store, model_settings)  # (Z, side, side)
    z, aspect = viewer.slice.value, spacing[1] / spacing[0]

if TRAIN and gate.size:  # the baseline has none
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    left.imshow(last.grey[:, :, z].T, cmap="gray", aspect=aspect)
    drawn = right.imshow(gate[z], vmin=gate.min(), vmax=gate.max(), aspect=aspect)
    left.set(title=f"slice {z + 1}", xticks=[], yticks=[])
    right.set(title="gate of each patch", xticks=[], yticks=[])
    left.set_xlabel("R  –  L")
    figure.colorbar(drawn, label="gate")
    plt.show()

# %% [markdown]
# In the demo the range is narrow; [03](03_temporal_adapter.ipynb) finds that the gate does not open wider on degraded slices.
#
# ## Words
#
# The slice is encoded once with its neighbours; each prompt then costs the text encoder and the decoder alone. Here are the 13
# trained prompts, and after them a name that is among these, a synonym (*lien*, an anatomist's word for the spleen), a description, a
# Greek name, nonsense, and nothing at all.

# %%
WORDS = ("liver", "lien", "the big organ on the right", "hepar", "a bicycle", "")
if TRAIN:
    window = np.array([store_window(store, z, model_settings)])  # of five slices
    needed, places = np.unique(window, return_inverse=True)
    with torch.inference_mode():
        slices = torch.from_numpy(store.slices(needed)).to(model.mean.device)
        windows = torch.from_numpy(places.reshape(window.shape)).to(slices.device)
        mm = window_mm(store, window).to(slices.device)  # its distances, which some adapters ask for
        encoded, _ = model.adapt(model.encode_slices(slices), windows, mm)
        text = model.encode_text([*PROMPTS, *WORDS])  # (19, J)
        first = torch.zeros(len(text), dtype=torch.long, device=text.device)
        masks = model.decode(encoded, text, first) > 0  # (19, S, S): logits, so 0 is a probability of 0.5

# %% [markdown]
# What is a word taken for? Its text feature has a cosine with that of each trained prompt, and its mask a Dice with each of theirs.

# %%
if TRAIN:
    cosine = torch.cosine_similarity(text[len(KEYS) :, None], text[: len(KEYS)], dim=-1).cpu()  # (6, 13)
    flat = masks.flatten(1).float().cpu()
    both, area = flat[len(KEYS) :] @ flat[: len(KEYS)].T, flat.sum(1)
    dice = (2 * both / (area[len(KEYS) :, None] + area[: len(KEYS)]).clip(1)).numpy()
    columns = {"nearest text": [KEYS[i] for i in cosine.argmax(1)], "cosine": cosine.max(1).values.numpy()}
    columns["nearest mask"] = [KEYS[row.argmax()] if row.max() > 0 else "none" for row in dice]
    columns["Dice"] = dice.max(1)
    display(pd.DataFrame(columns, pd.Index([f"“{word}”" for word in WORDS], name="prompt")).round(2))

# %% [markdown]
# In the demo, *hepar* is taken for the liver, by text and by mask, but *lien* is not taken for the spleen: its nearest text and mask
# are the vena cava's. Some text is always the nearest, and a bicycle and a blank prompt mark something, too, where an empty mask would
# be right. The demo's text encoder is MiniLM, and the decoder has been trained with 13 names; [04](04_ablations.ipynb) measures what
# other words do over all test scans.
#
# Type your own. The bars compare the prompt with the 13 trained ones as the table does; the longest of each has a black edge.

# %%
playground = Playground(model, model_settings, last, z) if TRAIN else None
playground

# %% [markdown]
# ## In three dimensions
#
# Turn the organs with the mouse where ipyniivue and WebGL are there; printed, they are seen from the front, the patient's right on
# the left.

# %%
Solid(scene) if TRAIN else None

# %% [markdown]
# Streaks are slices in which an organ is claimed while its neighbours say nothing of it; [03](03_temporal_adapter.ipynb) counts such
# false slices over all test scans and seeds.
#
# ## With a scan of yours
#
# - Here: set `SCAN` in the parameters cell to a file or a folder, `ASK` to what you look for, and run all cells.
# - From a terminal: `make segment SCAN=ct.nii.gz PROMPTS="liver,spleen" OUT=found`.
# - In a batch: `papermill notebooks/09_your_scan.ipynb mine.ipynb -p SCAN /data/ct.nii.gz -p PROFILE full`, with the full path.
# - With other weights: `RUNS = ("path/to/a/run",)`; one panel or several, up to you.
#
# ## Findings
#
# **What we found.** On the demo's phantom both models find the large organs and miss small ones, one of two foreign names is taken for
# its organ, and nonsense is marked as well. That is one scan: the tables of [03](03_temporal_adapter.ipynb) and
# [04](04_ablations.ipynb) say how often what you see here is so.
