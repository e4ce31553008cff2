"""Fundus phantom: optic disc with rim and cup, vessels, macula and choroid, seen by four cameras.

Coordinates are fractions of the image width, x to the right and y down. Disc coordinates (u, v) are rotated and
scaled so that the disc margin is about the unit circle; u points to the temporal side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .phantom_fields import Array, generator_for, inside, noise_field, octaves, paint, quantize_blocks


@dataclass(frozen=True)
class Camera:
    """What one fundus camera does to the light; a clear, neutral device has the defaults.

    Args:
        gain: factor on red, green and blue.
        gamma: exponent on the values after the gain; above 1 darkens the mid-tones.
        saturation: distance of colours from grey, 1 keeps them.
        haze: share of scattered light in [0, 1], as from a cataract.
        blur: standard deviation of the point spread, as a fraction of the image width.
        noise: standard deviation of the sensor noise at full brightness.
        falloff: loss of light at the corner of the image, in [0, 1].
        tilt: one-sided change of illumination across the image.
        cup_contrast: factor on the brightness step between rim and cup.
        rim_contrast: factor on the brightness step between retina and disc.
        blocks: strength of the compression blocks, 0 for none.
    """

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    saturation: float = 1.0
    haze: float = 0.0
    blur: float = 0.004
    noise: float = 0.012
    falloff: float = 0.3
    tilt: float = 0.05
    cup_contrast: float = 1.0
    rim_contrast: float = 1.0
    blocks: float = 0.0


CAMERAS: dict[str, Camera] = {
    "camera_a": Camera(),
    "camera_b": Camera(
        gain=(1.03, 0.90, 0.82), gamma=1.05, saturation=1.05, blur=0.006, noise=0.015, falloff=0.4, cup_contrast=0.9
    ),
    "camera_c": Camera(
        gain=(0.96, 1.04, 1.08), gamma=0.94, haze=0.11, blur=0.009, noise=0.008, tilt=0.10, cup_contrast=0.9
    ),
    "camera_d": Camera(
        gain=(0.92, 1.0, 1.15),
        saturation=0.82,
        blur=0.007,
        noise=0.030,
        falloff=0.4,
        tilt=0.15,
        cup_contrast=0.9,
        rim_contrast=0.92,
        blocks=0.04,
    ),
}

_RETINA = np.array([0.70, 0.33, 0.15], dtype=np.float32)
_RIM = np.array([0.90, 0.56, 0.31], dtype=np.float32)
_CUP = np.array([1.00, 0.86, 0.63], dtype=np.float32)
_SCLERA = np.array([0.98, 0.82, 0.58], dtype=np.float32)
# Share of red, green and blue that blood takes away: haemoglobin absorbs green most.
_VEIN = np.array([0.42, 0.66, 0.55], dtype=np.float32)
_ARTERY = np.array([0.22, 0.55, 0.50], dtype=np.float32)
# Angular frequencies of a vessel's winding, in radians per image width.
_SWAY = np.array([11.0, 23.0], dtype=np.float32)


@dataclass(frozen=True)
class Disc:
    """Geometry of one optic disc.

    Args:
        center: (x, y) in image widths.
        radius: horizontal radius in image widths.
        aspect: vertical over horizontal radius.
        angle: rotation in radians.
        temporal: +1 where the temporal side is at the right, else -1.
        cup_center: (u, v) in disc coordinates.
        cup_radii: (horizontal, vertical) in disc coordinates; the vertical one is the cup-to-disc ratio.
        wobble: (2, 3, 2) amplitude and phase of the harmonics 2, 3 and 4 of disc and cup margin.
    """

    center: tuple[float, float]
    radius: float
    aspect: float
    angle: float
    temporal: int
    cup_center: tuple[float, float]
    cup_radii: tuple[float, float]
    wobble: Array

    def coordinates(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Disc coordinates (u, v) of image coordinates."""
        dx, dy = (x - self.center[0]) * self.temporal, y - self.center[1]
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return (dx * cosine + dy * sine) / self.radius, (dy * cosine - dx * sine) / (self.radius * self.aspect)

    def image_points(self, u: NDArray[np.floating], v: NDArray[np.floating]) -> NDArray[np.floating]:
        """Image coordinates (n, 2) of disc coordinates (n,) and (n,)."""
        du, dv = u * self.radius, v * self.radius * self.aspect
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        return np.stack(
            [self.center[0] + self.temporal * (du * cosine - dv * sine), self.center[1] + du * sine + dv * cosine], 1
        )

    def distances(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Distance to the disc margin and to the cup margin in disc radii, negative inside."""
        disc = np.hypot(u, v) - self._margin(0, np.arctan2(v, u))
        cu, cv = (u - self.cup_center[0]) / self.cup_radii[0], (v - self.cup_center[1]) / self.cup_radii[1]
        cup = (np.hypot(cu, cv) - self._margin(1, np.arctan2(cv, cu))) * min(self.cup_radii)
        # A rim of at least a few hundredths of the radius is left everywhere: the cup lies inside the disc.
        return disc, np.maximum(cup, disc + 0.04)

    def _margin(self, which: int, angle: Array) -> Array:
        harmonics = zip((2, 3, 4), self.wobble[which], strict=True)
        return 1 + sum(amplitude * np.cos(k * angle + phase) for k, (amplitude, phase) in harmonics)


def sample_disc(generator: np.random.Generator) -> Disc:
    """Draw one disc; cup-to-disc ratios run from 0.35 to 0.75, as in normal and glaucomatous eyes."""
    draw = generator.uniform
    temporal = 1 if generator.random() < 0.5 else -1
    ratio = draw(0.35, 0.75)
    room = max(0.02, 0.85 - 1.1 * ratio) * 0.5
    amplitudes = np.array([[0.020, 0.012, 0.008], [0.06, 0.04, 0.02]]) * draw(0.3, 1.0, (2, 3))
    wobble = np.stack([amplitudes, draw(0, 2 * np.pi, (2, 3))], axis=-1).astype(np.float32)
    return Disc(
        center=(0.5 - temporal * draw(0.0, 0.14), 0.5 + draw(-0.07, 0.07)),
        radius=draw(0.145, 0.185),
        aspect=draw(1.02, 1.16),
        angle=draw(-0.2, 0.2),
        temporal=temporal,
        cup_center=(min(room, 0.1) * draw(-0.2, 1.0), min(room, 0.1) * draw(-1.0, 1.0)),
        cup_radii=(ratio * draw(0.88, 1.05), ratio),
        wobble=wobble,
    )


def _grow(
    generator: np.random.Generator,
    starts: Array,
    headings: Array,
    bends: Array,
    widths: Array,
    length: float,
    step: float,
    kinks: tuple[Array, Array] | None = None,
) -> Array:
    """Grow n vessels together.

    Args:
        generator: draws the winding.
        starts: (n, 2) first points x, y.
        headings: (n,) directions at the start, in radians.
        bends: (n,) curvatures in radians per image width.
        widths: (n,) half-widths at the start; they taper along the way.
        length: common length in image widths.
        step: distance between two points.
        kinks: (distances, angles), each (n,): where and how far a vessel bends as it climbs over the rim.

    Returns:
        (n, points, 4) rows x, y, half-width, heading.
    """
    s = np.arange(0.0, length, step, dtype=np.float32)
    sway, phase = generator.standard_normal((2, len(starts), 2), dtype=np.float32)
    turn = np.sin(_SWAY[None, :, None] * s + 3 * phase[..., None])
    turn = (0.14 * sway[..., None] * turn).sum(1) + bends[:, None] * s
    if kinks is not None:
        turn += kinks[1][:, None] / (1 + np.exp((kinks[0][:, None] - s) / 0.008))
    paths = np.empty((*turn.shape, 4), dtype=np.float32)
    paths[..., 3] = headings[:, None] + turn - turn[:, :1]
    paths[..., 0] = starts[:, :1] + step * np.cumsum(np.cos(paths[..., 3]), axis=1)
    paths[..., 1] = starts[:, 1:] + step * np.cumsum(np.sin(paths[..., 3]), axis=1)
    paths[..., 2] = widths[:, None] * (1 - (0.55 / length) * s)
    return paths


def _arcades(generator: np.random.Generator, disc: Disc, artery: bool, step: float) -> Array:
    """The four main vessels, superior and inferior, temporal and nasal, as paths (4, points, 4)."""
    draw = generator.uniform
    side = np.array([-1, -1, 1, 1])  # -1 superior, +1 inferior
    temporal = np.array([True, False, True, False])
    hilum = (disc.cup_center[0] - draw(0.2, 0.6) * disc.cup_radii[0], disc.cup_center[1])
    starts = disc.image_points(hilum[0] + draw(-0.07, 0.07, 4), hilum[1] + draw(-0.06, 0.02, 4) * side)
    # Angles are measured from the temporal axis, then mirrored into the eye at hand.
    first = side * np.where(temporal, draw(1.25, 1.7, 4), draw(1.6, 2.2, 4))
    kinks = np.where(temporal, draw(-0.6, -0.2, 4), draw(0.2, 0.7, 4)) * side * disc.temporal
    bends = np.where(temporal, draw(-1.4, -0.5, 4), draw(-0.5, 1.0, 4)) * side * disc.temporal
    widths = draw(0.0075, 0.0105, 4) * (0.78 if artery else 1.0) * np.where(temporal, 1.0, 0.8)
    reach = disc.radius * disc.cup_radii[1] * draw(0.7, 1.0, 4)
    headings = first if disc.temporal > 0 else np.pi - first
    return _grow(generator, starts, headings, bends, widths, 0.85, step, (reach, kinks))


def _vessel_tree(generator: np.random.Generator, disc: Disc, artery: bool, step: float) -> Array:
    """Main vessels with side branches and twigs: dense rows (x, y, half-width, heading)."""
    draw = generator.uniform
    parents = _arcades(generator, disc, artery, step)
    order = np.tile(np.arange(4), 4)
    side = np.where(order % 2, 1, -1)
    at = ((0.13 + 0.14 * order + draw(0, 0.08, 16)) / step).astype(np.int64)
    roots = parents[np.repeat(np.arange(4), 4), np.minimum(at, parents.shape[1] - 1)]
    headings = roots[:, 3] + side * draw(0.45, 0.95, 16)
    widths = roots[:, 2] * draw(0.5, 0.72, 16)
    branches = _grow(generator, roots[:, :2], headings, -side * draw(0.0, 2.0, 16), widths, 0.34, step)
    roots = branches[np.arange(16), (branches.shape[1] * draw(0.3, 0.6, 16)).astype(np.int64)]
    headings = roots[:, 3] - side * draw(0.4, 0.8, 16)
    twigs = _grow(generator, roots[:, :2], headings, np.zeros(16), 0.65 * roots[:, 2], 0.16, step)
    return np.concatenate([paths.reshape(-1, 4) for paths in (parents, branches, twigs)])


def _rasterize(points: Array, size: int) -> Array:
    """Coverage in [0, 1] of tubes given as dense rows (x, y, half-width, ...), with anti-aliased walls."""
    margin = 0.03
    keep = np.all(np.abs(points[:, :2] - 0.5) < 0.5 + margin, axis=1)
    x, y, half = (points[keep, :3] * np.float32(size)).T
    reach = int(np.ceil(half.max(initial=0.0) + 1))
    offsets = np.arange(-reach, reach + 1, dtype=np.int32)
    columns = np.floor(x).astype(np.int32)[:, None, None] + offsets[None, None, :]
    rows = np.floor(y).astype(np.int32)[:, None, None] + offsets[None, :, None]
    dx = columns + np.float32(0.5) - x[:, None, None]
    dy = rows + np.float32(0.5) - y[:, None, None]
    distance = np.sqrt(dx**2 + dy**2)
    half = half[:, None, None]
    # Vessels thinner than a pixel keep their width and lose contrast, as on a real sensor.
    coverage = np.clip(np.maximum(half, 0.5) + 0.5 - distance, 0, 1) * np.minimum(1.0, 2 * half)
    valid = (coverage > 0) & (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    canvas = np.zeros(size * size, dtype=np.float32)
    np.maximum.at(canvas, (rows * size + columns)[valid], coverage[valid])
    return canvas.reshape(size, size)


def _retina(generator: np.random.Generator, axis: Array, u: Array, v: Array) -> Array:
    """(H, W, 3) retina before disc and vessels: pigment, choroid mottling, nerve fibres, macula."""
    pigment = np.float32(generator.uniform(0.85, 1.12))
    tint = generator.normal(0, 0.03, 3).astype(np.float32)
    grid = (axis, axis)
    mottling = octaves(generator, (5, 5), grid, 4)
    ridges = 1 - np.abs(octaves(generator, (9, 9), grid, 2))
    light = pigment * (1 + 0.05 * mottling + np.float32(generator.uniform(0.0, 0.08)) * ridges)
    image = light[..., None] * (_RETINA + tint)
    # Redder and greener patches of the choroid shift the hue, not only the brightness.
    image[..., 1] *= 1 + 0.06 * noise_field(generator, (7, 7), grid)
    radius = np.hypot(u, v)
    # Nerve fibre bundles: a sheen above and below the disc with fine streaks along the radius.
    knots = np.linspace(-np.pi, np.pi, 90, endpoint=False)
    streaks = np.interp(np.arctan2(v, u), knots, generator.standard_normal(90), period=2 * np.pi).astype(np.float32)
    sheen = np.exp(-((radius - 1.3) ** 2) / 0.8) * np.abs(v) / (radius + 0.3)
    image *= (1 + sheen * (0.10 + 0.035 * streaks))[..., None]
    distance, lift = generator.uniform(4.3, 5.0), generator.uniform(0.2, 0.7)
    macula = np.exp(-((u - distance) ** 2 + (v - lift) ** 2) / 2.6)
    image *= (1 - macula[..., None] * np.array([0.22, 0.36, 0.42], dtype=np.float32)).astype(np.float32)
    return image


def _optic_disc(
    generator: np.random.Generator,
    image: Array,
    axis: Array,
    u: Array,
    v: Array,
    distances: tuple[Array, Array],
    camera: Camera,
) -> None:
    """Paint sclera, rim and cup over the retina, in place; `distances` are those to the disc and cup margin."""
    disc_distance, cup_distance = distances
    retina = image.mean((0, 1))
    # A crescent of bare sclera hugs the temporal margin in some eyes.
    crescent = max(0.0, generator.normal(-0.2, 0.5)) * inside(disc_distance - 0.10 * np.clip(u, 0, 1), 0.2)
    paint(image, (0.5 * crescent * (u > 0))[..., None], _SCLERA)
    grain = octaves(generator, (24, 24), (axis, axis), 2)
    rim = _RIM * (1 + 0.07 * np.tanh(2 * u) + 0.025 * grain - 0.04 * v * (v > 0))[..., None]
    rim = retina * (1 - camera.rim_contrast) + rim * camera.rim_contrast
    paint(image, inside(disc_distance, 0.16)[..., None], rim)
    # The cup is a bowl: a soft wall, palest at its floor, with the pores of the lamina cribrosa.
    depth = np.clip(-cup_distance / 0.35, 0, 1)
    floor = _CUP * (0.97 + 0.06 * depth - 0.03 * depth * np.clip(grain, 0, 2))[..., None]
    bowl = inside(cup_distance, 0.20) * (0.80 + 0.20 * depth)
    paint(image, camera.cup_contrast * bowl[..., None], floor)
    image *= (1 - 0.06 * np.exp(-((disc_distance / 0.09) ** 2)))[..., None]


def _vessels(generator: np.random.Generator, image: Array, disc: Disc, cup_distance: Array) -> None:
    """Draw veins, then arteries with their light reflex, over the image in place."""
    size = len(image)
    # Deep in the cup the trunks are out of focus and fade.
    fade = 1 - 0.45 * np.clip(-cup_distance / 0.3, 0, 1)
    for artery, absorption in ((False, _VEIN), (True, _ARTERY)):
        tree = _vessel_tree(generator, disc, artery, step=1.0 / size)
        image *= 1 - (fade * _rasterize(tree, size))[..., None] * absorption
    # The light reflex along the larger arteries.
    core = tree[tree[:, 2] > 0.005] * np.array([1, 1, 0.3, 1], dtype=np.float32)
    image *= 1 + 0.16 * _rasterize(core, size)[..., None]


def _expose(generator: np.random.Generator, image: Array, axis: Array, camera: Camera) -> Array:
    """Send the scene (H, W, 3) through a camera; returns uint8."""
    from scipy.ndimage import gaussian_filter

    draw = generator.uniform
    x, y = axis[None, :] - 0.5, axis[:, None] - 0.5
    direction = draw(0, 2 * np.pi)
    light = 1 - camera.falloff * 2 * ((x - draw(-0.1, 0.1)) ** 2 + (y - draw(-0.1, 0.1)) ** 2)
    light = light + 2 * camera.tilt * (x * np.float32(np.cos(direction)) + y * np.float32(np.sin(direction)))
    blur = camera.blur * len(axis) * draw(0.8, 1.25)
    image = gaussian_filter(image * light[..., None], (blur, blur, 0), mode="nearest")
    grey = (image @ np.full(3, 1 / 3, dtype=np.float32))[..., None]
    image = grey + camera.saturation * (image - grey)
    gain = (np.array(camera.gain) * draw(0.94, 1.06, 3) * draw(0.88, 1.10)).astype(np.float32)
    image = np.clip(image * gain, 0, None) ** np.float32(camera.gamma * draw(0.95, 1.05))
    # Scattered light is a wide blur of the scene itself, lifted towards white.
    haze = camera.haze * draw(0.7, 1.3)
    image = (1 - haze) * image + haze * (0.5 * image.mean((0, 1)) + 0.35)
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    image = image + np.float32(camera.noise) * noise * np.sqrt(np.clip(image, 0.1, 1))
    if camera.blocks:
        image = quantize_blocks(image.astype(np.float32), camera.blocks)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def render_fundus(domain: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one eye.

    Args:
        domain: a key of `CAMERAS`.
        index: number of the eye within the domain.
        size: width and height in pixels.
        seed: seed of the whole phantom.

    Returns:
        The image (size, size, 3) uint8 and the label map (size, size) uint8: 0 background, 1 rim, 2 cup.
    """
    camera = CAMERAS[domain]
    generator = generator_for(seed, "fundus", domain, index)
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    disc = sample_disc(generator)
    u, v = disc.coordinates(axis[None, :], axis[:, None])
    distances = disc.distances(u, v)
    image = _retina(generator, axis, u, v)
    _optic_disc(generator, image, axis, u, v, distances, camera)
    _vessels(generator, image, disc, distances[1])
    label = (distances[0] < 0).astype(np.uint8) + (distances[1] < 0).astype(np.uint8)
    return _expose(generator, image, axis, camera), label
