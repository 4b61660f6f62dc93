"""Reference implementations of the methods of `MaskFiller` in plain PyTorch, one forward pass at a time."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer


class Reference:
    """A model and its tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
        self.mask = self.tokenizer.mask_token_id

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], position: int) -> torch.Tensor:
        """Log-probabilities over the vocabulary at one position."""
        logits: torch.Tensor = self.model(input_ids=torch.tensor([list(ids)])).logits
        return logits[0, position].log_softmax(-1)

    def encode(self, text: str) -> list[int]:
        """Ids with special tokens."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def pll(self, text: str, *, within_words: bool) -> list[float]:
        """The log-probability of each token with it masked, and with the rest of its word masked on request."""
        encoded = self.tokenizer(text, return_special_tokens_mask=True)
        words: list[int | None] = encoded.word_ids() if within_words else []
        found = []
        for place, special in enumerate(encoded["special_tokens_mask"]):
            if special:
                continue
            ids = list(encoded["input_ids"])
            for other in range(place, len(ids)):
                if other == place or (within_words and words[other] == words[place]):
                    ids[other] = self.mask
            found.append(float(self.logprobs(ids, place)[encoded["input_ids"][place]]))
        return found

    def candidate(self, text: str, ids: Sequence[int], others: str) -> list[float]:
        """The log-probability of each token of a candidate in place of the text's mask."""
        whole = self.encode(text)
        start = whole.index(self.mask)
        found = []
        for place, token in enumerate(ids):
            inside = [self.mask] * len(ids)
            if others == "left_to_right":
                inside[:place] = ids[:place]
            elif others == "visible":
                inside = [*ids[:place], self.mask, *ids[place + 1 :]]
            found.append(float(self.logprobs([*whole[:start], *inside, *whole[start + 1 :]], start + place)[token]))
        return found

    def greedy(self, text: str, *, confidence: bool) -> tuple[list[int], float]:
        """Fill one mask at a time, the most confident or the first; return the ids and the summed log-probability."""
        ids, total = self.encode(text), 0.0
        while self.mask in ids:
            places = [place for place, token in enumerate(ids) if token == self.mask]
            rows = {place: self.logprobs(ids, place) for place in places}
            chosen = max(places, key=lambda place: float(rows[place].max())) if confidence else places[0]
            total += float(rows[chosen].max())
            ids[chosen] = int(rows[chosen].argmax())
        return ids, total

    def best_pair(self, text: str, width: int) -> float:
        """The best log-probability of two masks, left to right, over all pairs from the `width` best first tokens."""
        ids = self.encode(text)
        first, second = (place for place, token in enumerate(ids) if token == self.mask)
        best = -math.inf
        values, tokens = self.logprobs(ids, first).topk(width)
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
            filled = [*ids[:first], token, *ids[first + 1 :]]
            best = max(best, value + float(self.logprobs(filled, second).max()))
        return best
