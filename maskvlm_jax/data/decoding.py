"""Pictures of every format decoded to 8-bit RGB on the host, upright and without transparency."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

# Pillow warns of what `MAX_PIXELS` refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte as RGB
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
# What sets a picture of each other orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """The bytes are not a picture that can be decoded, or it is too large.

    Attributes:
      kind: what is wrong, in few words: "unreadable", "not a picture" or "too large".
    """

    def __init__(self, message: str, kind: str = "not a picture"):
        super().__init__(message)
        self.kind = kind


def picture_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels that `decode` would give at full scale; of encoded pictures the header alone is read.

    Raises:
      DecodeError: as `decode`; data that are damaged behind a sound header are not noticed.
    """
    if isinstance(image, np.ndarray):
        return _check_array(image).shape[:2]
    if not image:
        raise DecodeError("the file is empty or cannot be read", "unreadable")
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(image)
        turned = _jpeg_orientation(image) >= 5
    except ValueError:
        height, width, turned = _any_size(image)
    _check_pixel_count(height, width)
    return (width, height) if turned else (height, width)


def _any_size(image: bytes) -> tuple[int, int, bool]:
    """(height, width, whether EXIF turns it by a quarter) of a picture that is no plain JPEG."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return picture.height, picture.width, _orientation(picture) >= 5
    except Exception as error:
        raise _decode_error(error) from error


def _decode_error(error: Exception) -> DecodeError:
    """What Pillow raised, told as ours: its plug-ins raise whatever their parsing ran into, not only OSError."""
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError(f"a picture over the limit of {MAX_PIXELS} pixels", "too large")
    return DecodeError(f"the picture cannot be decoded: {error}")


def decode(image: bytes | np.ndarray, *, min_size: int | tuple[int, int] = 0) -> np.ndarray:
    """Decodes a picture to RGB; transparent parts become white, 16-bit values are scaled, EXIF rotation is applied.

    Args:
      image: encoded picture (of an animation the first frame is taken), or a uint8 (height, width, 3) array, which is
        returned as it is.
      min_size: (height, width), or one number for both: where positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of
        its size as long as its sides stay at least this long in pixels; much cheaper for large photographs.

    Returns:
      uint8 (height, width, 3), C-contiguous.

    Raises:
      DecodeError: empty, truncated or unknown bytes, more than MAX_PIXELS pixels, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        return _check_array(image)
    if not image:
        raise DecodeError("the file is empty or cannot be read", "unreadable")
    sides = (min_size, min_size) if isinstance(min_size, int) else min_size
    try:
        return _decode(image, *sides)
    except DecodeError as error:
        if error.kind != "not a picture" or not _lacks_its_end_alone(image):
            raise
    return _decode(image + _JPEG_END, *sides)


def _decode(image: bytes, min_height: int, min_width: int) -> np.ndarray:
    pixels = _decode_plain_jpeg(image, min_height, min_width)
    return _decode_any(image, max(min_height, min_width)) if pixels is None else pixels


def _lacks_its_end_alone(image: bytes) -> bool:
    """Whether a JPEG has all its pixels, and only the mark behind them is missing."""
    if not image.startswith(_JPEG_START) or image.endswith(_JPEG_END):
        return False
    try:
        simplejpeg.decode_jpeg(image + _JPEG_END, min_height=1, min_width=1, min_factor=8)  # strict: makes no pixel up
    except ValueError:
        return False
    return True


def _check_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DecodeError(f"an array must be uint8 (height, width, 3), not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def _decode_plain_jpeg(image: bytes, min_height: int, min_width: int) -> np.ndarray | None:
    """Decodes a sound, upright grey or colour JPEG; None leaves everything else to Pillow."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(image)
        _check_pixel_count(height, width)
        if colour_space not in ("RGB", "YCbCr", "Gray") or _jpeg_orientation(image) != 1:
            return None
        # A factor of at least 2, as scales such as 7/8 have no vector code: slower to decode than the full size.
        return simplejpeg.decode_jpeg(image, min_height=min_height, min_width=min_width, min_factor=2)
    except DecodeError:
        raise
    except ValueError:
        return None


def _jpeg_orientation(image: bytes) -> int:
    # Most JPEGs have no EXIF block; the search for its mark costs a hundredth of what decoding does.
    if b"Exif\0\0" not in image:
        return 1
    try:
        return _orientation(Image.open(io.BytesIO(image)))
    # Pillow is stricter about headers than libjpeg-turbo; the size is checked elsewhere.
    except (OSError, Image.DecompressionBombError):
        return 1


def _orientation(image: Image.Image) -> int:
    """1 to 8; what is anything else, text or 9 or 0, is no orientation, and the picture upright."""
    if image.format == "TIFF":  # which Pillow turns itself as it reads the pixels
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A broken EXIF block raises almost anything, and is no reason to lose the picture.
        return 1
    return value if type(value) is int and value in _UPRIGHT else 1


def _decode_any(image: bytes, min_size: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            _check_pixel_count(picture.height, picture.width)
            if min_size > 0:
                picture.draft(None, (min_size, min_size))
            turn = _UPRIGHT.get(_orientation(picture))  # not Pillow's own look at it, which trusts it
            return np.array(to_rgb(picture if turn is None else picture.transpose(turn)))
    except DecodeError:
        raise
    except Exception as error:
        raise _decode_error(error) from error


def _check_pixel_count(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DecodeError(
            f"a picture of {width} x {height} pixels is over the limit of {MAX_PIXELS} pixels", "too large"
        )


def to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        if picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = 65535 - values  # Pillow turns those of 8 bits only
        grey, transparent = _from_16_bit(values), picture.info.get("transparency")
        if isinstance(transparent, int):
            grey.paste("white", mask=Image.fromarray(np.where(values == transparent, 255, 0).astype(np.uint8)))
        return grey
    if picture.mode == "F":
        raise DecodeError("pixels are floating-point numbers of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _from_16_bit(values: np.ndarray) -> Image.Image:
    """Cameras and scanners write 10, 12 or 14 bits into 16: the fewest that hold the brightest pixel are the scale."""
    # Pillow's own conversion clips at 255.
    brightest = values.max()
    if values.min() < 0 or brightest > 65535:
        raise DecodeError("pixels have more than 16 bits")
    white = next(2**bits - 1 for bits in (10, 12, 14, 16) if brightest < 2**bits)
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")
