"""Word vectors (GloVe, word2vec) as a text encoder: a token a word."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.extras import check_extra
from pipeline.restoration.local import files_sha256
from pipeline.restoration.text import CACHED_BYTES, TextEncoder

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
"""Letters and digits of any script, with apostrophes inside."""
TOGETHER = 50_000
"""Vectors that are put into one array while a file is read."""


class WordVectors(TextEncoder):
    """A file of GloVe's text, or of word2vec's text or binary format.

    Words are looked up as they stand, then in other cases, without a possessive's or a plural's s. One that is still
    unknown gets the mean of all vectors (as GloVe's own <unk> is), so that it counts as a word; a caption without
    any known word has no tokens. Features are scaled to unit size: files differ in that by a factor of ten.
    """

    def __init__(self, file: Path, tokens: int, device: torch.device, cached_bytes: int = CACHED_BYTES) -> None:
        """Load a file.

        Raises:
            ModelError: it is none of these formats.
            RecipeError: gensim is missing.
        """
        check_extra(f"the text encoder {file.name}", "vectors", "gensim")
        from gensim.models import KeyedVectors

        super().__init__(tokens, device, cached_bytes)
        binary = file.name.lower().removesuffix(".gz").endswith(".bin")
        try:
            if binary or _has_header(file):
                self._vectors = KeyedVectors.load_word2vec_format(str(file), binary=binary, unicode_errors="replace")
            else:
                words, vectors = _read_glove(file)
                self._vectors = KeyedVectors(vectors.shape[1])
                self._vectors.vectors, self._vectors.index_to_key = vectors, [*words]
                self._vectors.key_to_index = words
        except (ValueError, EOFError, UnicodeDecodeError, IndexError, MemoryError) as error:
            kind = "word2vec's binary format" if binary else "GloVe's or word2vec's text format"
            raise ModelError(f"{file} is no file of word vectors in {kind}: {error}") from error
        if not len(self._vectors) or not np.isfinite(self._vectors.vectors).all():
            raise ModelError(f"{file} holds no word vectors, or some that are no numbers")
        self.name = file.name
        self.width = int(self._vectors.vector_size)
        self.digest = files_sha256([file])
        spread = float(self._vectors.vectors.std())
        self._scale = 1 / spread if spread > 0 else 1.0
        self._unknown = self._vectors.vectors.mean(0)

    def _encode(self, texts: list[str]) -> list[Tensor]:
        return [torch.from_numpy(self._sentence(text)).half() for text in texts]

    def _sentence(self, text: str) -> npt.NDArray[np.float32]:
        found = [self._vector(word) for word in WORD.findall(text)[: self.tokens]]
        if all(vector is None for vector in found):
            return np.zeros((0, self.width), np.float32)
        vectors = np.stack([self._unknown if vector is None else vector for vector in found])
        scaled: npt.NDArray[np.float32] = (self._scale * vectors).astype(np.float32)
        return scaled

    def _vector(self, word: str) -> npt.NDArray[np.float32] | None:
        plain = word.replace("’", "'")
        bare = plain.removesuffix("'s")
        for form in (plain, bare, bare[:-1] if bare.endswith("s") else bare):
            for cased in (form, form.lower(), form.capitalize(), form.upper()):
                if cased in self._vectors:
                    vector: npt.NDArray[np.float32] = self._vectors[cased]
                    return vector
        return None


def _lines(file: Path) -> TextIO:
    opened = gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")  # noqa: SIM115  # its wrapper is closed
    # published files hold words that were torn in the middle of a letter
    return io.TextIOWrapper(opened, encoding="utf-8", errors="replace", newline="\n")


def _has_header(file: Path) -> bool:
    """Whether a text file begins with the counts of words and features, as word2vec's does and GloVe's does not."""
    with _lines(file) as lines:
        first = lines.readline().split()
    return len(first) == 2 and all(part.isdecimal() for part in first)


def _read_glove(file: Path) -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    """The words' places, and vectors [N, width]. Of words with spaces in them, which some published files hold, none is
    ever asked for: they are left out, as is what comes twice.

    Raises:
        ValueError: a line is none of a word and as many numbers as the first has.
    """
    words: dict[str, int] = {}
    parts, rows, width = list[npt.NDArray[np.float32]](), list[npt.NDArray[np.float32]](), 0
    with _lines(file) as lines:
        for number, line in enumerate(lines, start=1):
            width = width or len(line.split()) - 1
            word, *numbers = line.strip("\r\n ").rsplit(" ", width)
            if len(numbers) != width or not width:
                raise ValueError(f"line {number} is no word with {width} numbers")
            if " " in word or word in words:
                continue
            try:
                rows.append(np.array(numbers, np.float32))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            words[word] = len(words)
            if len(rows) == TOGETHER:
                parts.append(np.stack(rows))
                rows = []
    if not words:
        raise ValueError("it is empty")
    vectors = np.empty((len(words), width), np.float32)  # takes memory as it is filled, and the parts give theirs back
    parts += [np.stack(rows)] if rows else []
    start = 0
    for place, part in enumerate(parts):
        vectors[start : start + len(part)] = part
        start += len(part)
        parts[place] = part[:0]
    return words, vectors
