"""The working space, sRGB-encoded RGB or grey in 0..1, in which pictures are restored; and the way back.

Back goes only what was changed: the original's samples plus the difference that restoring made. So samples that were
not changed keep their value to the last bit, in whatever space, depth or gamut they are.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from pipeline.imaging.original import COLOURS, Original, Samples, Space

Floats = npt.NDArray[np.float32]

STRIP = 1 << 20
"""Pixels that are converted at a time."""
LARGE = 0.125
"""A change after which nothing of a colour's excess over the working space stays."""
NO_SAMPLE = 16
"""A float so many times white means something else, and is not touched; so is one as far below black as white above."""
INTENT = 1
"""Relative colorimetric: its tables there and back are each other's inverse, the perceptual ones are not."""
BLACK_POINT = 0x2000
"""lcms: black becomes black."""
NO_CACHE = 0x0040
SAME = 0.6 / 255
"""A profile that moves no colour further than this is that of sRGB."""
_SPACES: dict[bytes, Space] = {b"GRAY": "grey", b"RGB ": "rgb", b"CMYK": "cmyk", b"Lab ": "lab"}


class Working(NamedTuple):
    """A picture in the working space."""

    pixels: Samples
    """[H, W, 1 or 3], uint8 where the original is plain, else uint16; white is the largest value."""
    plain: bool
    """The original's samples are these: nothing was converted."""
    notes: tuple[str, ...]
    """What was done, in words."""


def to_working(original: Original) -> Working:
    """An original's colours in the working space; alpha and what is no colour is left out.

    Where samples are no numbers, they are black (and missing, see `decode_image`).
    """
    path = _path(original)
    if path.plain:
        return Working(np.ascontiguousarray(original.colours), True, path.notes)
    height, width = original.size
    pixels = np.empty((height, width, 1 if original.space == "grey" else 3), np.uint16)
    for rows in _strips(original):
        pixels[rows] = np.rint(path.forward(original.colours[rows]).clip(0, 1) * 65535)
    return Working(pixels, False, path.notes)


def from_working(original: Original, before: Samples, after: Samples) -> Original:
    """The original with what restoring changed.

    Args:
        original: the file's content.
        before: [H, W, 1 or 3], as `to_working` gave it.
        after: the same, restored, of the same type. If it has colours and the original is grey, so is the result in
            colour, without the profile, which described greys.
    """
    if after.shape[2] == 3 and original.space == "grey":
        return _coloured(original, after)
    path = _path(original)
    if path.plain:
        return original.with_colours(after)
    colours = original.colours.copy()
    scale = np.float32(np.iinfo(before.dtype).max)
    for rows in _strips(original):
        changed = (before[rows] != after[rows]).any(2)
        if changed.any():
            old = colours[rows][changed][:, None]
            was, now = (part[rows][changed][:, None].astype(np.float32) / scale for part in (before, after))
            colours[rows][changed] = _changed(path, old, was, now, original.white)[:, 0]
    return original.with_colours(colours)


def enlarged(original: Original, after: Samples, notes: list[str]) -> Original:
    """The original with larger colours.

    Args:
        original: the file's content.
        after: [sH, sW, 1 or 3] in the working space. Colours beyond it are lost. Alpha and other channels are
            interpolated; the resolution grows along.
        notes: told what could not be kept.
    """
    height, width = after.shape[:2]
    further = original.samples[..., COLOURS[original.space] :]
    wider = [_resized(further[..., channel], (width, height)) for channel in range(further.shape[2])]
    if wider:
        notes.append("alpha and further channels were interpolated, for the picture is larger")
    times = height / original.size[0], width / original.size[1]
    base = np.empty((height, width, COLOURS[original.space]), original.samples.dtype)
    metadata = original.metadata.enlarged((height, width), times, notes)
    samples = np.stack([*np.moveaxis(base, 2, 0), *wider], axis=2)
    larger = dataclasses.replace(original, samples=samples, metadata=metadata, missing=None)
    if after.shape[2] == 3 and original.space == "grey":
        return _coloured(larger, after)
    path = _path(original)
    if path.plain:
        return larger.with_colours(after)
    scale = np.float32(np.iinfo(after.dtype).max)
    ink = np.stack([_resized(original.colours[..., channel], (width, height)) for channel in range(base.shape[2])], 2)
    for rows in _strips(larger):
        values = path.backward(after[rows].astype(np.float32) / scale, ink[rows])
        base[rows] = _as_samples(values.clip(0, original.white), base.dtype)
    return larger.with_colours(base)


def _resized(channel: Samples, size: tuple[int, int]) -> Samples:
    """[H, W] of any type at another size, as (width, height)."""
    values = np.nan_to_num(channel.astype(np.float32), posinf=0, neginf=0)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    limits = (values.min(), values.max()) if values.size else (0, 0)
    return _as_samples(np.asarray(image).clip(*limits), channel.dtype)


def rgb_of(pixels: Samples) -> npt.NDArray[np.uint8]:
    """[H, W, 1 or 3] of 8 or 16 bits as [H, W, 3] of 8."""
    eight = eight_bits(pixels)
    return np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight


def eight_bits(pixels: Samples) -> npt.NDArray[np.uint8]:
    """uint8 or uint16 samples as uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    rounded: npt.NDArray[np.uint8] = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return rounded


def _changed(path: _Path, old: Samples, was: Floats, now: Floats, white: float) -> Samples:
    """Samples [n, 1, C] after a change in the working space.

    What the working space could not hold of them (colours beyond it, the share of black in CMYK) stays as far as the
    change is small.
    """
    beyond = np.nan_to_num(old.astype(np.float32), posinf=0, neginf=0) - path.backward(was, old)
    stays = (1 - np.abs(now - was).max(2, keepdims=True) / LARGE).clip(0, 1)
    new = path.backward(now, old) + beyond * stays
    if np.issubdtype(old.dtype, np.floating):  # they may lie outside black and white, or mean that there is nothing
        kept = np.nan_to_num(old.astype(np.float32), posinf=0, neginf=0)
        new = new.clip(np.minimum(0, kept), np.maximum(white, kept))
        return np.where((kept < -white) | (kept > NO_SAMPLE * white), old, _as_samples(new, old.dtype))
    return _as_samples(new.clip(0, white), old.dtype)


def _coloured(original: Original, after: Samples) -> Original:
    scale = np.iinfo(after.dtype).max
    deep = original.bits > 8
    target = np.uint16 if deep else np.uint8
    white = np.iinfo(target).max
    colours = np.rint(after.astype(np.float32) * (white / scale)).astype(target) if white != scale else after
    further = original.samples[..., 1:]
    if further.shape[2]:
        further = np.rint(further.astype(np.float32) * (white / original.white)).astype(target)
    return dataclasses.replace(
        original,
        samples=np.concatenate([colours, further], axis=2),
        space="rgb",
        white=float(white),
        bits=16 if deep else 8,
        metadata=dataclasses.replace(original.metadata, icc=None),
    )


def _as_samples(values: Floats, dtype: np.dtype[Any]) -> Samples:
    return values.astype(dtype) if np.issubdtype(dtype, np.floating) else np.rint(values).astype(dtype)


def _strips(original: Original) -> Iterator[slice]:
    height, width = original.size
    step = max(1, STRIP // max(1, width))
    for top in range(0, height, step):
        yield slice(top, top + step)


class _Path(NamedTuple):
    """From an original's colours to the working space and back."""

    plain: bool
    forward: Callable[[Samples], Floats]
    """[n, W, C] samples -> [n, W, 1 or 3]."""
    backward: Callable[[Floats, Samples], Floats]
    """[n, W, 1 or 3] and the samples that were there -> [n, W, C] in the samples' unit."""
    notes: tuple[str, ...]


def _path(original: Original) -> _Path:
    space, white, icc = original.space, original.white, original.metadata.icc
    notes: list[str] = []
    if icc is not None:
        kind = _SPACES.get(icc[16:20])
        if kind != space:
            notes.append(f"its colour profile is for {(kind or 'other')} and not used")
            icc = None
        elif space in ("rgb", "grey") and (usable := _is_working(icc, space)) is not False:
            if usable is None:
                notes.append("its colour profile is broken and not used")
            icc = None
    if space == "lab":
        return _Path(
            False, lambda x: _lab_to_rgb(x, white), lambda y, _: _rgb_to_lab(y, white), ("converted from Lab",)
        )
    if space == "cmyk" and (icc is None or not _can_return(icc, space)):
        notes.append("converted from CMYK without a profile")
        return _Path(
            False,
            lambda x: _cmyk_to_rgb(x.astype(np.float32) / np.float32(white)),
            lambda y, x: _rgb_to_cmyk(y, x, white),
            tuple(notes),
        )
    if icc is not None and not _can_return(icc, space):
        notes.append("its colour profile has no way back and is not used")
        icc = None
    if icc is not None:
        profile = icc
        notes.append(f"converted from {space} by its profile ({_name(icc)})")
        return _Path(
            False,
            lambda x: _forward(x, white, profile, space),
            lambda y, _: _backward(y, white, profile, space),
            tuple(notes),
        )
    plain = original.samples.dtype == np.uint8 and white == 255
    scale = np.float32(white)
    return _Path(
        plain,
        lambda x: np.nan_to_num(x.astype(np.float32), posinf=0, neginf=0) / scale,
        lambda y, _: y * scale,
        tuple(notes),
    )


@functools.lru_cache(maxsize=1)
def _srgb() -> bytes:
    import imagecodecs

    profile: bytes = imagecodecs.cms_profile("srgb")
    return profile


def _transform(pixels: Samples, profile: bytes, space: Space, other: bytes, target: Space) -> Floats:
    """[n, W, C] of one profile to another; CMYK in and out as uint16, all else as float32 in 0..1."""
    import imagecodecs

    names = {"grey": "gray"}
    shaped = pixels[..., 0] if space == "grey" else pixels
    out = imagecodecs.cms_transform(
        np.ascontiguousarray(shaped),
        profile,
        other,
        colorspace=names.get(space, space),
        outcolorspace=names.get(target, target),
        outdtype="u2" if target == "cmyk" else "f4",
        intent=INTENT,
        flags=BLACK_POINT | NO_CACHE,
    )
    floats: Floats = out.astype(np.float32, copy=False)
    return floats[..., None] if target == "grey" else floats


def _forward(samples: Samples, white: float, profile: bytes, space: Space) -> Floats:
    scaled = np.nan_to_num(samples.astype(np.float32), posinf=0, neginf=0) / np.float32(white)
    if space == "cmyk":
        return _transform(np.rint(scaled.clip(0, 1) * 65535).astype(np.uint16), profile, space, _srgb(), "rgb")
    rgb = _transform(scaled, profile, space, _srgb(), "rgb")
    return rgb[..., :1] if space == "grey" else rgb


def _backward(pixels: Floats, white: float, profile: bytes, space: Space) -> Floats:
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    out = _transform(rgb, _srgb(), "rgb", profile, space)
    return out * np.float32(white / (65535 if space == "cmyk" else 1))


@functools.lru_cache(maxsize=64)
def _is_working(profile: bytes, space: Space) -> bool | None:
    """Whether a profile says what sRGB says; None if it cannot be used at all."""
    axis = np.linspace(0, 1, 9, dtype=np.float32)
    grid = axis[None, :, None] if space == "grey" else np.stack(np.meshgrid(axis, axis, axis), -1).reshape(1, -1, 3)
    try:
        moved = _forward(grid, 1.0, profile, space)
    except Exception:  # imagecodecs' CmsError, or a broken table
        return None
    return bool(np.abs(moved - grid).max() <= SAME)


@functools.lru_cache(maxsize=64)
def _can_return(profile: bytes, space: Space) -> bool:
    """Whether a profile leads to its space, too: those of scanners may not."""
    try:
        _backward(np.full((1, 1, 3), 0.5, np.float32), 1.0, profile, space)
        _forward(np.full((1, 1, COLOURS[space]), 0.5, np.float32), 1.0, profile, space)
    except Exception:
        return False
    return True


def _name(profile: bytes) -> str:
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()[:80] or "unnamed"
    except Exception:
        return "unnamed"


@functools.lru_cache(maxsize=1)
def _lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _lab_to_rgb(samples: Samples, white: float) -> Floats:
    values, half = samples.astype(np.float32), np.float32((white + 1) / 2)
    lightness = values[..., :1] * np.float32(100 / white)
    return _transform(
        np.concatenate([lightness, (values[..., 1:3] - half) * (128 / half)], 2), _lab_profile(), "lab", _srgb(), "rgb"
    )


def _rgb_to_lab(pixels: Floats, white: float) -> Floats:
    lab, half = _transform(pixels, _srgb(), "rgb", _lab_profile(), "lab"), np.float32((white + 1) / 2)
    return np.concatenate([lab[..., :1] * np.float32(white / 100), lab[..., 1:] * (half / 128) + half], 2)


def _cmyk_to_rgb(ink: Floats) -> Floats:
    rgb: Floats = (1 - ink[..., :3]) * (1 - ink[..., 3:4])
    return rgb


def _rgb_to_cmyk(pixels: Floats, samples: Samples, white: float) -> Floats:
    """With as much black as there was, unless the colour is lighter than that allows."""
    black = np.minimum(samples[..., 3:4] / np.float32(white), 1 - pixels.max(2, keepdims=True)).clip(0, 1)
    ink = 1 - pixels / (1 - black).clip(1e-4, None)
    return np.concatenate([ink.clip(0, 1), black], axis=2) * np.float32(white)
