"""Draws a phantom of four cameras, spoils a few files in the usual ways, and lets the doctor find them.

python examples/doctor_demo.py --output_dir runs/doctor
"""

import shutil
from pathlib import Path

import click
import numpy as np
import PIL.Image


def write_pictures(folder: Path, images_per_domain: int, size: int, seed: int) -> None:
    """Write the phantom as `<domain>/{train,test}/{image,mask}/<name>.png`, 0..2 in the masks."""
    from dim_hf.data.phantoms import make_phantom

    for index, row in enumerate(make_phantom("fundus", images_per_domain=images_per_domain, size=size, seed=seed)):
        split = "test" if index % 4 == 3 else "train"
        for column, part in (("image", "image"), ("label", "mask")):
            path = folder / row["domain"] / split / part / f"{row['name']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.asarray(row[column], dtype=np.uint8)).save(path)


def spoil(folder: Path) -> None:
    """Flip two masks of one camera, copy a training image to the test ones, and break files of others."""
    masks = sorted(folder.glob("camera_a/train/mask/*.png"))
    for path in masks[:2]:
        PIL.Image.open(path).transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    source = sorted(folder.glob("camera_b/train/image/*.png"))[0]
    shutil.copyfile(source, folder / "camera_b" / "test" / "image" / "copy of a friend.png")
    truncated = sorted(folder.glob("camera_c/train/image/*.png"))[0]
    truncated.write_bytes(truncated.read_bytes()[:400])
    wide = sorted(folder.glob("camera_d/train/mask/*.png"))[0]
    PIL.Image.fromarray(np.asarray(PIL.Image.open(wide)) * 127).save(wide)
    black = sorted(folder.glob("camera_d/test/image/*.png"))[0]
    PIL.Image.fromarray(np.zeros_like(np.asarray(PIL.Image.open(black)))).save(black)


@click.command()
@click.option("--output_dir", type=click.Path(path_type=Path), default="runs/doctor", show_default=True)
@click.option("--images_per_domain", default=24, show_default=True)
@click.option("--size", default=128, show_default=True)
def main(output_dir: Path, images_per_domain: int, size: int) -> None:
    """Write the spoiled phantom and the doctor's report on it."""
    from dim_hf.data.doctor.diagnosis import examine
    from dim_hf.data.doctor.report import write_report
    from dim_hf.data.doctor.text import format_text
    from dim_hf.data.sources import load_source

    if (output_dir / "data").exists():
        raise click.ClickException(f"{output_dir / 'data'} is there already; choose another --output_dir")
    write_pictures(output_dir / "data", images_per_domain, size, seed=0)
    spoil(output_dir / "data")
    source = load_source(
        str(output_dir / "data"),
        class_names=["background", "rim", "cup"],
        structures={"disc": [1, 2], "cup": [2]},
    )
    diagnosis = examine(source.rows, source.description)
    write_report(diagnosis, source.rows, output_dir / "report.html", str(output_dir / "data"))
    click.echo(format_text(diagnosis, str(output_dir / "data")))
    click.echo(f"\nReport: {output_dir / 'report.html'}")


if __name__ == "__main__":
    main()
