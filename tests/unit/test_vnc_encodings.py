"""Pixel formats and encodings of VNC, read back by decoders written from RFC 6143."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.vnc.encodings import SUPPORTED, Encoder
from pyvm.vnc.pixels import SERVER_FORMAT, PixelFormat, colour_map
from pyvm.vnc.protocol import Encoding, ProtocolError, rectangle, update
from tests.unit.vnc_support import Image, Viewer

RGB565 = PixelFormat(16, 16, False, True, (31, 63, 31), (11, 5, 0))
BGR233 = PixelFormat(8, 8, False, True, (7, 7, 3), (0, 3, 6))
BIG = PixelFormat(32, 24, True, True, (255, 255, 255), (24, 16, 8))
DEEP = PixelFormat(32, 30, False, True, (1023, 1023, 1023), (20, 10, 0))
FORMATS = (SERVER_FORMAT, RGB565, BGR233, BIG, DEEP, PixelFormat(32, 24, False, True, (255, 255, 255), (8, 16, 24)))


def picture(colours: int, height: int, width: int, seed: int) -> Image:
    generator = np.random.default_rng(seed)
    palette = generator.integers(0, 1 << 24, colours).astype(np.uint32)
    found: Image = palette[generator.integers(0, colours, (height, width))]
    return found


def show(encoder: Encoder, viewer: Viewer, encoding: Encoding, image: Image, form: PixelFormat) -> int:
    """Send a picture; return the size of its contents."""
    height, width = image.shape
    data = encoder.encode(encoding, form.convert(image), form)
    viewer.take(update(1) + rectangle(0, 0, width, height, encoding) + data)
    return len(data)


@pytest.mark.parametrize("encoding", SUPPORTED, ids=lambda encoding: encoding.name)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.dtype}-{form.depth}-{form.shifts}")
def test_what_is_written_can_be_read(encoding: Encoding, form: PixelFormat) -> None:
    encoder, viewer = Encoder(), Viewer(130, 70, form.dtype, form.compact)
    for number, colours in enumerate((1, 2, 3, 4, 5, 16, 17, 5000, 2, 1)):
        image = picture(colours, 70, 130, number)
        show(encoder, viewer, encoding, image, form)
        assert np.array_equal(viewer.image, form.convert(image))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SUPPORTED),
    st.integers(1, 80),
    st.integers(1, 80),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(0, 1 << 20),
)
def test_any_picture(encoding: Encoding, height: int, width: int, colours: list[int], seed: int) -> None:
    encoder, viewer = Encoder(), Viewer(width, height)
    for count in colours:
        image = picture(count, height, width, seed)
        show(encoder, viewer, encoding, image, SERVER_FORMAT)
        assert np.array_equal(viewer.image, image)


def test_plain_pictures_are_small_and_none_is_much_larger_than_raw() -> None:
    plain, noise = np.zeros((256, 256), np.uint32), picture(1 << 20, 256, 256, 3)
    for encoding in SUPPORTED[1:]:
        assert show(Encoder(), Viewer(256, 256), encoding, plain, SERVER_FORMAT) < 2000
        assert show(Encoder(), Viewer(256, 256), encoding, noise, SERVER_FORMAT) < 256 * 256 * 4 * 1.01


def test_the_compression_level_is_the_viewers() -> None:
    image = picture(200, 256, 256, 1)
    image[::2] = image[1::2]
    sizes = []
    for level in (0, 1, 9):
        encoder = Encoder()
        encoder.level = level
        sizes.append(show(encoder, Viewer(256, 256), Encoding.ZLIB, image, SERVER_FORMAT))
    assert sizes[0] > sizes[1] > sizes[2]


def test_colours_in_smaller_pixels() -> None:
    image = np.array([[0xFFFFFF, 0x000000, 0xFF0000, 0x00FF00, 0x0000FF, 0x808080]], np.uint32)
    assert RGB565.convert(image).tolist() == [[0xFFFF, 0, 0xF800, 0x07E0, 0x001F, 0x8410]]
    assert BGR233.convert(image).tolist() == [[0xFF, 0, 7, 7 << 3, 3 << 6, 4 | 4 << 3 | 2 << 6]]
    assert BIG.convert(image[:, 2:3]).tobytes() == b"\xff\0\0\0"
    assert DEEP.convert(image[:, :1]).tolist() == [[(1 << 30) - 1]]


def test_the_format_that_is_sent_first() -> None:
    assert SERVER_FORMAT.encode() == bytes((32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0))
    assert PixelFormat.decode(SERVER_FORMAT.encode()) == SERVER_FORMAT


def test_formats_that_cannot_be_written() -> None:
    for wrong in (
        struct.pack(">4B3H3B3x", 24, 24, 0, 1, 255, 255, 255, 16, 8, 0),
        struct.pack(">4B3H3B3x", 0, 0, 0, 1, 255, 255, 255, 16, 8, 0),
        struct.pack(">4B3H3B3x", 32, 24, 0, 1, 255, 255, 255, 25, 8, 0),
        struct.pack(">4B3H3B3x", 8, 8, 0, 1, 7, 7, 3, 255, 3, 6),
        struct.pack(">4B3H3B3x", 16, 16, 0, 1, 65535, 63, 31, 11, 5, 0),
    ):
        with pytest.raises(ProtocolError):
            PixelFormat.decode(wrong)
    # A colour that has no values at all gets all of them.
    assert PixelFormat.decode(struct.pack(">4B3H3B3x", 32, 24, 0, 1, 0, 0, 0, 16, 8, 0)) == SERVER_FORMAT


@settings(max_examples=200)
@given(st.binary(min_size=16, max_size=16))
def test_any_format_is_refused_or_works(data: bytes) -> None:
    try:
        form = PixelFormat.decode(data)
    except ProtocolError:
        return
    pixels = form.convert(np.array([[0x123456, 0xFFFFFF]], np.uint32))
    assert pixels.nbytes == 2 * form.bits // 8


def test_the_colour_map_says_what_numbers_of_colours_mean() -> None:
    viewer = Viewer(1, 1)
    viewer.take(colour_map())
    assert len(viewer.colours) == 256
    assert viewer.colours[0] == (0, 0, 0)
    assert viewer.colours[0xFF] == (0xFFFF, 0xFFFF, 0xFFFF)
    assert viewer.colours[7] == (0xFFFF, 0, 0)
    mapped = PixelFormat.decode(struct.pack(">4B3H3B3x", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0))
    numbers = mapped.convert(np.array([[0xFF0000, 0x00FF00, 0x0000FF]], np.uint32)).tolist()[0]
    assert [viewer.colours[number] for number in numbers] == [(0xFFFF, 0, 0), (0, 0xFFFF, 0), (0, 0, 0xFFFF)]
    # As many colours, in pixels of the size that the viewer asked for.
    wide = PixelFormat.decode(struct.pack(">4B3H3B3x", 16, 8, 0, 0, 0, 0, 0, 0, 0, 0))
    assert wide.convert(np.array([[0xFFFFFF]], np.uint32)).tobytes() == b"\xff\0"
