"""Blocks: against a plain computation in memory, from any number of processes, and from the cache."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from mlm_infer.training.blocks import make_blocks, make_encoder
from mlm_infer.training.data import Documents, load_documents
from mlm_infer.training.masks import MaskRule, freeze_masks
from tokenizers.pre_tokenizers import BertPreTokenizer, PreTokenizer
from training_memory import measure
from transformers import AutoTokenizer, BertTokenizerFast

from mlm_infer import DataError, InputError
from mlm_infer.shared.samples import movie_reviews
from tests.helpers.paths import ROOT
from tests.helpers.texts import documents_of

ODD = ["\x01\x02", "a", "\u200b", "end"]
"""Of these BERT's tokenizer makes no token, or few."""


def plain_blocks(texts: list[str], tokenizer: Any, size: int, *, per_line: bool) -> list[list[int]]:
    """Blocks as they are defined, with lists."""
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    begin, end = [tokenizer.cls_token_id], [separator]
    room = size - 2
    found: list[list[int]] = []
    pending: list[int] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if per_line:
            found += [ids[start : start + room] for start in range(0, len(ids), room)]
            continue
        if pending:
            pending.append(separator)
        pending += ids
        while len(pending) >= room:
            found.append(pending[:room])
            pending = pending[room:]
    return [[*begin, *chunk, *end] for chunk in [*found, *([pending] if pending else [])]]


@pytest.mark.parametrize("per_line", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "esm"])
def test_blocks_of_random_documents(name: str, per_line: bool, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Documents of any length, some without tokens, at any block size."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[name])
    numbers = random.Random(name)
    words = [word for text in movie_reviews()[:200] for word in text.split()]
    for size in (3, 4, 7, 32, 64):
        texts = [
            numbers.choice(ODD)
            if numbers.random() < 0.2
            else " ".join(numbers.choices(words, k=numbers.randrange(1, 40)))
            for _ in range(300)
        ]
        documents = documents_of(texts, tmp_path)
        found = make_blocks(documents, tokenizer, size, per_line=per_line)
        assert [ids.tolist() for ids in found] == plain_blocks([*documents], tokenizer, size, per_line=per_line)


def test_blocks_do_not_depend_on_workers(tiny: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """The same digest of everything, without any from the cache."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    documents = documents_of(movie_reviews(), tmp_path)
    found = []
    for workers in (0, 1, 3):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / str(workers))
        found.append(make_blocks(documents, tokenizer, 32, whole_words=True, workers=workers).digest())
        assert len([*(tmp_path / str(workers)).rglob("ids")]) == 1
    assert len(set(found)) == 1


def test_sample_and_rows(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A sample keeps its order, a sample of it also, and rows that are not there end a loop."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    blocks = make_blocks(documents_of(movie_reviews()[:300], tmp_path), tokenizer, 32)
    every = [ids.tolist() for ids in blocks]
    few = blocks.sample(50, 1)
    rows = np.sort(np.random.default_rng(1).permutation(len(every))[:50])
    assert [ids.tolist() for ids in few] == [every[row] for row in rows]
    assert [ids.tolist() for ids in few.sample(10, 2)] == sorted(
        (ids.tolist() for ids in few.sample(10, 2)), key=every.index
    )
    assert blocks.sample(len(every), 1) is blocks
    assert len({blocks.digest(), few.digest(), blocks.sample(50, 2).digest()}) == 3
    with pytest.raises(IndexError):
        blocks[len(every)]


def test_frozen_batches_are_made_when_asked_for(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Again and again the same, by number, from the end, and by slice."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    blocks = make_blocks(documents_of(movie_reviews()[:100], tmp_path), tokenizer, 32)
    frozen = freeze_masks(blocks, MaskRule.of(tokenizer, 0.15), batch_size=8, seed=1)
    assert len(frozen) == -(-len(blocks) // 8)
    every = [batch["labels"].tolist() for batch in frozen]
    assert frozen[-1]["labels"].tolist() == every[-1]
    assert [batch["labels"].tolist() for batch in frozen[1:3]] == every[1:3]
    with pytest.raises(IndexError):
        frozen[len(frozen)]


def test_a_batch_of_lines_is_padded(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Padding is neither attended to nor predicted."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    texts = ["A film.", "A film with a longer text than the others have.", "Good."]
    blocks = make_blocks(documents_of(texts, tmp_path), tokenizer, 32, per_line=True)
    (batch,) = freeze_masks(blocks, MaskRule.of(tokenizer, 0.5), batch_size=8, seed=1)
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == -100).all()
    assert (batch["input_ids"][padding] == tokenizer.pad_token_id).all()


def test_user_text_may_name_special_tokens(tiny: dict[str, Path]) -> None:
    """As the tokenizer is set: a special token, or letters."""
    for split in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(tiny["bert"], split_special_tokens=split)
        encoder, identity = make_encoder(tokenizer)
        found = encoder(["a [MASK] film"]).ids.tolist()
        assert found == tokenizer("a [MASK] film", add_special_tokens=False)["input_ids"]
        assert (tokenizer.mask_token_id in found) != split
        assert identity != make_encoder(AutoTokenizer.from_pretrained(tiny["bert"], split_special_tokens=not split))[1]


def test_tokenizer_with_a_step_in_python(tiny: dict[str, Path]) -> None:
    """As RoFormer's for Chinese: it cannot be copied, its ids are the same, and words are not known."""

    class Spaces:
        def pre_tokenize(self, text: Any) -> None:
            text.split(lambda _, part: part.split(" ", "removed"))

    class WithSpaces(BertTokenizerFast):
        def save_pretrained(self, *args: Any, **options: Any) -> Any:
            self.backend_tokenizer.pre_tokenizer = BertPreTokenizer()
            saved = super().save_pretrained(*args, **options)
            self.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Spaces())
            return saved

    tokenizer = WithSpaces.from_pretrained(tiny["bert"])
    tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Spaces())
    encoder, _ = make_encoder(tokenizer)
    assert encoder(["a film", "b"]).lengths.tolist() == [2, 1]
    with pytest.raises(InputError, match="is written in Python"):
        make_encoder(tokenizer, whole_words=True)


def peak(documents: Documents, tokenizer: Any) -> int:
    """Return the most memory that Python and numpy had at a time while blocks were made and read."""
    tracemalloc.start()
    blocks = make_blocks(documents, tokenizer, 64)
    frozen = freeze_masks(blocks, MaskRule.of(tokenizer, 0.15), batch_size=8, seed=1)
    assert sum(int(batch["attention_mask"].sum()) for batch in frozen) > 30 * len(documents)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_text(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Four times the text takes little more, as files are read in pieces of 10 MB; lists of its tokens take 8 MB."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    texts = movie_reviews()[:2000]
    few = peak(documents_of([f"{text} {copy}" for copy in range(2) for text in texts], tmp_path), tokenizer)
    many = peak(documents_of([f"{text} {copy}" for copy in range(8) for text in texts], tmp_path), tokenizer)
    assert many - few < 3_000_000


@pytest.mark.slow
def test_memory_of_a_training(tmp_path: Path) -> None:
    """A short version of the measurement in docs/training.md: 100 bytes of memory for each document would show."""
    found = measure(tmp_path / "work", 40_000_000, [])
    assert found["large"]["blocks"] > 60_000
    assert found["large"]["resident"] - found["small"]["resident"] < 150_000_000


def test_text_without_tokens(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The error has the numbers."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    for per_line in (False, True):
        with pytest.raises(
            DataError, match=r"no block results .*documents: 3, tokens with this tokenizer: 0"
        ) as caught:
            make_blocks(documents_of(["\x01", "\x02\x03", "\x04"], tmp_path), tokenizer, 32, per_line=per_line)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="block_size is 2, but the special tokens alone take 2"):
        make_blocks(documents_of(["a"], tmp_path), tokenizer, 2)


SCRIPT = """
import json, sys
from pathlib import Path
from mlm_infer.training import TrainConfig
from mlm_infer.training.blocks import make_blocks
from mlm_infer.training.data import load_splits
from transformers import AutoTokenizer
for model, data, column, size, per_line, whole_words in json.loads(sys.argv[1]):
    config = TrainConfig(model=model, output=Path("x"), data=data, text_column=column)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer("A call leaves settings in a tokenizer.", truncation=True, max_length=size, padding="max_length")
    documents = load_splits(config).train
    print(make_blocks(documents, tokenizer, size, per_line=per_line, whole_words=whole_words).digest())
"""


def prepare(cache: Path, *variants: list[Any]) -> tuple[list[str], int]:
    """Prepare blocks in a process of its own; return their digests, and how often it read or tokenized text."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(variants)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"HF_DATASETS_CACHE": str(cache)},
    )
    lines = done.stderr.replace("\r", "\n").splitlines()
    bars = ["100%" in line if "Tokenizing" in line else "0 rows [00:00" in line for line in lines]
    return done.stdout.split(), sum(bars)


def content(cache: Path) -> dict[str, int]:
    """Files and their times of change."""
    return {str(path): path.stat().st_mtime_ns for path in cache.rglob("*")}


def test_second_run_tokenizes_nothing(tiny: dict[str, Path], tmp_path: Path) -> None:
    """In a new process; and whatever differs is computed, however little that is."""
    cache, data = tmp_path / "cache", tmp_path / "data.jsonl"
    data.write_text("\n".join(f'{{"text": "Film {n} was good.", "other": "Film {n} was bad."}}' for n in range(200)))
    first = [str(tiny["bert"]), str(data), "text", 32, False, False]
    variants = [first]
    for place, value in ((0, str(tiny["distilbert"])), (2, "other"), (3, 33), (4, True), (5, True)):
        variants.append([*first[:place], value, *first[place + 1 :]])
    digests, computed = prepare(cache, *variants)
    assert len(set(digests)) == len(variants)
    assert computed
    before = content(cache)
    assert len([name for name in before if name.endswith("ids")]) == len(variants)
    assert prepare(cache, *reversed(variants)) == (digests[::-1], 0)
    assert content(cache) == before
    # As many bytes as before.
    data.write_text(data.read_text().replace("good", "best"))
    (edited,), computed = prepare(cache, first)
    assert computed
    assert edited not in digests
    assert not [*cache.rglob("*.part")]


def test_what_a_killed_process_leaves_is_not_used(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Killed in the middle of tokenizing; after a day its remains are removed."""
    cache, data = tmp_path / "cache", tmp_path / "data.txt"
    data.write_text("\n".join(f"{text} {copy}" for copy in range(5) for text in movie_reviews()))
    variant = [str(tiny["bert"]), str(data), "text", 32, False, False]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache)}
    command = [sys.executable, "-c", SCRIPT, json.dumps([variant])]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(path.stat().st_size for path in cache.rglob("*.part/ids")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (left,) = cache.rglob("*.part")
    for path in (*left.iterdir(), left):
        os.utime(path, (0, 0))
    digests, _ = prepare(cache, variant)
    assert not left.exists()
    assert digests == prepare(tmp_path / "another", variant)[0]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_compressed_files(name: str, tmp_path: Path) -> None:
    """Each format that is text; splits by name also."""
    texts = ["One, two.", "Three."]
    content = {
        "a.txt": "One, two.\n\nThree.\n",
        "a.csv": 'text;id\n"One, two.";1\nThree.;2\n',
        "a.tsv": "id\ttext\n1\tOne, two.\n2\tThree.\n",
        "a.jsonl": '{"text": "One, two."}\n{"text": "Three."}\n',
        "a.json": '[{"text": "One, two."}, {"text": "Three."}]',
    }[name]
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode("utf-8-sig" if name != "a.json" else "utf-8")))
    assert [*load_documents(str(path))] == texts
    for split in ("train", "test"):
        path.with_name(f"{split}{Path(name).suffix}.gz").write_bytes(gzip.compress(content.encode()))
    path.unlink()
    assert [*load_documents(str(path.parent), split="test")] == texts


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"text " * 100_000)[:-20], gzip.compress(b"caf\xe9")])
def test_damaged_compressed_files(content: bytes, tmp_path: Path) -> None:
    """Neither is read in part."""
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is no complete gzip file; test it with|is not UTF-8") as caught:
        load_documents(str(path))
    assert "\n" not in str(caught.value)
