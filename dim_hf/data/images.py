"""Pictures as arrays: checked by their header before they are decoded."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dim_hf.data.limits import MAX_PIXELS, READING, SizeError, check_shape, file_name

if TYPE_CHECKING:
    import PIL.Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_PAGED_FORMATS = ("PNG", "TIFF")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_WIDE_MODES = {"1": 1, "I;16": 16, "I;16L": 16, "I;16B": 16, "I;16N": 16, "I": 32, "F": 32}
_MOST_BYTES = 4  # of a decoded pixel
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # TIFF tags
# Mode of a file -> mode whose array is returned; modes that are not listed are refused.
_PICTURE_MODES = {
    **dict.fromkeys(("1", "L", "LA", "La"), "L"),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), "RGB"),
    **{mode: mode for mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")},
}


@dataclass(frozen=True)
class PictureFacts:
    """What the header of a picture states.

    Attributes:
        size: (width, height) in pixels, before a turn by the EXIF orientation; of a TIFF, after it.
        mode: PIL's mode, e.g. "L", "P", "RGB", "I;16".
        has_alpha: There is an alpha channel or a transparent color.
        bits: Bits of a sample as stored; 16 with mode "RGB" means that decoding drops the lower 8.
        format: "PNG", "JPEG" (or "MPO"), "TIFF" or "BMP".
    """

    size: tuple[int, int]
    mode: str
    has_alpha: bool
    bits: int
    format: str

    @property
    def is_grey(self) -> bool:
        """Whether a pixel has one value, beside its opacity."""
        return self.mode in _GREY_MODES or self.mode.startswith("I;16")


def picture_facts(path: str | os.PathLike) -> PictureFacts:
    """Read the header of a picture, and no pixel.

    Raises:
        ValueError: If the file is missing, or no PNG, JPEG, TIFF or BMP.
    """
    with _opened(path) as image:
        return _facts(image)


@contextmanager
def open_picture(
    source: str | os.PathLike | bytes, *, max_pixels: int = MAX_PIXELS
) -> "Iterator[tuple[PIL.Image.Image, PictureFacts]]":
    """A picture as PIL sees it and what its header states, after everything was refused that is never read.

    Args:
        source: A file in a format of `EXTENSIONS`, or its content.
        max_pixels: Largest allowed number of pixels, checked before decoding. PIL's own limit (about 1.8e8 unless it
            was changed) holds as well.

    Yields:
        The picture, not decoded yet; `upright` decodes it. Whatever a decoder raises within becomes a ValueError.

    Raises:
        SizeError: If it is too large.
        ValueError: If the file is missing or damaged, or has several pages.
    """
    with _opened(source, max_pixels) as image:
        facts = _facts(image)
        READING.charge(image.width * image.height * _MOST_BYTES)
        yield image, facts


def read_picture(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture.

    Alpha is dropped, palettes and CMYK become RGB, 1-bit becomes 0 and 255, and the picture is turned as its EXIF
    orientation says, as `datasets` does. Color of 16 bits a channel is read with 8, which is all that PIL decodes.

    Args:
        path: A file in a format of `EXTENSIONS`.
        max_pixels: See `open_picture`.

    Returns:
        uint8 (H, W) or (H, W, 3); uint16 (H, W) for 16-bit grey; float32 (H, W) for TIFF of floats.

    Raises:
        ValueError: If the file is missing, too large, damaged, has several pages, or a mode that has no such array.
    """
    with open_picture(path, max_pixels=max_pixels) as (image, _):
        if image.mode not in _PICTURE_MODES:
            raise ValueError(f"{path} has PIL mode {image.mode!r}, which is not read here; save it as RGB or grey PNG")
        array = pixels_of(image)
    if array.dtype.kind == "i":
        return _as_uint16(array, path)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def pixels_of(image: "PIL.Image.Image") -> np.ndarray:
    """Pixels of a picture of any mode, upright, without alpha.

    Returns:
        uint8 (H, W) or (H, W, 3), modes that are not read from files as RGB; uint16 (H, W), byte order as stored;
        int32 or float32 (H, W).
    """
    mode = _PICTURE_MODES.get(image.mode, "RGB")
    return np.asarray(upright(image).convert(mode) if mode in ("L", "RGB") else upright(image))


def read_mask(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a label map by its stored values.

    Palette images give the indices, not the colors; 1-bit images 0 and 1; grey of 2 or 4 bits 0 to 255 in equal
    steps, as PIL decodes it; RGB with equal channels gives one of them. An alpha channel must be constant. The EXIF
    orientation is followed, as it is for pictures.

    Args:
        path: A file in a format of `EXTENSIONS`.
        max_pixels: See `open_picture`.

    Returns:
        Integer (H, W): uint8, uint16, or int32 for TIFF of 32 bits.

    Raises:
        ValueError: As `read_picture` does, and if the values are colors, 16-bit colors, varying alpha or fractions.
    """
    with open_picture(path, max_pixels=max_pixels) as (image, facts):
        if facts.mode not in _PICTURE_MODES or facts.mode in ("CMYK", "YCbCr"):
            raise ValueError(f"{path} has PIL mode {facts.mode!r}; save the mask as grey PNG of one class id a pixel")
        if facts.bits > 8 and facts.mode not in _WIDE_MODES:
            raise ValueError(
                f"{path} is a mask of {facts.bits} bits in mode {facts.mode}, of which only 8 can be decoded; "
                "save it as grey PNG of one class id a pixel"
            )
        array = np.asarray(upright(image))
    if facts.mode in _ALPHA_MODES:
        array = _without_alpha(array, path)
    return _as_ids(_one_channel(array, path), path)


def write_png(array: np.ndarray, path: str | os.PathLike) -> None:
    """Write a picture or label map without loss.

    Args:
        array: uint8 or uint16 (H, W), or uint8 (H, W, 3).
        path: Ends with `.png`.

    Raises:
        ValueError: If shape or dtype is another, or the name ends otherwise.
    """
    import PIL.Image

    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path} must end with .png")
    grey = array.ndim == 2 and array.dtype.newbyteorder("=") in (np.uint8, np.uint16)
    color = array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8
    if not (grey or color) or array.size == 0:
        raise ValueError(
            f"{path}: a PNG takes uint8 or uint16 (H, W) or uint8 (H, W, 3), got {array.dtype} {array.shape}; "
            "convert the array first"
        )
    PIL.Image.fromarray(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))).save(path, format="PNG")


@contextmanager
def _opened(source: str | os.PathLike | bytes, max_pixels: int | None = None) -> "Iterator[PIL.Image.Image]":
    """The image, opened but not decoded; whatever a decoder raises becomes a ValueError that names the file."""
    import PIL.Image

    is_content = isinstance(source, bytes)
    path = file_name(source)
    if not is_content and not os.path.isfile(path):
        raise ValueError(f"{path} is missing or no file; correct the path")
    try:
        with PIL.Image.open(BytesIO(source) if is_content else path, formats=FORMATS) as image:
            if max_pixels is not None:
                check_shape(image.size, max_pixels, path)
                _refuse_pages(image, path)
                _refuse_scrambled(image, path)
            yield image
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise SizeError(f"{path} is too large ({error}); cut it or reduce its resolution") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is not an image of the formats {', '.join(FORMATS)}; copy the file again or convert it"
        ) from error
    except MemoryError:
        raise
    except ValueError as error:
        if path in str(error):
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # decoders raise almost anything on a broken file
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be decoded ({type(error).__name__}: {error}); copy or convert the file again")


def _refuse_pages(image: "PIL.Image.Image", path: str) -> None:
    # The further frames of a camera's JPEG (MPO) are previews; those of TIFF and PNG are data.
    pages = getattr(image, "n_frames", 1)
    if image.format in _PAGED_FORMATS and pages > 1:
        raise ValueError(f"{path} holds {pages} pages or frames; save each as a file of its own")


def _refuse_scrambled(image: "PIL.Image.Image", path: str) -> None:
    # Pillow (12.3) maps such a file into memory with width and height exchanged, and so does `datasets`.
    if image.format == "TIFF" and any(tile[0] == "raw" for tile in image.tile):
        orientation = image.tag_v2.get(_ORIENTATION)
        if orientation in (5, 6, 7, 8):
            raise ValueError(
                f"{path} is an uncompressed TIFF of orientation {orientation}, which Pillow decodes wrongly; "
                "save it upright, or as PNG"
            )


def upright(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Decode a picture, turned as its EXIF orientation says, as `datasets` turns it."""
    import PIL.ExifTags
    import PIL.ImageOps

    image.load()
    tagged = image.getexif().get(PIL.ExifTags.Base.Orientation) is not None
    return PIL.ImageOps.exif_transpose(image) if tagged else image


def _facts(image: "PIL.Image.Image") -> PictureFacts:
    bits = _WIDE_MODES.get(image.mode, 8)
    if image.format == "PNG":
        # The raw mode of the decoder, e.g. "RGB;16B" or "P;4".
        stored = [re.search(r";(\d+)", str(tile[3])) for tile in image.tile]
        bits = max((int(match.group(1)) for match in stored if match), default=bits)
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (bits,)))
    has_alpha = image.mode in _ALPHA_MODES or "transparency" in image.info
    return PictureFacts(image.size, image.mode, has_alpha, int(bits), str(image.format))


def _as_uint16(array: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"{path} has 32-bit values {array.min()} to {array.max()}; save it with 16 bits, or as a volume"
        )
    return array.astype(np.uint16)


def _without_alpha(array: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    alpha = array[..., -1]
    if alpha.min() != alpha.max():
        raise ValueError(
            f"{path} is a mask with transparency that varies ({alpha.min()} to {alpha.max()}), so its values are "
            "ambiguous; save it as grey PNG of one class id a pixel"
        )
    return array[..., :-1]


def _one_channel(array: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    if array.ndim == 2:
        return array
    differs = (array != array[..., :1]).any(axis=-1)
    if differs.any():
        row, column = (int(index[0]) for index in np.nonzero(differs))
        raise ValueError(
            f"{path} is a mask in color ({array[row, column].tolist()} at row {row}, column {column}); "
            "save it as grey PNG of one class id a pixel"
        )
    return array[..., 0]


def _as_ids(array: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.trunc(array)) & (np.abs(array) < 2**31)
        if not whole.all():
            raise ValueError(f"{path} is a mask with the value {array[~whole][0]}; save integer class ids")
        return array.astype(np.int32)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
