"""Image files as arrays, and paths from annotation files."""

import io
import os
import pathlib
import stat

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from jaxzoo.errors import CorruptRecord, UserError

MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB decoded
MAX_BYTES = 2**28  # of the file itself

# Pillow knows more formats; some of those start other programs (EPS).
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
_ORIENTATION = 0x0112  # EXIF tag


def read_image(
  path: str | os.PathLike, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, 'h w 3']:
  """Decodes an image file of any common format to 8-bit RGB.

  JPEG files are decoded by libjpeg-turbo (simplejpeg), all others and the JPEG
  variants that it does not know by Pillow. The format is told by the content,
  not by the name. Grayscale is repeated, CMYK converted, transparency dropped,
  16 bits reduced to the upper 8, the EXIF orientation applied, and of an
  animation the first frame taken.

  Args:
    path: a regular file.
    max_pixels: larger images are refused by their header, before any decoding
      (formats other than JPEG above 179 million pixels in any case).

  Returns:
    The picture as it is meant to be seen, a new array.

  Raises:
    CorruptRecord: the file is missing, empty, truncated, too large or no image.
      libjpeg's warnings count as damage, since it fills what is missing with
      grey.
  """
  return decode_image(_read_bytes(path), path, max_pixels)


def decode_image(
  data: bytes, path: str | os.PathLike, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, 'h w 3']:
  """Like `read_image`, from the bytes of the file; `path` names it in errors.

  Raises:
    CorruptRecord: likewise.
  """
  try:
    if data.startswith(b'\xff\xd8\xff'):
      image = _decode_jpeg(data, max_pixels)
    else:
      image = _decode_other(data, max_pixels)
  except Exception as error:  # decoders raise whatever the bytes lead them to
    reason = ' '.join(str(error).split()) or type(error).__name__
    if 'BytesIO' in reason:  # Pillow names the buffer, not the file
      reason = 'not an image of a known format'
    raise CorruptRecord(path, reason) from error
  return np.ascontiguousarray(image)


def safe_join(root: str | os.PathLike, relative: str) -> pathlib.Path:
  """`root / relative`, both resolved, refusing to leave `root`.

  For paths that come from annotation files and archives. Links may be followed
  inside `root`, and `root` itself may be one.

  Raises:
    UserError: `relative` is absolute, or leads out of `root` by `..` or by a
      symbolic link.
  """
  try:
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, relative))
  except ValueError as error:  # a null byte
    raise UserError(f'{relative!r} is not a path') from error
  inside = path == base or path.startswith(os.path.join(base, ''))
  if os.path.isabs(relative) or not inside:
    raise UserError(
      f'path {relative!r} leaves its folder {root} (it leads to {path}); '
      'paths must be relative and stay inside'
    )
  return pathlib.Path(path)


def _read_bytes(path) -> bytes:
  try:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):  # a pipe would block for ever
      raise CorruptRecord(path, 'not a regular file')
    if info.st_size > MAX_BYTES:
      raise CorruptRecord(
        path, f'{info.st_size:,} bytes, over the limit of {MAX_BYTES:,}'
      )
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise CorruptRecord(path, error.strerror or str(error)) from error
  except ValueError as error:  # a null byte in the name
    raise CorruptRecord(path, str(error)) from error
  if not data:
    raise CorruptRecord(path, 'empty file')
  return data


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise ValueError(
      f'the header says {width} x {height} = {height * width:,} pixels, '
      f'over the limit of {max_pixels:,}'
    )


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
  except ValueError:  # unusual chroma subsampling, or damage: Pillow knows
    return _decode_other(data, max_pixels)
  _check_size(height, width, max_pixels)
  image = simplejpeg.decode_jpeg(data, 'RGB', strict=True)
  if b'Exif\0\0' in data[: 2**17]:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
      image = _orient(image, _orientation(opened))
  return image


def _decode_other(data: bytes, max_pixels: int) -> np.ndarray:
  with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
    _check_size(opened.height, opened.width, max_pixels)
    opened.load()
    orientation = _orientation(opened)  # after load: TIFF is turned by then
    if opened.mode == 'F':
      raise ValueError('floating-point pixels, which have no known range')
    if opened.mode.startswith('I'):  # 16 bits; Pillow's conversion would clip
      values = np.clip(np.asarray(opened, np.int64) >> 8, 0, 255)
      image = np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)
    else:
      image = np.array(opened.convert('RGB'))  # a copy, writable
  return _orient(image, orientation)


def _orientation(opened: Image.Image) -> int:
  try:
    return opened.getexif().get(_ORIENTATION, 1)
  except Exception:  # a damaged EXIF block beside sound pixels
    return 1


def _orient(image: np.ndarray, orientation: int) -> np.ndarray:
  """Undoes an EXIF orientation 1..8; others mean nothing and are ignored."""
  if orientation in (5, 6, 7, 8):
    image = image.swapaxes(0, 1)
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  return image
