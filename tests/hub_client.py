"""What a client of the Hub does for `test_data_hub.py`, as a process: `python -m tests.hub_client <folder> <names>`.

Each named function returns facts; all are printed as JSON in the last line.
"""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from click.testing import CliRunner
from PIL import Image

from dim_hf.cli import main
from dim_hf.data.description import DatasetDescription, write_description
from dim_hf.data.hub.load import load_hub_dataset
from dim_hf.data.hub.push import push_dataset
from dim_hf.data.manifest import write_manifest
from dim_hf.data.rows import row_features

DESCRIPTION = DatasetDescription(
    {0: "background", 1: "rim", 2: "cup"},
    {"disc": [1, 2], "cup": [2]},
    num_channels=3,
    label_values={"midss": {"255": 0, "128": 1, "0": 2}},
    splits=["published | by the authors"],
    licence="CC BY 4.0",
    source=["Somebody et al. <2020>, https://example.org/data_set"],
    notes=["cut about the disc"],
)
DOMAINS = ("Site A", "Zürich")


def make_rows(folder):
    """Eight images of 32 pixels in files of two domains, every split, one without a label map."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    table = {c: [] for c in ("image", "label", "domain", "patient", "name", "split", "spacing_mm", "diagnosis")}
    for index in range(8):
        paths = [folder / f"{kind}_{index}.png" for kind in ("image", "mask")]
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(paths[0])
        Image.fromarray(generator.integers(0, 3, (32, 32), dtype=np.uint8)).save(paths[1])
        row = (
            str(paths[0]),
            str(paths[1]) if index != 3 else None,
            DOMAINS[index // 4],
            f"p{index}",
            f"case{index}",
            ["train", "validation", "test", ""][index % 4],
            [0.5, 0.25] if index else None,
            "glaucoma | early" if index % 2 else None,
        )
        for column, value in zip(table, row, strict=True):
            table[column].append(value)
    features = row_features(datasets.Image(), free=["spacing_mm", "diagnosis"])
    return datasets.Dataset.from_dict(table, features=features)


def make_volumes(folder):
    """Two NIfTI volumes with oblique axes, one without a label map."""
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    affine = np.array([[0.0, -2.0, 0.0, 5.0], [1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    for index in range(2):
        voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4) + index
        nibabel.Nifti1Image(voxels, affine).to_filename(folder / f"scan_{index}.nii.gz")
        nibabel.Nifti1Image((voxels % 2).astype(np.uint8), affine).to_filename(folder / f"gland_{index}.nii.gz")
    table = {
        "image": [str(folder / f"scan_{index}.nii.gz") for index in range(2)],
        "label": [str(folder / "gland_0.nii.gz"), None],
        "domain": ["scanner"] * 2,
        "patient": ["", ""],
        "name": ["a", "b"],
        "split": ["", ""],
    }
    return datasets.Dataset.from_dict(table, features=row_features(datasets.Nifti()))


def as_values(row):
    """A row with its images as nested lists, for comparison."""
    return {
        key: np.asanyarray(value.dataobj if hasattr(value, "dataobj") else value).tolist()
        if key in ("image", "label") and value is not None
        else value
        for key, value in row.items()
    }


def by_name(rows):
    return sorted(map(as_values, rows), key=lambda row: (row["domain"], row["name"]))


def error_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (ValueError, ConnectionError) as error:
        return [type(error).__name__, str(error)]
    return ["", "no error"]


def round_trip(folder):
    """Push, load, push again, stream, push fewer, load the first commit."""
    rows = make_rows(folder / "source")
    url = push_dataset(rows, DESCRIPTION, "org/fundus", private=True, progress=False)
    loaded, description = load_hub_dataset("org/fundus")
    streamed = datasets.load_dataset("org/fundus", "Zurich", split="test", streaming=True)
    facts = {
        "url": url,
        "again": push_dataset(rows, DESCRIPTION, "org/fundus", progress=False),
        "rows": by_name(loaded) == by_name(rows),
        "features": loaded.features == rows.features,
        "description": description == DESCRIPTION,
        "mapped": len(loaded.cache_files),
        "plain": len(datasets.load_dataset("org/fundus", "Site_A", split="train")),
        "streamed": [as_values(row) for row in streamed] == [as_values(rows[6])],
    }
    push_dataset(rows.select(range(3)), DESCRIPTION, "org/fundus", progress=False)
    first = url.rsplit("/", 1)[1]
    pinned = [load_hub_dataset(f"org/fundus@{first}"), load_hub_dataset("org/fundus", revision=first)]
    facts["fewer"] = len(load_hub_dataset("org/fundus")[0])
    facts["pinned"] = [by_name(loaded) == by_name(rows) for loaded, _ in pinned]
    return facts


def example(folder):
    """The example on a manifest: the doctor's warnings go into the card, its errors stop the push."""
    command = runpy.run_path("examples/push_dataset.py")["main"]
    rows = make_rows(folder / "example")
    table = {"image": [f"image_{i}.png" for i in range(8)], "label": [f"mask_{i}.png" for i in range(8)]}
    table |= {column: rows[column] for column in ("domain", "patient", "name", "split")}
    write_manifest(table, folder / "example" / "manifest.csv")
    write_description(replace(DESCRIPTION, source=[], licence=""), folder / "example")
    options = [str(folder / "example"), "org/example", "--licence", "my own"]
    facts = {"refused": CliRunner().invoke(command, options).output}
    result = CliRunner().invoke(command, [*options, "--source", "our lab"])
    return facts | {"pushed": result.output, "code": result.exit_code}


def lifecycle(folder):
    """A folder of scans is imported and published by one command, and trained on by its name by another."""
    from tests.test_job import TINY, write_site  # loads torch

    for domain, shift in (("one", 0), ("other", 40)):
        write_site(folder / "scans", domain, 10, shift=shift)
    imported = ["import", "folders", str(folder / "scans"), str(folder / "imported"), "--test-fraction", "0.2"]
    published = ["--licence", "CC0-1.0", "--origin", "drawn by a test", "--push-to-hub", "org/scans", "--no-progress"]
    pushed = CliRunner().invoke(main, [*imported, *published])
    settings = TINY | {"dataset": "org/scans", "hidden_sizes": [4, 8], "output_dir": str(folder / "run")}
    (folder / "job.json").write_text(json.dumps(settings))  # JSON is YAML
    trained = CliRunner().invoke(main, ["train", "--config", str(folder / "job.json")])
    results = folder / "run" / "results.json"
    return {
        "pushed": [pushed.exit_code, pushed.output],
        "trained": [trained.exit_code, trained.output[-2000:], repr(trained.exception)],
        "split": json.loads(results.read_text())["split"] if results.exists() else None,
        "channels": json.loads((folder / "run" / "config.json").read_text())["num_channels"],
    }


def volumes(folder):
    """Push and load NIfTI volumes; files of several shards."""
    rows = make_volumes(folder / "volumes")
    description = DatasetDescription({0: "a", 1: "b"}, {"b": [1]}, spatial_dims=3, licence="mine", source=["here"])
    push_dataset(rows, description, "org/volumes", max_shard_bytes=1, progress=False)
    loaded, _ = load_hub_dataset("org/volumes")
    affines = [image.affine.tolist() for image in (loaded[0]["image"], rows[0]["image"])]
    return {
        "rows": by_name(loaded) == by_name(rows),
        "features": loaded.features == rows.features,
        "affine": affines[0] == affines[1],
        "dtype": str(loaded[0]["image"].get_data_dtype()),
    }


def offline(folder):
    """Without a network: the main branch, a pinned commit, and what was never loaded."""
    pin = (folder / "pin").read_text()
    return {
        "main": len(load_hub_dataset("org/fundus")[0]),
        "pinned": by_name(load_hub_dataset(f"org/fundus@{pin}")[0]) == by_name(make_rows(folder / "source")),
        "never": error_of(load_hub_dataset, "org/other"),
        "push": error_of(push_dataset, make_rows(folder / "source"), DESCRIPTION, "org/fundus", progress=False),
    }


def refused(folder):
    """What the Hub, or this package, does not do."""
    rows = make_rows(folder / "source")

    def push(name, **options):
        return error_of(push_dataset, rows, DESCRIPTION, name, progress=False, **options)

    return {
        "missing": error_of(load_hub_dataset, "org/nothing"),
        "revision": error_of(load_hub_dataset, "org/fundus@0123"),
        "rights": push("other/fundus"),
        "token": push("org/new", token="hf_wrong"),
        "foreign": push("org/foreign"),
        "public": push("org/public", private=True),
        "broken": push("org/broken"),
        "upload": push("org/upload"),
    }


def without_token(folder):
    return {
        "load": error_of(load_hub_dataset, "org/fundus"),
        "push": error_of(push_dataset, make_rows(folder / "source"), DESCRIPTION, "org/fundus", progress=False),
    }


def hostile(folder):
    """Repositories that this package did not write."""
    names = ("paths", "nested", "readme", "outside", "csv", "damaged", "text", "splits", "yaml", "short")
    facts = {name: error_of(load_hub_dataset, f"org/{name}") for name in names}
    rows, description = load_hub_dataset("org/plain")
    facts["plain"] = [description is None, rows.column_names, rows.select_columns(rows.column_names[2:])[:]]
    return facts


if __name__ == "__main__":
    print(json.dumps({name: globals()[name](Path(sys.argv[1])) for name in sys.argv[2:]}))
