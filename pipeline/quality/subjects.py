"""Faces and text: where a person must look if the result is uncertain, since invented ones mislead most.

Faces are looked for by scikit-image's cascade of local binary patterns: frontal ones, of 64 photographs it saw 11 with
large faces, and 5 where there were none. Text is looked for by RapidOCR's detector, where asked for. The words of the
caption tell of both, too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.extras import check_extra

Pixels = npt.NDArray[np.uint8]

SIDE = 320
"""Pixels of the longest side of what is looked at, which decides how long it takes."""
_LEAST_FACE = 28
_SURE_OF_TEXT = 0.8
_CASCADE = "data/lbpcascade_frontalface_opencv.xml"
_FACES = re.compile(
    r"\b(faces?|portraits?|m[ae]n|wom[ae]n|boys?|girls?|child(ren)?|kids?|bab(y|ies)|toddlers?|people|persons?|lad(y|ies)|"
    r"gentlem[ae]n|famil(y|ies)|bride|groom|soldiers?|crowd|mother|father|sisters?|brothers?|self-portrait)\b",
    re.IGNORECASE,
)
_TEXT = re.compile(
    r"\b(text|letters?|lettering|inscri(bed|ptions?)|hand-?writ(ing|ten)|manuscripts?|newspapers?|documents?|posters?|"
    r"signs?|signboards?|billboards?|banners?|captioned|labels?|postcards?|stamps?|maps?|charts?|pages?|titles?|words?)\b",
    re.IGNORECASE,
)

Kind = Literal["face", "text"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """Something that must not be invented."""

    kind: Kind
    box: tuple[int, int, int, int] | None
    """Top, left, bottom, right in pixels; None where only the caption tells of it."""


class SubjectFinder:
    """Looks for faces and text; several threads may ask at a time."""

    def __init__(self, find_text: bool = False) -> None:
        """`find_text`: in the picture too, by RapidOCR.

        Raises:
            RecipeError: it is not installed.
        """
        from skimage.feature import Cascade  # takes a while

        self._faces = Cascade(str(_package_folder("skimage") / _CASCADE))
        self._text = _text_detector() if find_text else None
        self._reading = threading.Lock()  # RapidOCR keeps what it is at in its own fields

    def __call__(self, image: Pixels, caption: str | None) -> list[Subject]:
        """What is likely in an image [H, W, 3]: found in it, or told by its caption (in English)."""
        height, width = image.shape[:2]
        scale = max(1.0, max(height, width) / SIDE)
        small = Image.fromarray(image)
        if scale > 1:
            small = small.resize((max(1, round(width / scale)), max(1, round(height / scale))), Image.Resampling.BOX)
        boxes: list[tuple[Kind, Sequence[float]]] = [("face", box) for box in self._find_faces(small)]
        if self._text is not None:
            boxes += [("text", box) for box in self._find_text(small)]
        limits = (height, width, height, width)
        found = [
            Subject(kind, _box([min(round(at * scale), most) for at, most in zip(box, limits, strict=True)]))
            for kind, box in boxes
        ]
        kinds = {subject.kind for subject in found}
        told: tuple[tuple[Kind, re.Pattern[str]], ...] = (("face", _FACES), ("text", _TEXT))
        return found + [
            Subject(kind, None) for kind, words in told if kind not in kinds and words.search(caption or "")
        ]

    def _find_faces(self, image: Image.Image) -> list[Sequence[float]]:
        grey = np.asarray(image.convert("L"))
        if min(grey.shape) < _LEAST_FACE:
            return []
        found = self._faces.detect_multi_scale(
            img=grey,
            scale_factor=1.2,
            step_ratio=1,
            min_size=(_LEAST_FACE, _LEAST_FACE),
            max_size=(min(grey.shape), min(grey.shape)),
        )
        return [(f["r"], f["c"], f["r"] + f["height"], f["c"] + f["width"]) for f in found]

    def _find_text(self, image: Image.Image) -> list[Sequence[float]]:
        with self._reading:
            answer = self._text(np.asarray(image)[..., ::-1], use_det=True, use_cls=False, use_rec=False)  # type: ignore[misc]
        if answer.boxes is None:
            return []
        return [
            (box[:, 1].min(), box[:, 0].min(), box[:, 1].max(), box[:, 0].max())
            for box, score in zip(answer.boxes, answer.scores, strict=True)
            if score >= _SURE_OF_TEXT
        ]


def _text_detector() -> Any:
    check_extra("gate.find_text", "text", "rapidocr", "onnxruntime")
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})


def _box(corners: list[int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (max(0, at) for at in corners)
    return top, left, bottom, right


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
