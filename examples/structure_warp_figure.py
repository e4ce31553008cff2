"""What `structure_warp_probability` does: phantom images, and the same with cups of other sizes and places.

python examples/structure_warp_figure.py examples/figures/structure_warp.png
"""

from pathlib import Path

import click
import numpy as np
import torch

SIZE, ROWS, COLUMNS = 160, 2, 6
SHOWN = slice(30, 130)  # of each side, about the disc
OUTER, INNER = (1, 2), (2,)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
def main(file: str) -> None:
    """Draw FILE: in each row an image, then what becomes of it; the cup's border in white, the disc's in black."""
    import matplotlib.pyplot as plt

    from dim_hf.augmentations.seeds import sample_seeds
    from dim_hf.augmentations.structures import StructureWarp
    from dim_hf.data.phantoms import render_phantom

    warp = StructureWarp(probability=1.0)
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(1.5 * COLUMNS, 1.5 * ROWS), squeeze=False)
    for row in range(ROWS):
        pixels, labels = render_phantom("fundus", domain="camera_a", index=row, size=SIZE, seed=7)
        image = torch.from_numpy(pixels.astype(np.float32) / 255).movedim(-1, 0).expand(COLUMNS, -1, -1, -1)
        masks = torch.from_numpy(labels.astype(np.int64)).expand(COLUMNS, -1, -1)
        draws = warp.draw(sample_seeds(row, "figure", range(COLUMNS)))
        draws.warped[0] = False
        images, masks = warp.apply(image.contiguous(), masks.contiguous(), draws, OUTER, INNER)
        for axis, one, mask in zip(axes[row], images, masks, strict=True):
            axis.imshow(one.movedim(0, -1)[SHOWN, SHOWN].numpy())
            axis.contour(mask[SHOWN, SHOWN].numpy() > 0, [0.5], colors="black", linewidths=1)
            axis.contour(mask[SHOWN, SHOWN].numpy() == INNER[0], [0.5], colors="white", linewidths=1)
            axis.set_axis_off()
    axes[0, 0].set_title("as it is", fontsize=9)
    axes[0, 1].set_title("drawn anew", fontsize=9)
    figure.tight_layout(pad=0.3)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=70)


if __name__ == "__main__":
    main()
