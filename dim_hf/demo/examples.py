"""Sample images for visitors, drawn from the phantoms when the demo starts."""

from pathlib import Path

import numpy as np
import PIL.Image

from dim_hf.data.phantoms import get_phantom, render_phantom

LICENCE = "Synthetic phantoms drawn by this software (Apache-2.0); no patient's data."
_SIZE = 384
_FIRST, _SEED = 900, 7  # far from the images that the shipped models have seen


def draw_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Write one fundus phantom of each camera.

    Args:
        folder: Existing folder.

    Returns:
        Files and their captions.
    """
    drawn = []
    for number, camera in enumerate(get_phantom("fundus").domains):
        path = folder / f"fundus_{camera}.png"
        pixels, _ = render_phantom("fundus", domain=camera, index=_FIRST + number, size=_SIZE, seed=_SEED)
        PIL.Image.fromarray(pixels).save(path, compress_level=3)
        drawn.append((path, camera.replace("_", " ").capitalize()))
    return drawn


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


def draw_references(folder: Path) -> list[Path]:
    """Write the true mask of each picture of `draw_pictures`, in its order: a pixel's value is its class.

    Args:
        folder: Existing folder.
    """
    drawn = []
    for number, camera in enumerate(get_phantom("fundus").domains):
        path = folder / f"fundus_{camera}_reference.png"
        _, labels = render_phantom("fundus", domain=camera, index=_FIRST + number, size=_SIZE, seed=_SEED)
        PIL.Image.fromarray(labels.astype(np.uint8)).save(path)
        drawn.append(path)
    return drawn
