"""What the papers print, as data: T-Gated's Tables 1 to 5 and Med-VLM's 2 to 4, by our names of organs, runs, data sets and conditions."""

NAN = float("nan")  # the paper does not say

# Table 1: how often an organ is drawn for training
TGATED_TABLE1 = {
    "right adrenal gland": 8.0,
    "left adrenal gland": 8.0,
    "duodenum": 8.0,
    "esophagus": 8.0,
    "pancreas": 2.0,
    "stomach": 2.0,
    "gallbladder": 2.0,
    "liver": 1.0,
    "spleen": 1.0,
    "right kidney": 1.0,
    "left kidney": 1.0,
    "aorta": 1.0,
    "inferior vena cava": 1.0,
}

# Table 2: mean Dice of the baseline and of the adapter, and the gain as the text prints it (0.704 - 0.497 is 0.207)
TGATED_TABLE2 = {"FLARE22": (0.497, 0.704, 0.206), "BTCV": (0.334, 0.544, 0.210), "AMOS22 CT": (0.283, 0.513, 0.230)}
# and the mean over the two other sites of the share of the Dice on FLARE22 that is lost there
TGATED_DROP = {"baseline": 0.380, "adapter": 0.249}

# Table 3: Dice of the baseline, of the adapter, and their difference, in the order of the paper's rows
TGATED_TABLE3 = {
    "liver": (0.911, 0.960, 0.049),
    "spleen": (0.691, 0.919, 0.228),
    "pancreas": (0.243, 0.647, 0.404),
    "stomach": (0.581, 0.849, 0.268),
    "aorta": (0.706, 0.877, 0.171),
    "gallbladder": (0.442, 0.715, 0.273),
    "esophagus": (0.524, 0.381, -0.143),
    "duodenum": (0.304, 0.494, 0.190),
    "right adrenal gland": (0.238, 0.380, 0.142),
    "left adrenal gland": (0.311, 0.396, 0.085),
    "inferior vena cava": (0.572, 0.767, 0.195),
    "right kidney": (0.499, 0.836, 0.337),
    "left kidney": (0.731, 0.925, 0.194),
}
TGATED_TABLE3_MEAN = (0.497, 0.704, 0.206)  # as printed and there called volume-weighted; the rows average 0.519, 0.704, 0.184

# Table 4 and its text, by condition of the prompts: the adapter's mean Dice, its change in %, organs at exactly 0 and below 0.001
TGATED_TABLE4 = {"": (0.704, NAN, NAN, NAN), "blank": (0.005, -99.3, 10, NAN), "wrong organ": (0.011, -98.4, NAN, 11)}

# Table 5: mean Dice on AMOS22 MRI
TGATED_TABLE5 = {"dynunet": 0.224, "adapter": 0.366}

# Med-VLM's Table 1 is DESCRIPTIONS in lib/organs.py. Table 2: trainable, frozen and all parameters, in millions
MEDVLM_TABLE2 = {"med-vlm large": (53, 194, 247), "med-vlm small": (2.9, 28, 31), "unet": (7.7, 0, 7.7)}

# Table 3: best mean Dice over epochs, training and validation. The text gives Large 0.58, which the table has for Small's training
MEDVLM_TABLE3 = {"med-vlm large": (0.56, 0.37), "med-vlm small": (0.58, 0.34), "unet": (0.38, 0.24)}
MEDVLM_UNETR = 0.97  # Dice of each of the two organs, cited from UNETR's own paper (section 3.2)

# Table 4, which has one row for Large and Small; the last three from sections 3.3 to 3.5
_MEDVLM_SETUP = {
    "input": "Text + CT slice",
    "pretrained": "Yes",
    "task": "Single-organ",
    "loss": "BCE + Dice",
    "mask type": "Binary",
    "duplicate slices": "Yes",
    "epochs": "about 10",
    "learning rate": "0.0001",
    "flips and turns": "Yes",
}
MEDVLM_TABLE4 = {
    "med-vlm large": _MEDVLM_SETUP,
    "med-vlm small": _MEDVLM_SETUP,
    "unet": _MEDVLM_SETUP
    | {
        "input": "CT slice only",
        "pretrained": "No",
        "task": "Multi-organ",
        "loss": "CE + Dice",
        "mask type": "Non-binary",
        "duplicate slices": "No",
        "epochs": "50",
    },
}
