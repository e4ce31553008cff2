"""Prostate phantom: axial T2-weighted pelvis, as neighbouring slices of a patient or as a volume, on six scanners.

Coordinates are millimetres from the centre of the gland: z to the head, y to the back, x to the side. Signals are
relative: about 0 for air and gas, 1 for urine.
"""

import math
from dataclasses import dataclass

import numpy as np

from .phantom_fields import Array, ellipsoid, generator_for, inside, noise_field, octaves, paint

SLICES_PER_PATIENT = 4
SLICE_SPACING_MM = 3.5
VOLUME_HEIGHT_MM = 62.0
# Half the edge of the cube on which the random fields of a patient are laid out.
_FIELD_MM = 130.0

_MUSCLE, _MARROW, _CORTEX, _WALL, _URINE = 0.17, 0.46, 0.06, 0.24, 0.96


@dataclass(frozen=True)
class Scanner:
    """What one scanner and its sequence do to the signal; the defaults are a clean 3 T scanner with surface coils.

    Args:
        fov_mm: edge of the field of view.
        gamma: exponent on the signal, a stand-in for echo time; above 1 darkens the mid-tones.
        fat: factor on the signal of fat, below 1 with fat suppression.
        zonal_contrast: factor on the difference between peripheral and central zone.
        gland: factor on the signal of the whole gland.
        bias: strength of the smooth multiplicative field.
        coil: brightness towards the coil, relative to the far side; 0 for none.
        endorectal: the coil is a balloon in the rectum, otherwise it lies on the belly.
        blur_mm: standard deviation of the in-plane point spread.
        noise: standard deviation of the noise in each of the two receiver channels.
    """

    fov_mm: float = 164.0
    gamma: float = 1.0
    fat: float = 1.0
    zonal_contrast: float = 1.0
    gland: float = 1.0
    bias: float = 0.06
    coil: float = 0.15
    endorectal: bool = False
    blur_mm: float = 0.5
    noise: float = 0.02


SCANNERS: dict[str, Scanner] = {
    "scanner_a": Scanner(),
    "scanner_b": Scanner(fov_mm=150.0, coil=1.35, endorectal=True, bias=0.08, noise=0.03),
    "scanner_c": Scanner(fov_mm=174.0, blur_mm=1.4, noise=0.07, zonal_contrast=0.7, gamma=0.9),
    "scanner_d": Scanner(fov_mm=164.0, gamma=1.35, fat=0.66, bias=0.12, noise=0.03),
    "scanner_e": Scanner(fov_mm=180.0, gamma=0.73, bias=0.15, coil=0.45, zonal_contrast=0.8, noise=0.025),
    "scanner_f": Scanner(fov_mm=172.0, gland=0.75, fat=0.85, blur_mm=1.0, bias=0.12, noise=0.045, gamma=1.15),
}


@dataclass(frozen=True)
class Pelvis:
    """Measures of one patient, in millimetres unless said otherwise.

    Args:
        gland: (half length, half depth, half width) of the gland.
        central: size of the central zone relative to the gland; grows with benign hyperplasia.
        hollow: depth of the posterior midline groove of the gland.
        rectum: (radius, wall) of the rectum.
        lumen: signal of the rectal content.
        bladder: height of the lowest point of the bladder above the gland's centre.
        build: scale of skeleton and muscles about 1.
        subcutaneous: added thickness of fat under the skin.
        nodules: (n, 6) rows z, y, x, radius, signal, rim of the nodules of the central zone.
        lesion: (z, y, x, radius) of a dark lesion in the peripheral zone; radius 0 for none.
        first_slice: height of the lowest 2D slice.
        shift: (y, x) of the gland against the centre of the field of view.
    """

    gland: tuple[float, float, float]
    central: float
    hollow: float
    rectum: tuple[float, float]
    lumen: float
    bladder: float
    build: float
    subcutaneous: float
    nodules: Array
    lesion: tuple[float, float, float, float]
    first_slice: float
    shift: tuple[float, float]


def sample_pelvis(generator: np.random.Generator, endorectal: bool) -> Pelvis:
    """Draw one patient; an endorectal balloon widens the rectum and flattens the gland."""
    draw = generator.uniform
    growth = draw(0.0, 1.0)
    length, depth, width = draw(17, 20) + 5 * growth, draw(13, 16) + 5 * growth, draw(21, 24) + 5 * growth
    if endorectal:
        depth *= 0.88
    central = 0.58 + 0.22 * growth
    count = 7
    spread = np.array([length, 0.9 * depth, width]) * central
    nodules = np.concatenate(
        [
            draw(-0.7, 0.7, (count, 3)) * spread - np.array([0, 0.14 * depth, 0]),
            draw(2.5, 6.5, (count, 1)) * (0.6 + 0.5 * growth),
            draw(0.18, 0.62, (count, 1)),
            draw(0.4, 1.0, (count, 1)),
        ],
        axis=1,
    ).astype(np.float32)
    angle = draw(0.35, 1.2) * (1 if generator.random() < 0.5 else -1)
    radius = draw(3, 6) if generator.random() < 0.4 else 0.0
    return Pelvis(
        gland=(length, depth, width),
        central=central,
        hollow=draw(1.0, 3.5),
        rectum=(draw(20, 23), 2.5) if endorectal else (draw(11, 16), draw(3.0, 4.5)),
        lumen=0.02 if endorectal or generator.random() < 0.5 else draw(0.25, 0.5),
        bladder=draw(2.0, 12.0),
        build=draw(0.94, 1.06),
        subcutaneous=draw(0, 12),
        nodules=nodules,
        lesion=(draw(-8, 8), 0.78 * depth * math.cos(angle), 0.78 * width * math.sin(angle), radius),
        first_slice=draw(-0.7 * length, 0.7 * length - (SLICES_PER_PATIENT - 1) * SLICE_SPACING_MM),
        shift=(draw(-9, 2), draw(-6, 6)),
    )


@dataclass(frozen=True)
class Grid:
    """Sampling positions of one image, and the patient's own bent coordinates on them.

    Args:
        axes: positions z (D,), y (H,), x (W,) in millimetres.
        z: (D, 1, 1).
        y: (D, H, W) after the patient's deformation.
        x: (D, H, W) after the patient's deformation.
    """

    axes: tuple[Array, Array, Array]
    z: Array
    y: Array
    x: Array

    @property
    def unit(self) -> list[Array]:
        """The axes in [0, 1] over the cube of the random fields."""
        return [axis / (2 * _FIELD_MM) + 0.5 for axis in self.axes]


def bend(generator: np.random.Generator, z: Array, y: Array, x: Array) -> Grid:
    """Grid on the positions (D,), (H,), (W,), deformed by smooth displacements of a few millimetres."""
    axes = (z.astype(np.float32), y.astype(np.float32), x.astype(np.float32))
    unit = [axis / (2 * _FIELD_MM) + 0.5 for axis in axes]
    dy, dx = (2.2 * noise_field(generator, (5, 7, 7), unit) for _ in range(2))
    return Grid(axes, axes[0][:, None, None], axes[1][None, :, None] + dy, axes[2][None, None, :] + dx)


def gland_distance(pelvis: Pelvis, grid: Grid) -> Array:
    """Distance to the surface of the gland in millimetres, negative inside, (D, H, W)."""
    length, depth, width = pelvis.gland
    groove = pelvis.hollow * np.exp(-((grid.x / 9) ** 2)) * np.clip(grid.y / depth, 0, 1)
    # Broad at the back, narrow at the front and at the apex.
    side = width * (1 + 0.12 * np.tanh(grid.y / 10) + 0.06 * np.tanh(grid.z / 12))
    return ellipsoid((grid.z, grid.y + groove, grid.x), (length, depth, side))


def _frame(generator: np.random.Generator, pelvis: Pelvis, grid: Grid, fat: float) -> Array:
    """Skin, fat, bones and muscles: signal (D, H, W)."""
    z, y, side = grid.z / pelvis.build, grid.y / pelvis.build, np.abs(grid.x) / pelvis.build
    texture = octaves(generator, (8, 24, 24), grid.unit, 3, persistence=0.8)
    streaks = noise_field(generator, (8, 60, 14), grid.unit)
    lobules = fat * (1 + 0.07 * texture)
    image = np.zeros(y.shape, dtype=np.float32)
    skin = ellipsoid((y - 4, side), (80 + pelvis.subcutaneous, 150 + pelvis.subcutaneous))
    paint(image, inside(skin, 1.5), 0.35)
    paint(image, inside(skin + 2.5, 1.5), lobules)
    # Fascia and vessels in the fat: thin dark sheets where a smooth field crosses zero.
    image *= 1 - 0.35 * np.exp(-((streaks / 0.07) ** 2)) * (skin < -4)
    muscle = _MUSCLE * (1 + 0.18 * streaks + 0.1 * texture)
    muscles = (
        # centre (y, side), radii (y, side), shear of side along y
        ((4, 50), (34, 8), -0.14),  # obturator internus
        ((-49, 55), (12, 25), 0.25),  # obturator externus and pectineus
        ((-69, 26), (6, 25), 0.0),  # rectus abdominis
        ((59, 57), (15, 45), 0.55),  # gluteus maximus
        ((-40, 100), (24, 22), 0.0),  # iliopsoas, sartorius
        ((32, 88), (20, 18), 0.0),  # quadratus femoris, gemelli
    )
    for (cy, cx), radii, shear in muscles:
        dy = y - cy
        paint(image, inside(ellipsoid((dy, side - cx - shear * dy), radii), 2.0), muscle)
    marrow = _MARROW * (1 + 0.08 * texture)
    bones = (
        ((-14, 83), (22, 22), 0.0),  # femoral head
        ((12, 65), (25, 7.5), -0.1),  # acetabulum, ischium
        ((-43, 17), (9, 17), 0.35),  # pubis
        ((62, 0), (5, 8), 0.0),  # coccyx
    )
    for (cy, cx), radii, shear in bones:
        dy = y - cy + (0.25 * (z + 5) if cx == 17 else 0)
        distance = ellipsoid((dy, side - cx - shear * dy), radii)
        paint(image, inside(distance, 1.5), _CORTEX)
        paint(image, inside(distance + 2.2, 1.5), marrow)
    paint(image, inside(np.hypot((y + 43) / 9, side / 2.2) - 1, 0.5), 0.12)  # symphysis
    for cy, cx, signal in ((-62, 60, 0.05), (-60, 70, 0.3)):  # femoral artery and vein
        paint(image, inside(np.hypot(y - cy, side - cx) - 4.5, 1.5), signal)
    return image


def _organs(pelvis: Pelvis, grid: Grid, image: Array, texture: Array) -> None:
    """Paint levator, plexus, bladder and rectum over the frame, in place."""
    z, y, x = grid.z, grid.y, grid.x
    length, depth, width = pelvis.gland
    radius, wall = pelvis.rectum
    center = 0.93 * depth + radius - 0.08 * z
    sling = np.abs(ellipsoid((y - 0.45 * center, x), (0.55 * center + radius + 6, width + 8))) - 1.6
    paint(image, inside(sling + 4.0 * (y < -0.6 * depth), 1.2) * (z < 0.8 * length), _MUSCLE)
    plexus = inside(gland_distance(pelvis, grid) - 3.0, 3.0) * (y < 0.3 * depth)
    paint(image, plexus, 0.5 * (1 + 0.45 * texture))
    bundle = np.hypot(y - 0.86 * depth, np.abs(x) - 0.78 * width) - 2.6
    paint(image, inside(bundle, 1.5), 0.3)
    # Seminal vesicles behind the bladder neck, above the base.
    vesicle = ellipsoid((z - length - 3, y - 0.55 * depth, np.abs(x) - 14), (6.0, 5.0, 14.0))
    paint(image, inside(vesicle, 1.2), 0.62 * (1 + 0.3 * texture))
    bladder = ellipsoid((z - pelvis.bladder - 30, y + 20, x), (30.0, 22.0, 33.0))
    paint(image, inside(bladder, 1.5), _WALL)
    paint(image, inside(bladder + 3.5, 1.5), _URINE)
    rectum = ellipsoid((y - center, x - 2.0 * np.sin(z / 14)), (radius * 0.92, radius * 1.08))
    paint(image, inside(rectum, 1.5), 0.36 * (1 + 0.15 * texture))
    paint(image, inside(rectum + 0.5 * wall, 1.0), 0.50)  # mucosa
    paint(image, inside(rectum + wall, 1.0), pelvis.lumen * (1 + 0.3 * texture * (pelvis.lumen > 0.1)))


def _gland(pelvis: Pelvis, grid: Grid, image: Array, texture: Array, scanner: Scanner) -> Array:
    """Paint the gland over the organs, in place, and return the distance to its surface."""
    z, y, x = grid.z, grid.y, grid.x
    length, depth, width = pelvis.gland
    distance = gland_distance(pelvis, grid)
    middle = 0.48
    peripheral = middle + (0.70 - middle) * scanner.zonal_contrast
    central = middle + (0.34 - middle) * scanner.zonal_contrast
    gland = peripheral * (1 + 0.10 * texture)
    px, py, pz, radius = pelvis.lesion[2], pelvis.lesion[1], pelvis.lesion[0], pelvis.lesion[3]
    if radius:
        lesion = ellipsoid((z - pz, y - py, x - px), (radius * 1.2, radius * 0.8, radius * 1.2))
        paint(gland, 0.8 * inside(lesion, 3.0), central * 0.85)
    scale = pelvis.central
    zone = ellipsoid((z, y + 0.14 * depth, x), (length * min(0.95, scale + 0.2), depth * scale * 1.1, width * scale))
    paint(gland, inside(np.abs(zone) - 0.6, 1.2) * 0.6, 0.16)  # surgical capsule
    inner = central * (1 + 0.22 * texture)
    for nz, ny, nx, size, signal, rim in pelvis.nodules:
        nodule = np.sqrt((z - nz) ** 2 + (y - ny) ** 2 + (x - nx) ** 2) - size
        paint(inner, inside(nodule, 1.2), (central + scanner.zonal_contrast * (signal - 0.34)) * (1 + 0.15 * texture))
        paint(inner, inside(np.abs(nodule) - 0.5, 1.0) * 0.5 * rim, 0.15)
    paint(gland, inside(zone + 0.6, 1.2), inner)
    stroma = ellipsoid((z, y + 0.95 * depth, x), (length * 1.1, 0.30 * depth, 0.45 * width))
    paint(gland, inside(stroma, 3.0) * 0.85, 0.15)
    paint(gland, inside(np.hypot((y - 0.05 * depth) / 1.2, x) - 1.6, 1.5) * 0.7, 0.62)  # urethra
    paint(image, inside(distance - 0.3, 1.0), 0.14)  # capsule
    paint(image, inside(distance + 0.7, 1.0), gland * scanner.gland)
    return distance


def _acquire(
    generators: tuple[np.random.Generator, np.random.Generator],
    image: Array,
    grid: Grid,
    scanner: Scanner,
    rectum_y: float,
) -> Array:
    """Send the signal (D, H, W) through a scanner: float32, the 99.5th percentile at about 0.95, clipped to [0, 1].

    The first generator draws what holds for the whole examination, the second the noise of this image.
    """
    from scipy.ndimage import gaussian_filter

    draw = generators[0].uniform
    z, y, x = (
        axis.reshape(shape) for axis, shape in zip(grid.axes, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    pixel = scanner.fov_mm / len(grid.axes[1])
    blur = scanner.blur_mm * draw(0.85, 1.15) / pixel
    image = gaussian_filter(np.clip(image, 0, None), (0, blur, blur), mode="nearest")
    image = image ** np.float32(scanner.gamma * draw(0.93, 1.07))
    field = scanner.bias * noise_field(generators[0], (2, 2, 2), grid.unit)
    if scanner.endorectal:
        distance = np.sqrt((y - rectum_y) ** 2 + x**2 + 0.3 * z**2)
        field = field + np.log1p(scanner.coil * draw(0.7, 1.3) * np.exp(-np.clip(distance - 20, 0, None) / 22))
    else:
        field = field - scanner.coil * draw(0.6, 1.4) * y / 100
    image = image * np.exp(field)
    image /= np.quantile(image, 0.995) / 0.95
    level = np.float32(scanner.noise * draw(0.8, 1.25))
    real, imaginary = level * generators[1].standard_normal((2, *image.shape), dtype=np.float32)
    # Rician: the magnitude of two channels with Gaussian noise.
    image = np.hypot(image + real, imaginary)
    return np.clip(image * np.float32(draw(0.92, 1.08)), 0, 1).astype(np.float32)


def _render(
    generator: np.random.Generator, noise: np.random.Generator, domain: str, heights: Array | int, size: int
) -> tuple[Array, Array]:
    """Signal in [0, 1] and label map, (D, size, size), of one patient.

    Args:
        generator: draws the patient and the examination.
        noise: draws the noise of this image.
        domain: a key of `SCANNERS`.
        heights: heights (D,) above the centre of the gland, or the number of a 2D slice.
        size: height and width in pixels.
    """
    scanner = SCANNERS[domain]
    pelvis = sample_pelvis(generator, scanner.endorectal)
    if isinstance(heights, int):
        heights = np.array([pelvis.first_slice + SLICE_SPACING_MM * heights])
    axis = (np.arange(size) + 0.5 - size / 2) * (scanner.fov_mm / size)
    grid = bend(generator, heights, axis - pelvis.shift[0], axis - pelvis.shift[1])
    texture = octaves(generator, (30, 60, 60), grid.unit, 2, persistence=0.9)
    image = _frame(generator, pelvis, grid, 0.70 * scanner.fat)
    _organs(pelvis, grid, image, texture)
    distance = _gland(pelvis, grid, image, texture, scanner)
    rectum_y = 0.93 * pelvis.gland[1] + pelvis.rectum[0]
    image = _acquire((generator, noise), image, grid, scanner, rectum_y)
    return image, (distance < 0).astype(np.uint8)


def slice_spacing(domain: str, size: int) -> tuple[float, float]:
    """Pixel spacing (y, x) of a slice in millimetres."""
    return (SCANNERS[domain].fov_mm / size,) * 2


def volume_shape(size: int) -> tuple[int, int, int]:
    """Shape (D, H, W) of a volume of `size` in-plane pixels: a quarter as many slices, at least 8."""
    return max(8, size // 4), size, size


def volume_spacing(domain: str, size: int) -> tuple[float, float, float]:
    """Voxel spacing (z, y, x) of a volume in millimetres; slices are thicker than pixels are wide."""
    return (VOLUME_HEIGHT_MM / volume_shape(size)[0], *slice_spacing(domain, size))


def render_slice(domain: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one slice; `SLICES_PER_PATIENT` consecutive indices are neighbouring slices of one patient.

    Args:
        domain: a key of `SCANNERS`.
        index: number of the slice within the domain.
        size: width and height in pixels.
        seed: seed of the whole phantom.

    Returns:
        The image (size, size) uint8 and the label map (size, size) uint8: 0 background, 1 gland.
    """
    patient, number = divmod(index, SLICES_PER_PATIENT)
    generator = generator_for(seed, "prostate", domain, patient)
    image, label = _render(generator, generator_for(seed, "prostate", domain, patient, number), domain, number, size)
    return (image[0] * 255).round().astype(np.uint8), label[0]


def render_volume(domain: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one patient as a volume that holds the whole gland.

    Args:
        domain: a key of `SCANNERS`.
        index: number of the patient within the domain.
        size: width and height in pixels; see `volume_shape` for the number of slices.
        seed: seed of the whole phantom.

    Returns:
        The image (D, H, W) float32 in [0, 1] and the label map (D, H, W) uint8: 0 background, 1 gland.
    """
    depth = volume_shape(size)[0]
    heights = (np.arange(depth) + 0.5 - depth / 2) * (VOLUME_HEIGHT_MM / depth)
    generator = generator_for(seed, "prostate_3d", domain, index)
    return _render(generator, generator_for(seed, "prostate_3d", domain, index, 0), domain, heights, size)
