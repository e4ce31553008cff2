"""Sample images for visitors, drawn from the phantoms when the demo starts."""

from pathlib import Path

import numpy as np
import PIL.Image

from dim_hf.data.phantoms import get_phantom, render_phantom

LICENCE = "Synthetic phantoms drawn by this software (Apache-2.0); no patient's data."
_SIZE = 384
_FIRST, _SEED = 900, 7  # far from the images that the shipped models have seen


def draw_pictures(folder: Path, references: Path) -> None:
    """Write fundus phantoms: one of each camera, and one that looks like none of them.

    Args:
        folder: Existing folder, of the pictures.
        references: Existing folder, of their true masks, in the same order: a pixel's value is its class.
    """
    cameras = get_phantom("fundus").domains
    eyes = [(camera, camera, False) for camera in cameras]
    # Green light alone, as red-free photographs have it: no camera of the training gives such.
    for number, (name, camera, is_red_free) in enumerate([*eyes, ("unseen_look", cameras[0], True)]):
        pixels, labels = render_phantom("fundus", domain=camera, index=_FIRST + number, size=_SIZE, seed=_SEED)
        shown = np.repeat(pixels[..., 1:2], 3, axis=2) if is_red_free else pixels
        PIL.Image.fromarray(shown).save(folder / f"fundus_{name}.png", compress_level=3)
        PIL.Image.fromarray(labels).save(references / f"fundus_{name}_reference.png")


def draw_volume(folder: Path, scanner: str = "scanner_a", size: int = 96) -> Path:
    """Write one prostate phantom as NIfTI.

    Args:
        folder: Existing folder.
        scanner: A domain of `phantom:prostate_3d`.
        size: Pixels in the plane; a quarter as many slices.

    Returns:
        The file.
    """
    from dim_hf.data.phantom_prostate import volume_spacing
    from dim_hf.data.volumes.volume import Volume, write_nifti

    path = folder / f"prostate_{scanner}.nii.gz"
    voxels, _ = render_phantom("prostate_3d", domain=scanner, index=_FIRST, size=size, seed=_SEED)
    z, y, x = volume_spacing(scanner, size)
    # Columns run to the patient's left, rows to the back, slices to the head.
    write_nifti(Volume((voxels.T * 1000).astype(np.int16), np.diag([-x, -y, z, 1.0])), path)
    return path
