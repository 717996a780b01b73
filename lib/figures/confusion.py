"""What a prompt claims: of the adapter's voxels for each prompt, the share in each organ of the truth."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.organs import BY_KEY, KEYS
from lib.profiles import settings_of

from .extracts import read_extract, scans, write_extract
from .pages import STYLE, new_page

COLUMNS = [*KEYS, "background"]


def claimed_voxels(claims: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(13, 14) voxels that the prompt of row i claims and that lie in organ j of the truth, the last column being the background.

    claims, truth: equal shapes, bit p for ORGANS[p]; prompts may share a voxel, organs of the truth do not.
    """
    organ = np.where(truth > 0, np.log2(np.maximum(truth, 1)).astype(int), len(KEYS))
    return np.array([np.bincount(organ[claims >> place & 1 > 0], minlength=len(COLUMNS)) for place in range(len(KEYS))])


def extract_confusion(profile: str) -> None:
    """confusion.csv: a row for each prompt, a column for each organ of the truth and the background; voxels over the first test set."""
    total, dataset = np.zeros((len(KEYS), len(COLUMNS)), int), settings_of("adapter", profile).test_on[0]
    for _, _, claims in scans(profile, [dataset]):
        if "adapter" in claims:
            total += claimed_voxels(claims["adapter"], claims["truth"])
    table = pd.DataFrame(total, columns=COLUMNS).assign(prompt=KEYS, dataset=dataset)[["dataset", "prompt", *COLUMNS]]
    write_extract(table if total.any() else table.iloc[:0], profile, "confusion.csv")


@mpl.rc_context(STYLE)
def confusion(profile: str) -> Figure:
    """Prompt by organ: the share of a prompt's voxels that lies in each organ; each row adds up to 1."""
    table = read_extract(profile, "confusion.csv", "the adapter")
    voxels = table.set_index("prompt")[COLUMNS]
    share = voxels.div(voxels.sum(axis=1).where(lambda total: total > 0), axis=0)
    caption = (
        f"What the adapter's prompts claim on the test scans of {table['dataset'].iat[0]}, all voxels together: of the voxels that the "
    )
    caption += "prompt of a row claims, the share that lies in the organ of a column. A row adds up to 1; shares under 0.01 stay blank."
    figure = new_page(profile, caption, 4.9)
    axis = figure.add_subplot()
    image = axis.imshow(share, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(share.to_numpy()):
        if value >= 0.01:
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black")
    names = [BY_KEY[key].short for key in KEYS]
    rows = [name if total else f"{name} (no claim)" for name, total in zip(names, voxels.sum(axis=1), strict=True)]
    axis.set_xticks(range(len(COLUMNS)), [*names, "Background"], rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(KEYS)), rows)
    axis.set(xlabel="truth", ylabel="prompt")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.colorbar(image, label="share of the prompt's voxels", pad=0.02)
    return figure
