"""Small picture trees in the layouts of the field, with contents that tests know."""

import numpy as np
from PIL import Image

SIZE = (60, 80)
"""(height, width) of the pictures."""


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def color(size=SIZE):
    """A picture whose every pixel tells its row and column."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([rows, columns, np.full(size, 7)], axis=-1).astype(np.uint8)


def box(top, left, bottom, right, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


DISC = box(20, 30, 40, 46)
CUP = box(26, 34, 44, 40)  # four rows of it lie outside the disc
CLASSES = np.where(DISC, np.where(CUP, 2, 1), 0)


def midss_fundus(root, domains=("Domain1", "Domain2"), grey=()):
    names = {"Domain1": ("gdrishtiGS_002", "ndrishtiGS_001"), "Domain2": ("G-10-L", "N-3-R")}
    mask = np.array([255, 128, 0], dtype=np.uint8)[CLASSES]
    for domain in domains:
        for split, name in zip(("train", "test"), names.get(domain, ("a", "b")), strict=True):
            folder = root / domain / split / "ROIs"
            save(folder / "image" / f"{name}.png", color())
            save(folder / "mask" / f"{name}.png", mask if domain in grey else np.dstack([mask] * 3))
    return root


def midss_prostate(root, sites=("HK", "UCL")):
    for site in sites:
        for split in ("train", "test"):
            for index in (0, 12):
                folder = root / site / split
                save(folder / "image" / f"00_{index:02d}.png", color()[..., 0])
                save(folder / "mask" / f"00_{index:02d}.png", np.where(DISC, 0, 255).astype(np.uint8))
    return root


def soft_map(mask):
    """Three of four experts mark one pixel more on each side."""
    soft = np.zeros(mask.shape, dtype=np.uint8)
    rows, columns = np.nonzero(mask)
    soft[rows.min() - 1 : rows.max() + 2, columns.min() - 1 : columns.max() + 2] = 191
    soft[mask] = 255
    return soft


def drishti_reference(root, split, name):
    folder = root / split / ("GT" if split == "Training" else "Test_GT") / name / "SoftMap"
    save(folder / f"{name}_ODsegSoftmap.png", soft_map(DISC))
    save(folder / f"{name}_cupsegSoftmap.png", soft_map(CUP))


def drishti(root, folders=("ALL", "ALL")):
    """Two images, the first for training; both with a reference."""
    for split, folder, name in zip(("Training", "Test"), folders, ("drishtiGS_002", "drishtiGS_001"), strict=True):
        save(root / split / "Images" / folder / f"{name}.png", color())
        drishti_reference(root, split, name)
    return root


RIMONE = {
    "r1_Im001": ("normal", "train"),
    "r2_Im002": ("glaucoma", "test"),
    "r3_N-81-L_left_half": ("normal", "train"),
    "r3_G-3-R_left_half": ("glaucoma", "test"),
}
_RIMONE_SETS = {"train": "training_set", "test": "test_set"}


def rimone(root, partitions=("randomly",), flat=False):
    for name, (diagnosis, split) in RIMONE.items():
        reference = root / "RIM-ONE_DL_reference_segmentations" / diagnosis
        for part, mask in (("Disc", DISC), ("Cup", CUP)):
            save(reference / f"{name}-1-{part}-T.png", mask.astype(np.uint8) * 255)
            (reference / f"{name}-1-{part}-T.txt").write_text("contour")
        for partition in partitions:
            # By hospital, every image is in the other part.
            part = split if partition == "randomly" else {"train": "test", "test": "train"}[split]
            folder = root / "RIM-ONE_DL_images" / f"partitioned_{partition}" / _RIMONE_SETS[part] / diagnosis
            if flat:
                folder = root / f"partitioned_{partition}" / "images" / part
            save(folder / f"{name}.png", color())
    return root


def plain(root, masks, suffix=".png", domain="site"):
    """One domain; `masks` maps a stem to the mask's values, or to None for an image without a mask."""
    for name, values in masks.items():
        size = (4, 6) if values is None else np.asarray(values).shape
        save(root / domain / "images" / f"{name}.png", color(size))
        if values is not None:
            save(root / domain / "masks" / f"{name}{suffix}", np.asarray(values, dtype=np.uint8))
    return root
