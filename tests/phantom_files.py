"""A small data set with a fixed order of labeling, on disk: three cameras of the fundus phantom."""

from PIL import Image

from dim_hf.data.description import DatasetDescription, write_description
from dim_hf.data.manifest import write_manifest
from dim_hf.data.phantoms import PHANTOMS, render_phantom


def columns(images=12, tests=2):
    rows = [(d, index) for d in ("camera_a", "camera_b", "camera_c") for index in range(images)]
    return {
        "image": [f"{d}/{index}.png" for d, index in rows],
        "label": [f"{d}/{index}_mask.png" for d, index in rows],
        "domain": [d for d, _ in rows],
        "patient": [str(index) for _, index in rows],
        "name": [str(index) for _, index in rows],
        "split": ["test" if index < tests else "train" for _, index in rows],
        "labeled_order": [None if index < tests else index - tests for _, index in rows],
    }


def write_images(folder, table, size=32):
    """The images of a table of phantoms, their manifest and what they mean."""
    for index, (image, label, domain) in enumerate(zip(table["image"], table["label"], table["domain"], strict=True)):
        pixels, mask = render_phantom("fundus", domain=domain, index=index, size=size, seed=0)
        (folder / domain).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / image)
        Image.fromarray(mask).save(folder / label)
    write_manifest(table, folder / "manifest.csv")
    phantom = PHANTOMS["fundus"]
    write_description(DatasetDescription(phantom.id2label, phantom.structures, 3), folder)
