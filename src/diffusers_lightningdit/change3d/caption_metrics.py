# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Scores of captions: BLEU, ROUGE-L and CIDEr-D as the field of change captioning reports them, and METEOR by its jar.

Captions are lists of words, or of their ids, which makes no difference but to METEOR: the original gives it ids, so
that stems, synonyms and function words do not count there.

sacrebleu's BLEU of a whole set is the same to nine digits wherever an n-gram of each length matches (tests compare
them); it has no value for single captions by this formula. The package rouge-score takes the best F of one reference
with beta = 1, and no maintained package has CIDEr-D: pycocoevalcap's is 0 for a single image, and not this one's value.
These are conventions of their own, so they are written here.

Letters: N images, h a caption, r one of its references.
"""

import contextlib
import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..files import one_line

Words = Sequence[str] | Sequence[int]

MAX_ORDER = 4  # of n-grams
TINY, SMALL = 1e-15, 1e-9  # the constants of the original's quotients
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
# Captions that say that nothing has changed, in the data sets LEVIR-CC and DUBAI-CC
NO_CHANGE_CAPTIONS = (
    "the scene is the same as before",
    "there is no difference",
    "the two scenes seem identical",
    "no change has occurred",
    "almost nothing has changed",
)


def caption_scores(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """All scores of a set of captions but METEOR.

    Args:
        hypotheses: A caption of each image; it may be empty.
        references: The references of each image, at least one.

    Returns:
        `bleu_1` to `bleu_4`, `rouge_l` and `cider`.

    Raises:
        ValueError: For no image, or one without references.
    """
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"there are {len(hypotheses)} captions and references of {sum(map(bool, references))} images; required: at "
            "least one image, and for each a caption and references."
        )
    bleu = corpus_bleu(hypotheses, references)
    rouge = [rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)]
    cider = cider_d(hypotheses, references)
    return {
        **{f"bleu_{order}": score for order, score in enumerate(bleu, start=1)},
        "rouge_l": math.fsum(rouge) / len(rouge),
        "cider": math.fsum(cider) / len(cider),
    }


def n_grams(words: Words, order: int) -> Counter:
    """The n-grams of one order, with their numbers."""
    return Counter(tuple(words[first : first + order]) for first in range(len(words) - order + 1))


# ---------------------------------------------------------------------------------------------------------------------
# BLEU
# ---------------------------------------------------------------------------------------------------------------------


def corpus_bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a set of captions (Papineni et al., 2002), or of a single one.

    Counts are summed over the captions, each clipped at its largest number in one reference. The length of references
    is that of the one nearest in length, of the shorter of two. The original's constants keep the quotients from 0: a
    set without a matching n-gram of some length has a tiny score.
    """
    matches, totals = [0] * MAX_ORDER, [0] * MAX_ORDER
    length, reference_length = 0, 0
    for words, of_image in zip(hypotheses, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(each) - len(words)), len(each)) for each in of_image)[1]
        for order in range(1, MAX_ORDER + 1):
            most: Counter = Counter()
            for each in of_image:
                most |= n_grams(each, order)
            counts = n_grams(words, order)
            matches[order - 1] += (counts & most).total()
            totals[order - 1] += counts.total()
    ratio = (length + TINY) / (reference_length + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (matches[order] + TINY) / (totals[order] + SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# ROUGE-L
# ---------------------------------------------------------------------------------------------------------------------


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of a caption, beta = 1.2: of the best precision and the best recall, each over all references.

    An empty caption counts as one word that nothing has.
    """
    common = [longest_common_subsequence(words, each) for each in references]
    precision = max(common) / max(len(words), 1)
    recall = max(length / max(len(each), 1) for length, each in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def longest_common_subsequence(first: Words, second: Words) -> int:
    """The length of the longest sequence of words that both have in this order."""
    row = [0] * (len(second) + 1)
    for word in first:
        previous = row
        row = [0]
        for number, other in enumerate(second):
            row.append(previous[number] + 1 if word == other else max(previous[number + 1], row[-1]))
    return row[-1]


# ---------------------------------------------------------------------------------------------------------------------
# CIDEr-D
# ---------------------------------------------------------------------------------------------------------------------


def cider_d(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption (Vedantam et al., 2015, arXiv 1411.5726), without stemming.

    The weight of an n-gram is its number times log N - log(number of images with it in a reference); of a single image,
    log N is taken for 1. For each order, the similarity to a reference is the sum of min(h, r) r over the norms, times
    exp(-d^2 / 72) with the difference d of the numbers of bigrams.
    """
    images_with: Counter = Counter()
    for of_image in references:
        images_with.update(
            {gram for each in of_image for order in range(1, MAX_ORDER + 1) for gram in n_grams(each, order)}
        )
    log_images = math.log(len(references)) if len(references) > 1 else 1.0

    def weights(words: Words) -> tuple[list[dict[tuple, float]], list[float], int]:
        grams = [n_grams(words, order) for order in range(1, MAX_ORDER + 1)]
        vectors = [
            {gram: number * (log_images - math.log(max(1, images_with[gram]))) for gram, number in counts.items()}
            for counts in grams
        ]
        norms = [math.sqrt(math.fsum(value**2 for value in vector.values())) for vector in vectors]
        return vectors, norms, grams[1].total()

    scores = []
    for words, of_image in zip(hypotheses, references, strict=True):
        vectors, norms, num_bigrams = weights(words)
        similarities = []
        for each in of_image:
            others, other_norms, other_num_bigrams = weights(each)
            gaussian = math.exp(-((num_bigrams - other_num_bigrams) ** 2) / (2 * CIDER_SIGMA**2))
            for vector, other, norm, other_norm in zip(vectors, others, norms, other_norms, strict=True):
                product = math.fsum(
                    min(value, other[gram]) * other[gram] for gram, value in vector.items() if gram in other
                )
                similarities.append(product / (norm * other_norm or 1.0) * gaussian)
        scores.append(10 * math.fsum(similarities) / len(similarities))
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# METEOR
# ---------------------------------------------------------------------------------------------------------------------


class Meteor:
    """METEOR 1.5 (Denkowski and Lavie, 2014) by its Java program, as `-l en -norm`.

    Args:
        jar: The file meteor-1.5.jar, with its data folder beside it.

    Raises:
        ValueError: If there is no such file.
        OSError: If there is no Java.
    """

    def __init__(self, jar: str | Path):
        if not Path(jar).is_file():
            raise ValueError(f"`meteor_jar` is {str(jar)!r}; required: the file meteor-1.5.jar.")
        java = shutil.which("java")
        if java is None:
            raise OSError("METEOR needs the program `java`, which is not found; required: Java, or no `meteor_jar`.")
        self._command = [java, "-Xmx2G", "-jar", str(Path(jar).resolve()), "-", "-", "-stdio", "-l", "en", "-norm"]
        self._folder = Path(jar).resolve().parent

    def __call__(self, hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, list[float]]:
        """The score of a set of captions, and that of each; an empty caption has 0.

        Raises:
            OSError: If the program fails.
        """
        texts = [
            [" ".join(map(str, words)).replace("|||", "") for words in (*of_image, words)]
            for words, of_image in zip(hypotheses, references, strict=True)
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": self._folder}
        with (
            tempfile.TemporaryFile("w+") as messages,
            subprocess.Popen(self._command, **pipes, stderr=messages) as process,
        ):
            try:
                statistics = [_ask(process, f"SCORE ||| {' ||| '.join(each)}") for each in texts]
                first = _ask(process, f"EVAL ||| {' ||| '.join(statistics)}")
                scores = [float(first), *(float(process.stdout.readline()) for _ in texts)]
            except (OSError, ValueError) as error:  # it has ended, or says something else
                process.kill()
                with contextlib.suppress(OSError):  # of what it did not take
                    process.stdin.close()
                messages.seek(0)
                lines = messages.read().strip().splitlines() or [one_line(error)]
                raise OSError(f"METEOR failed: {lines[-1]}") from error
            process.stdin.close()
        return scores[-1], scores[:-1]


def _ask(process: subprocess.Popen, line: str) -> str:
    """The answer of a program to a line; empty if it has ended."""
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


# ---------------------------------------------------------------------------------------------------------------------
# Change or no change
# ---------------------------------------------------------------------------------------------------------------------


def says_no_change(words: Sequence[str]) -> bool:
    """Whether a caption, without `<start>`, `<end>` and `<pad>`, is one of `NO_CHANGE_CAPTIONS`."""
    return " ".join(words) in NO_CHANGE_CAPTIONS
