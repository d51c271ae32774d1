import io
import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxzoo.data.sources.images import read_image, safe_join
from jaxzoo.errors import CorruptRecord, UserError


def scene(height=60, width=40):
  """A smooth picture that survives JPEG, different in every corner."""
  y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
  return np.uint8(np.stack([255 * y, 255 * x, 255 * (1 - x * y)], axis=-1))


def encoded(image, kind, **options):
  buffer = io.BytesIO()
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  image.save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
  def write(data, name='picture.jpg'):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name

  return write


def assert_similar(image, want, tolerance):
  assert image.dtype == np.uint8
  assert image.shape == want.shape
  assert image.flags.c_contiguous
  assert np.abs(image.astype(int) - want).max() <= tolerance


@pytest.mark.parametrize(
  'kind, options, tolerance',
  [
    ('JPEG', {'quality': 95}, 8),
    ('JPEG', {'quality': 95, 'progressive': True}, 8),
    ('PNG', {}, 0),
    ('BMP', {}, 0),
    ('WEBP', {'lossless': True}, 0),
    ('TIFF', {}, 0),
    ('PPM', {}, 0),
  ],
)
def test_formats_are_told_by_content_not_by_name(
  write, kind, options, tolerance
):
  path = write(encoded(scene(), kind, **options), 'picture.jpg')
  assert_similar(read_image(path), scene(), tolerance)
  assert_similar(read_image(str(path)), scene(), tolerance)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_grayscale_is_repeated_over_the_channels(write, kind):
  gray = Image.fromarray(scene()).convert('L')
  image = read_image(write(encoded(gray, kind)))
  assert_similar(image, np.repeat(np.asarray(gray)[..., None], 3, -1), 3)
  assert (image == image[..., :1]).all()


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk_becomes_rgb(write, kind):
  cmyk = Image.fromarray(scene()).convert('CMYK')
  path = write(encoded(cmyk, kind))
  assert_similar(read_image(path), scene(), 12)


def test_transparency_is_dropped(write):
  alpha = np.full((60, 40, 1), 7, np.uint8)
  path = write(encoded(np.concatenate([scene(), alpha], -1), 'PNG'))
  assert_similar(read_image(path), scene(), 0)


def test_palettes_and_bitmaps_become_rgb(write):
  palette = Image.fromarray(scene()).quantize(64)
  path = write(encoded(palette, 'GIF'))
  assert_similar(read_image(path), np.asarray(palette.convert('RGB')), 0)
  bitmap = Image.fromarray(scene()[..., 0] > 99)
  image = read_image(write(encoded(bitmap, 'PNG')))
  assert set(np.unique(image)) == {0, 255}


@pytest.mark.parametrize('shape', [(30, 20), (30, 20, 3)])
@pytest.mark.parametrize('suffix', ['.png', '.tiff', '.pgm'])
def test_sixteen_bits_keep_the_upper_eight(write, shape, suffix):
  if suffix == '.pgm' and len(shape) == 3:
    suffix = '.ppm'
  deep = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
  ok, data = cv2.imencode(suffix, deep)
  assert ok
  image = read_image(write(data.tobytes()))
  want = np.broadcast_to(
    (deep >> 8).reshape(30, 20, -1)[..., ::-1], (30, 20, 3)
  )
  assert_similar(image, want, 1)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_exif_orientation_is_applied(write, kind, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(scene())
  data = encoded(stored, kind, exif=exif)
  stored.getexif()[0x0112] = orientation
  want = np.asarray(ImageOps.exif_transpose(stored))
  assert want.shape[0] == (60 if orientation < 5 else 40)
  tolerance = 0 if kind in ('PNG', 'TIFF') else 16
  assert_similar(read_image(write(data)), want, tolerance)


def test_a_damaged_exif_block_does_not_cost_the_picture(write):
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encoded(scene(), 'JPEG', quality=95, exif=exif)
  at = data.index(b'Exif\0\0') + 6
  path = write(data[:at] + b'\xff' * 8 + data[at + 8 :])
  assert_similar(read_image(path), scene(), 8)


def test_one_pixel_is_a_picture(write):
  pixel = np.uint8([[[200, 100, 50]]])
  assert_similar(read_image(write(encoded(pixel, 'PNG'))), pixel, 0)
  assert read_image(write(encoded(pixel, 'JPEG'))).shape == (1, 1, 3)


def test_every_call_gives_an_array_of_its_own(write):
  for kind in ('JPEG', 'PNG'):
    path = write(encoded(scene(), kind))
    read_image(path)[:] = 0
    assert read_image(path).any()


@pytest.mark.parametrize('share', [0.02, 0.2, 0.5, 0.9, 0.99, 'all but 2'])
@pytest.mark.parametrize('progressive', [False, True])
def test_a_truncated_jpeg_is_never_a_half_grey_picture(
  write, share, progressive
):
  noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
  data = encoded(noise, 'JPEG', quality=90, progressive=progressive)
  cut = len(data) - 2 if share == 'all but 2' else int(share * len(data))
  with pytest.raises(CorruptRecord):
    read_image(write(data[:cut]))


def test_a_truncated_jpeg_with_an_end_marker_is_refused_too(write):
  noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
  data = encoded(noise, 'JPEG', quality=90)
  with pytest.raises(CorruptRecord, match='premature end'):
    read_image(write(data[: len(data) // 2] + b'\xff\xd9'))


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'BMP', 'TIFF', 'GIF'])
def test_other_truncated_formats_are_refused(write, kind):
  noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
  data = encoded(noise, kind)
  for share in (0.01, 0.3, 0.7):
    with pytest.raises(CorruptRecord):
      read_image(write(data[: int(share * len(data))]))


def png_header(width, height):
  def chunk(name, data):
    crc = zlib.crc32(name + data)
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', crc)

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  body = chunk(b'IDAT', zlib.compress(bytes(1000)))
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + body


def test_a_bomb_is_refused_by_its_header(write):
  with pytest.raises(CorruptRecord, match='9000 x 9000.*over the limit'):
    read_image(write(png_header(9000, 9000)))
  with pytest.raises(CorruptRecord, match='exceeds limit'):
    read_image(write(png_header(20000, 20000)))
  data = bytearray(encoded(scene(), 'JPEG'))
  at = data.index(b'\xff\xc0') + 5
  data[at : at + 4] = struct.pack('>HH', 60000, 60000)
  with pytest.raises(CorruptRecord, match='60000 x 60000.*over the limit'):
    read_image(write(bytes(data)))


def test_the_limit_of_pixels_can_be_set(write):
  for kind in ('JPEG', 'PNG'):
    path = write(encoded(scene(), kind))
    assert read_image(path, max_pixels=2400).shape == (60, 40, 3)
    with pytest.raises(CorruptRecord, match='2,400 pixels.*limit of 2,399'):
      read_image(path, max_pixels=2399)


@pytest.mark.parametrize(
  'data, reason',
  [
    (b'', 'empty file'),
    (b'hello, I am a text', 'not an image of a known format'),
    (b'\xff\xd8\xff', 'not an image of a known format'),
    (b'\xff\xd8\xff' + bytes(5000), None),
    (bytes(5000), 'not an image of a known format'),
    (b'\x89PNG\r\n\x1a\n', None),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'known format'),
  ],
)
def test_what_is_no_image_says_so(write, data, reason):
  path = write(data)
  with pytest.raises(CorruptRecord, match=reason) as info:
    read_image(path)
  assert info.value.path == str(path)
  assert str(path) in str(info.value)


def test_missing_files_folders_and_pipes_do_not_hang(tmp_path):
  with pytest.raises(CorruptRecord, match='No such file'):
    read_image(tmp_path / 'missing.jpg')
  with pytest.raises(CorruptRecord, match='not a regular file'):
    read_image(tmp_path)
  os.mkfifo(tmp_path / 'pipe.jpg')
  with pytest.raises(CorruptRecord, match='not a regular file'):
    read_image(tmp_path / 'pipe.jpg')
  with pytest.raises(CorruptRecord, match='null'):
    read_image('a\0b.jpg')


def test_the_error_crosses_process_borders(tmp_path):
  with pytest.raises(CorruptRecord) as info:
    read_image(tmp_path / 'missing.jpg')
  copy = pickle.loads(pickle.dumps(info.value))
  assert (copy.path, copy.reason) == (info.value.path, info.value.reason)


@pytest.mark.parametrize(
  'relative', ['a.jpg', 'b/c.jpg', 'b/../a.jpg', './a.jpg', 'missing.jpg']
)
def test_safe_join_resolves_paths_inside(tmp_path, relative):
  (tmp_path / 'b').mkdir()
  want = os.path.realpath(os.path.join(tmp_path, relative))
  assert str(safe_join(tmp_path, relative)) == want


@pytest.mark.parametrize(
  'relative', ['../a', 'b/../../a', '/etc/passwd', '..', 'a\0b']
)
def test_safe_join_refuses_to_leave(tmp_path, relative):
  with pytest.raises(UserError):
    safe_join(tmp_path / 'root', relative)


def test_safe_join_is_not_fooled_by_a_common_prefix(tmp_path):
  with pytest.raises(UserError, match='leaves its folder'):
    safe_join(tmp_path / 'data', '../data-private/a.jpg')


def test_safe_join_refuses_absolute_paths_even_inside(tmp_path):
  with pytest.raises(UserError, match='must be relative'):
    safe_join(tmp_path, str(tmp_path / 'a.jpg'))


def test_safe_join_follows_links_inside_only(tmp_path):
  root = tmp_path / 'root'
  (root / 'real').mkdir(parents=True)
  (root / 'inside').symlink_to(root / 'real')
  (root / 'outside').symlink_to(tmp_path)
  (root / 'loop').symlink_to(root / 'loop')
  (tmp_path / 'door').symlink_to(root)
  assert safe_join(root, 'inside/a.jpg') == root.resolve() / 'real' / 'a.jpg'
  assert safe_join(tmp_path / 'door', 'real') == root.resolve() / 'real'
  with pytest.raises(UserError, match='leaves its folder'):
    safe_join(root, 'outside/a.jpg')
  safe_join(root, 'loop')  # no endless recursion
