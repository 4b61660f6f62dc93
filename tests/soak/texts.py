"""Texts with masks, of all lengths, and random strings."""

from random import Random

from mlm_infer import MaskFiller
from mlm_infer.shared.samples import movie_reviews

__all__ = ["any_text", "mixed_texts"]

_PIECES = (
    *("[MASK]", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "</s>", "##ing", "[mask]", "MASK]", "%s", "{}", "\\"),
    *("\0", "\ud800", "\udfff", "\ufeff", "\u200b", "\u202e", "\u0301" * 40, "\U0001f469\u200d\U0001f680"),
    *("\u00df", "\u0130", "\uac00", "\u4e2d\u6587", "\r\n", "\t", " " * 50, "'", "a" * 300),
)


def mixed_texts(count: int, seed: int, *, longest: int) -> list[str]:
    """Return texts with a mask, from one word to the maximum length, most of them sentences.

    Args:
        count: How many.
        seed: Chooses them.
        longest: Most tokens of a text, for the shipped model.
    """
    random, sentences = Random(seed), movie_reviews()
    counted = {sentence: n for sentence, n in zip(sentences, _tokens(sentences), strict=True) if n + 8 < longest}
    known = list(counted)
    texts = []
    for _ in range(count):
        # Half of the texts are one sentence; the others go on, up to the longest.
        budget = longest - 8 if random.random() < 0.02 else random.choice((0, 0, 30, 60, 120))
        chosen = [random.choice(known)]
        used = counted[chosen[0]]
        while used < budget:
            sentence = random.choice(known)
            used += counted[sentence]
            if used > longest - 8:
                break
            chosen.append(sentence)
        words = " ".join(chosen).split()
        words[random.randrange(len(words))] = "[MASK]"
        texts.append(" ".join(words))
    return texts


def _tokens(sentences: list[str]) -> list[int]:
    filler = MaskFiller(device="cpu")
    return [filler.count_tokens(sentence) for sentence in sentences]


def any_text(random: Random) -> str:
    """Return a string of random characters, with masks and similar strings."""
    parts = []
    for _ in range(random.randrange(1, 12)):
        kind = random.random()
        if kind < 0.35:
            parts.append(random.choice(_PIECES))
        elif kind < 0.6:
            parts.append("".join(chr(random.randrange(0x110000)) for _ in range(random.randrange(1, 20))))
        elif kind < 0.8:
            parts.append("".join(chr(random.randrange(32, 0x250)) for _ in range(random.randrange(1, 20))))
        else:
            parts.append(random.choice(("[MASK]", " [MASK] ", "good", "film", " ", "")))
    if random.random() < 0.7:
        parts.insert(random.randrange(len(parts) + 1), random.choice((" [MASK] ", "<mask>", "[MASK]")))
    return "".join(parts)
