"""Decoding: the pixels of torchvision's loader, and short reasons for everything else."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from sanrobust.data import decode as decoding
from sanrobust.data.decode import ImageError, decode
from image_files import noise, png_header_claiming, save_noise


def _palette_with_transparency(image: Image.Image) -> Image.Image:
    palette = image.quantize(8)
    palette.info["transparency"] = bytes(range(8))
    return palette


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "rgb.jpg": lambda image: image,
    "rgb.png": lambda image: image,
    "rgb.bmp": lambda image: image,
    "rgb.ppm": lambda image: image,
    "rgb.webp": lambda image: image,
    "rgb.tiff": lambda image: image,
    "cmyk.jpg": lambda image: image.convert("CMYK"),
    "grey.jpg": lambda image: image.convert("L"),
    "grey-alpha.png": lambda image: image.convert("LA"),
    "alpha.png": lambda image: image.convert("RGBA"),
    "palette.png": lambda image: image.quantize(8),
    "palette-transparent.png": _palette_with_transparency,
    "one-bit.png": lambda image: image.convert("1"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_8_bit_file_decodes_as_in_torchvision(tmp_path: Path, name: str) -> None:
    KINDS[name](noise((21, 13))).save(tmp_path / name)
    decoded = decode(tmp_path / name)
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(default_loader(str(tmp_path / name))))


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    noise((20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg").size == (20, 10)


@pytest.mark.parametrize("name, dtype", [
    ("little.png", "<u2"), ("little.tiff", "<u2"), ("big.tiff", ">u2"), ("deep.pgm", "<u2")])
def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path, name: str, dtype: str) -> None:
    samples = np.array([[0, 257, 32768, 65278, 65535]], dtype=dtype)
    if name.endswith(".pgm"):
        header = f"P5 {samples.shape[1]} 1 65535\n".encode()
        (tmp_path / name).write_bytes(header + samples.astype(">u2").tobytes())
    else:
        Image.fromarray(samples).save(tmp_path / name)
    red = np.asarray(decode(tmp_path / name))[..., 0]
    assert red.tolist() == [[0, 1, 128, 254, 255]]


def test_32_bit_integers_in_the_16_bit_range_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(tmp_path / "deep.tiff")
    assert np.asarray(decode(tmp_path / "deep.tiff"))[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("values, dtype", [([[0, 70000]], np.int32), ([[-1, 5]], np.int32),
                                           ([[0.0, 1.0]], np.float32)])
def test_samples_of_no_defined_range_are_refused(
        tmp_path: Path, values: list[list[float]], dtype: type[np.generic]) -> None:
    Image.fromarray(np.array(values, dtype=dtype)).save(tmp_path / "odd.tiff")
    with pytest.raises(ImageError, match="samples"):
        decode(tmp_path / "odd.tiff")


def test_only_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    first, second = noise((8, 8), seed=1), noise((8, 8), seed=2)
    first.save(tmp_path / "moving.png", save_all=True, append_images=[second])
    assert decode(tmp_path / "moving.png").tobytes() == first.tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_a_truncated_file_is_an_image_error(tmp_path: Path, suffix: str) -> None:
    path = save_noise(tmp_path / f"cut{suffix}", size=(64, 64))
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(ImageError):
        decode(path)


@pytest.mark.parametrize("content, reason", [
    (b"", "empty"), (b"this is text, not an image", "known format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
    (b"\xff\xd8\xff\xe0 nothing follows", "known format|damaged|read")])
def test_content_that_is_no_image_has_a_short_reason(
        tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        decode(tmp_path / "odd.jpg")
    assert len(str(caught.value)) < 130 and "\n" not in str(caught.value)


def test_a_file_that_claims_too_many_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than 178956970 pixels"):
        decode(png_header_claiming(tmp_path / "bomb.png", 60_000, 60_000))


def test_a_missing_file_and_a_folder_are_image_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        decode(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="not a regular file"):
        decode(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        decode(tmp_path / "pipe.png")


def test_damage_is_never_reported_on_the_terminal(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.tiff"
    noise((64, 64)).save(path, compression="jpeg")
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in range(8, len(whole), len(whole) // 40):
            path.write_bytes(whole[:length] + bytes(len(whole) - length))
            try:
                decode(path)
            except ImageError:
                pass
    assert capfd.readouterr() == ("", "")


def test_random_damage_gives_an_image_or_an_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".tiff", ".webp", ".ppm", ".bmp"):
        path = save_noise(tmp_path / f"damaged{suffix}")
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                assert decode(path).mode == "RGB"
            except ImageError as error:
                assert str(error)


def test_the_file_is_closed_after_decoding(tmp_path: Path) -> None:
    good, bad = save_noise(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    decode(good).load()
    with pytest.raises(ImageError):
        decode(bad)
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert len(after) == len(before)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_noise(tmp_path / "a.png", (12, 10))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 120)
    assert decode(path).size == (12, 10)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 119)
    with pytest.raises(ImageError, match="more than 119 pixels"):
        decode(path)


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(("error", "full", "trouble"), [
    (OSError(errno.EMFILE, "Too many open files"), False, "open files"),
    (RuntimeError("can't start new thread"), False, "not enough processes and threads"),
    (ValueError("a broken file"), True, "not enough memory"),
    (MemoryError(), True, "not enough memory"),
    (MemoryError(), False, None),  # the file asked for more than any image has
    (ValueError("a broken file"), False, None)])
def test_what_the_machine_lacks_is_told_from_what_is_in_the_file(
        monkeypatch: pytest.MonkeyPatch, error: Exception, full: bool,
        trouble: str | None) -> None:
    if full:
        monkeypatch.setattr(np, "empty", no_memory)
    found = decoding._trouble(error, 100)
    assert (found is None) == (trouble is None) and (trouble or "") in (found or "")


def test_a_process_without_standard_error_decodes_tiff_too(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(number: int) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    noise((6, 4)).save(tmp_path / "a.tif")
    monkeypatch.setattr(os, "dup", closed)
    assert decode(tmp_path / "a.tif").size == (6, 4)
