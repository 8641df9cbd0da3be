"""One picture in every kind of file: the training and `predict` see the same pixels."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, PngImagePlugin

from keras_mobilevit import image_files
from keras_mobilevit.predict import load_image
from keras_mobilevit.preprocessing import resize_and_center_crop
from train.data import images

HEIGHT, WIDTH = 96, 128
# How a camera that was held in eight ways stores an upright picture.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture() -> Image.Image:
    """Returns a smooth picture with a red block, the same in no two corners."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([2 * x, 2 * y, 255 - x - y], axis=-1).clip(0, 255)
    pixels[20:50, 30:70] = (250, 30, 20)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha() -> Image.Image:
    image = picture()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def gray16() -> Image.Image:
    return Image.fromarray(
        (np.asarray(picture().convert("L"), int) * 257).astype(np.uint16)
    )


def bmp(bits: int, compression: int, table: bytes, data: bytes) -> bytes:
    start = 54 + len(table)
    header = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    header += struct.pack(
        "<IiiHHII", 40, WIDTH, HEIGHT, 1, bits, compression, len(data)
    )
    return header + struct.pack("<iiII", 2835, 2835, len(table) // 4, 0) + table + data


def palette_table() -> tuple[np.ndarray, bytes]:
    """Returns the picture's indices, bottom row first, and its table of 16 colors."""
    image = picture().quantize(16)
    colors = np.uint8(image.getpalette()[:48]).reshape(16, 3)
    table = np.zeros((16, 4), np.uint8)
    table[:, :3] = colors[:, ::-1]
    return np.asarray(image)[::-1], table.tobytes()


def bmp_4_bits() -> bytes:
    indices, table = palette_table()
    return bmp(4, 0, table, (16 * indices[:, ::2] + indices[:, 1::2]).tobytes())


def bmp_run_lengths() -> bytes:
    indices, table = palette_table()
    rows = [b"".join(bytes([1, i]) for i in row) + b"\0\0" for row in indices]
    return bmp(8, 1, table, b"".join(rows) + b"\0\1")


def bmp_16_bits() -> bytes:
    red, green, blue = np.moveaxis(np.asarray(picture())[::-1].astype(int) >> 3, -1, 0)
    return bmp(16, 0, b"", (red << 10 | green << 5 | blue).astype("<u2").tobytes())


def several(kind: str, image: Image.Image) -> bytes:
    other = image.rotate(180)
    return saved(image, kind, save_all=True, append_images=[other, other], duration=50)


KINDS = {
    "jpeg": lambda: saved(picture(), "JPEG", quality=95),
    "jpeg, progressive": lambda: saved(picture(), "JPEG", progressive=True),
    "jpeg, gray": lambda: saved(picture().convert("L"), "JPEG"),
    "jpeg, cmyk": lambda: saved(picture().convert("CMYK"), "JPEG", quality=95),
    "jpeg, two frames": lambda: several("MPO", picture()),
    "png": lambda: saved(picture(), "PNG"),
    "png, alpha": lambda: saved(with_alpha(), "PNG"),
    "png, gray and alpha": lambda: saved(with_alpha().convert("LA"), "PNG"),
    "png, palette": lambda: saved(picture().quantize(64), "PNG"),
    "png, palette with a hole": lambda: saved(
        picture().quantize(64), "PNG", transparency=3
    ),
    "png, 1 bit": lambda: saved(picture().convert("1"), "PNG"),
    "png, gray of 16 bits": lambda: saved(gray16(), "PNG"),
    "bmp": lambda: saved(picture(), "BMP"),
    "bmp, palette": lambda: saved(picture().quantize(64), "BMP"),
    "bmp, palette of 4 bits": bmp_4_bits,
    "bmp, gray": lambda: saved(picture().convert("L"), "BMP"),
    "bmp, 1 bit": lambda: saved(picture().convert("1"), "BMP"),
    "bmp, 16 bits": bmp_16_bits,
    "bmp, run lengths": bmp_run_lengths,
    "gif": lambda: saved(picture().quantize(64), "GIF"),
    "gif, animated": lambda: several("GIF", picture().quantize(64)),
    "webp": lambda: saved(picture(), "WEBP", quality=95),
    "webp, alpha": lambda: saved(with_alpha(), "WEBP", lossless=True),
    "webp, animated": lambda: several("WEBP", picture()),
}
MODES = {"gray": "L", "1 bit": "1"}


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decode(encoded):
    return images.decode(encoded), images.open_picture(encoded).size


@tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)]
)
def decode_window(encoded, window):
    picture = images.open_picture(encoded)
    return images.crop_and_resize(picture, window, window[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_give_the_same_pixels(kind, tmp_path):
    content = KINDS[kind]()
    (tmp_path / "picture").write_bytes(content)
    seen = load_image(str(tmp_path / "picture"))
    decoded, size = decode(content)
    assert size.numpy().tolist() == [HEIGHT, WIDTH]
    np.testing.assert_array_equal(decoded, seen)
    np.testing.assert_array_equal(images.decode(content), seen)  # without a graph
    # Not merely the same, but the picture, and not upside down.
    mode = next((mode for word, mode in MODES.items() if word in kind), "RGB")
    wanted = np.asarray(picture().convert(mode).convert("RGB"), np.float32)
    assert np.abs(seen - wanted).mean() < 16


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_pixels_become_means(kind):
    content = KINDS[kind]()
    seen = image_files.decode(content, max_pixels=WIDTH * HEIGHT // 4)
    parts = decode(content)[0].numpy()[: HEIGHT // 2 * 2, : WIDTH // 2 * 2]
    means = parts.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(seen[: HEIGHT // 2, : WIDTH // 2] - means).max() <= 1


def webp(width: int, height: int, **options) -> bytes:
    return saved(
        Image.new(options.pop("mode", "RGB"), (width, height)), "WEBP", **options
    )


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"mode": "RGBA"}, {"exif": b"Exif\0\0"}]
)
def test_the_limit_of_webp_is_checked_before_it_is_opened(options, monkeypatch):
    content = webp(70, 50, **options)
    monkeypatch.setattr(image_files, "MAX_WEBP_PIXELS", 70 * 50)
    assert image_files.decode(content).shape == (50, 70, 3)
    monkeypatch.setattr(image_files, "MAX_WEBP_PIXELS", 70 * 50 - 1)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ValueError, match="more than 3,499 pixels, the maximum"):
        image_files.decode(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_a_part_of_the_whole(kind):
    content = KINDS[kind]()
    whole = decode(content)[0].numpy().astype(int)
    part = decode_window(content, [10, 20, 40, 50]).numpy().astype(int)
    assert part.shape == (40, 50, 3)
    # At the edge of a window of a JPEG, colors are interpolated from one side only.
    assert np.abs(part - whole[10:50, 20:70]).mean() < 1


def stored(orientation: int, kind: str) -> bytes:
    image, turn = picture(), STORED[orientation]
    data = image.getexif()
    data[ExifTags.Base.Make] = "a camera"
    data[ExifTags.Base.Orientation] = orientation
    image = image if turn is None else image.transpose(turn)
    quality = {"lossless": True} if kind == "WEBP" else {}
    if kind == "JPEG":
        quality = {"quality": 95, "subsampling": 0}
    return saved(image, kind, exif=data, **quality)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_upright_however_the_camera_was_held(orientation, kind, tmp_path):
    content = stored(orientation, kind)
    (tmp_path / "photo").write_bytes(content)
    decoded, size = decode(content)
    assert size.numpy().tolist() == [HEIGHT, WIDTH]
    assert image_files.read_header(tmp_path / "photo").size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(decoded, load_image(str(tmp_path / "photo")))
    wanted = np.asarray(picture(), int)
    assert np.abs(decoded.numpy() - wanted).mean() < 2
    part = decode_window(content, [10, 20, 45, 64]).numpy().astype(int)
    assert np.abs(part - wanted[10:55, 20:84]).mean() < 2


def exif_segment(tiff: bytes) -> bytes:
    content = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def tiff(order: str, entries: list[tuple], offset: int = 8) -> bytes:
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, offset)
    rows = [
        struct.pack(f"{order}HHI", tag, kind, 1) + value for tag, kind, value in entries
    ]
    return head + struct.pack(f"{order}H", len(rows)) + b"".join(rows) + bytes(4)


SIDEWAYS = {
    "big-endian": tiff(">", [(0x010F, 2, b"a\0\0\0"), (0x0112, 3, b"\0\6\0\0")]),
    "little-endian": tiff("<", [(0x0112, 3, b"\6\0\0\0")]),
    "a long number": tiff(">", [(0x0112, 4, b"\0\0\0\6")]),
}
UPRIGHT = {
    "no such entry": tiff("<", [(0x010F, 2, b"a\0\0\0")]),
    "no such orientation": tiff("<", [(0x0112, 3, b"\x09\0\0\0")]),
    "an offset beyond the end": tiff("<", [(0x0112, 3, b"\6\0\0\0")], offset=2**31 - 9),
    "an offset of -1": tiff("<", [(0x0112, 3, b"\6\0\0\0")], offset=2**32 - 1),
    "nothing": b"",
    "half a header": b"II*\0",
}


@pytest.mark.parametrize("name", [*SIDEWAYS, *UPRIGHT])
@pytest.mark.parametrize("before", [b"", b"\xff\xfe\0\7hello"], ids=["", "comment"])
def test_exif_is_read_as_it_is_written_and_damage_means_upright(name, before):
    plain = saved(picture(), "JPEG", quality=95)
    segment = exif_segment((SIDEWAYS | UPRIGHT)[name])
    content = plain[:2] + before + segment + plain[2:]
    size = [WIDTH, HEIGHT] if name in SIDEWAYS else [HEIGHT, WIDTH]
    decoded, found = decode(content)
    assert found.numpy().tolist() == size
    assert list(decoded.shape) == [*size, 3]


def damaged() -> dict[str, bytes]:
    png, jpeg = saved(picture(), "PNG"), saved(picture(), "JPEG")
    flipped = bytearray(png)
    flipped[png.index(b"IDAT") + 6] ^= 0xFF
    return {
        "png, a flipped byte": bytes(flipped),
        "png, half": png[: len(png) // 2],
        "jpeg, half": jpeg[: len(jpeg) // 2],
        "jpeg, of a phone that saves HEIC": b"\0\0\0\x18ftypheic" + bytes(200),
        "too large": saved(Image.new("1", (15_000, 12_500)), "PNG"),
        "bmp, half": saved(picture(), "BMP")[:5000],
        "text": b"<html>404</html>",
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", damaged())
def test_what_cannot_be_decoded_is_an_error_that_names_the_file(kind, tmp_path):
    content = damaged()[kind]
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"picture\.jpg cannot be read as a picture: "):
        load_image(str(path))
    with pytest.raises(tf.errors.OpError):
        decode(content)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("jpeg, of a phone that saves HEIC", r"HEIF \(HEIC\) format. Save it as JPEG"),
        ("too large", "more than 178,956,970 pixels"),
        ("text", "in no known format. Expected one of .jpg, .jpeg, .png"),
    ],
)
def test_the_reason_is_told_in_words(kind, message):
    with pytest.raises(ValueError, match=message):
        image_files.decode(damaged()[kind])


@pytest.mark.parametrize("size", [(40, 40), (64, 32), (150, 200)])
@pytest.mark.parametrize("crop_fraction", [1.0, 256 / 288])
def test_the_training_crops_as_predict_does(size, crop_fraction):
    content = KINDS["jpeg"]()
    found = images.center_crop({"encoded": content}, size, crop_fraction)
    wanted = resize_and_center_crop(image_files.decode(content), size, crop_fraction)
    np.testing.assert_array_equal(found, np.round(wanted))


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/'
    b'02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    b' tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def png_with_text(key: str, text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    return saved(picture(), "PNG", pnginfo=info)


@pytest.mark.parametrize(
    "content",
    [
        lambda: saved(picture(), "JPEG", xmp=XMP),
        lambda: png_with_text("XML:com.adobe.xmp", XMP.decode()),
        lambda: png_with_text(
            "Raw profile type exif",
            "\nexif\n      32\n" + (b"Exif\0\0" + SIDEWAYS["little-endian"]).hex(),
        ),
    ],
    ids=["xmp in jpeg", "xmp in png", "text in png"],
)
def test_nothing_but_exif_turns_a_picture(content, tmp_path):
    content = content()
    (tmp_path / "photo").write_bytes(content)
    assert image_files.read_header(tmp_path / "photo").size == (WIDTH, HEIGHT)
    seen = load_image(str(tmp_path / "photo"))
    np.testing.assert_array_equal(decode(content)[0], seen)
    assert seen.shape == (HEIGHT, WIDTH, 3)


def test_a_comment_about_exif_is_no_exif():
    plain = saved(picture(), "JPEG")
    comment = b"\xff\xfe\0\x1aExifTool wrote this one."
    profile = b"\xff\xe2" + struct.pack(">H", 65_535) + bytes(65_533)
    segment = exif_segment(SIDEWAYS["big-endian"])
    content = plain[:2] + comment + profile + segment + plain[2:]
    decoded, size = decode(content)
    assert size.numpy().tolist() == [WIDTH, HEIGHT]
    np.testing.assert_array_equal(decoded, image_files.decode(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_images_with_too_many_pixels_are_refused(kind, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    content = saved(picture(), kind)
    for read in (
        images.decode,
        images.open_picture,
        lambda encoded: images.center_crop({"encoded": encoded}, (8, 8), 1.0),
    ):
        with pytest.raises((tf.errors.OpError, ValueError), match="more than|pixels"):
            read(tf.constant(content))


def test_exif_after_large_color_profiles():
    plain = saved(picture(), "JPEG")
    profile = b"\xff\xe2" + struct.pack(">H", 65_535) + bytes(65_533)
    content = plain[:2] + 3 * profile + exif_segment(SIDEWAYS["big-endian"]) + plain[2:]
    decoded, size = decode(content)
    assert size.numpy().tolist() == [WIDTH, HEIGHT]
    np.testing.assert_array_equal(decoded, image_files.decode(content))
