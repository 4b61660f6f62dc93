"""Try a larger model than the one that ships: MiniLM's first four layers, with the 10,500 tokens used most.

    python tools/larger_model.py .work/larger

docs/small-model.md says how far it came. The head is new and begins as the identity on the tied embeddings.
"""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import click
from sources import austen_novels, minilm_encoder, vader_texts, web_bible, wordnet_definitions
from tokenizers import Tokenizer
from trained_model import with_head

from mlm_infer.shared.samples import movie_reviews

LAYERS = 4
TOKENS = 10_500
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TRAIN = (
    "--validation-data movie-reviews --validation-split validation --mlm-probability 0.2 --learning-rate 6e-4 "
    "--warmup-ratio 0.04 --lr-scheduler cosine --dropout 0 --batch-size 16 --save-steps 300 --seed 7"
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=1450, show_default=True, help="Of 2,048 tokens each.")
def main(folder: Path, steps: int) -> None:
    """Train in FOLDER, which then holds checkpoint/."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = texts_by_source()
    start = shortened(with_head(minilm_encoder(folder / "encoder"), folder / "start"), texts)
    text = folder / "text.txt"
    text.write_text("\n".join(mixture(texts)) + "\n", encoding="utf-8")
    train = Path(sys.executable).with_name("mlm-train")
    command = [str(train), "--model", str(start), "--data", str(text), "--output", str(folder / "checkpoint")]
    subprocess.run([*command, "--max-steps", str(steps), *TRAIN.split()], check=True)  # noqa: S603


def texts_by_source() -> dict[str, list[str]]:
    """Return the training texts, with WordNet's definitions apart from its examples."""
    wordnet = wordnet_definitions()
    defines = re.compile(r"[^:]{1,40}: ")
    return {
        "reviews": movie_reviews(),
        **vader_texts(),
        "definitions": [text for text in wordnet if defines.match(text)],
        "examples": [text for text in wordnet if not defines.match(text)],
        "novels": austen_novels(),
        "bible": web_bible(),
    }


def mixture(texts: dict[str, list[str]]) -> list[str]:
    """Return the documents in the order of training: everyday sentences several times, old prose in part."""
    draw = random.Random(7)  # noqa: S311
    documents = 2 * texts["reviews"] + texts["newspaper"] + 3 * texts["products"] + 2 * texts["examples"]
    for source, count in (("definitions", 42_000), ("novels", 4_600), ("bible", 3_000)):
        documents += draw.sample(texts[source], count)
    draw.shuffle(documents)
    return documents


def shortened(folder: Path, texts: dict[str, list[str]]) -> Path:
    """Shorten the checkpoint in a folder to `LAYERS` layers and `TOKENS` tokens.

    Every Latin letter, digit and sign stays, so that every English text can still be written.

    Args:
        folder: The BERT checkpoint, which is replaced.
        texts: What to count tokens in.

    Returns:
        `folder`.
    """
    import torch
    from transformers import BertForMaskedLM

    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = description["model"]["vocab"]
    kept = sorted(_most_used(Tokenizer.from_str(json.dumps(description)), texts), key=vocabulary.__getitem__)
    model = BertForMaskedLM.from_pretrained(folder)
    model.bert.encoder.layer = model.bert.encoder.layer[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    with torch.no_grad():
        rows = model.bert.embeddings.word_embeddings.weight[[vocabulary[token] for token in kept]].clone()
        model.resize_token_embeddings(len(kept))
        model.bert.embeddings.word_embeddings.weight.copy_(rows)
    model.save_pretrained(folder)
    _renumber(description, {token: number for number, token in enumerate(kept)})
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # The old numbers of the special tokens; tokenizer.json has the new ones.
    settings.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return folder


def _most_used(tokenizer: Tokenizer, texts: dict[str, list[str]]) -> list[str]:
    weights = {"definitions": 1, "examples": 1, "novels": 0.3, "bible": 0.2}
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts: Counter[str] = Counter()
    for source, documents in texts.items():
        for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
            for token in encoding.tokens:
                counts[token] += weights.get(source, 3)  # type: ignore[assignment]
    for token, number in tokenizer.get_vocab().items():
        if number >= 999:
            # BERT's numbers run by frequency, so a low one speaks for a token that these texts lack.
            counts[token] += 300_000 / (number - 990)
    signs = [token for token in tokenizer.get_vocab() if len(token.removeprefix("##")) == 1]
    kept = [*SPECIAL, *(sign for sign in signs if ord(sign[-1]) < 0x250 or not sign[-1].isalpha())]
    passed_over = {*kept, *signs}
    words = (token for token, _ in counts.most_common() if token not in passed_over)
    return [*kept, *islice(words, TOKENS - len(kept))]


def _renumber(description: dict[str, Any], numbers: dict[str, int]) -> None:
    description["model"]["vocab"] = numbers
    for token in description["added_tokens"]:
        token["id"] = numbers[token["content"]]
    for token in description["post_processor"]["special_tokens"].values():
        token["ids"] = [numbers[name] for name in token["tokens"]]
    description["truncation"] = description["padding"] = None


if __name__ == "__main__":
    main()
