"""Fuzz one part of the package and print the outcomes as JSON; exit status 1 if one is unexpected.

python -m tests.soak.fuzz texts 1000 7

Each part ends in a right answer or an MlmInferError. It runs in a process of its own, so that a crash is seen.
"""

import atexit
import base64
import functools
import json
import math
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mlm_infer import InputError, MaskFiller, MlmInferError
from mlm_infer.bundle.manifest import hash_file
from mlm_infer.results import FillResult
from tests.helpers.hostile import with_graph, with_tokenizer
from tests.helpers.paths import ROOT, SHIPPED

from .texts import any_text

FILES = ("mlm_infer.json", "tokenizer.json", "model.int8.onnx", "model.int8.weights")
PROBE = "The [MASK] was a [MASK] film."


def check_answer(text: str, result: FillResult) -> None:
    """Check an answer as far as the text determines it: every mask, in order, with probabilities."""
    spans = [mask.span for mask in result.masks]
    assert [text[start:end] for start, end in spans] == ["<mask>" if text[at] == "<" else "[MASK]" for at, _ in spans]
    assert len(spans) == text.count("[MASK]") + text.count("<mask>")
    assert spans == sorted(spans)
    for mask in result.masks:
        scores = [each.score for each in mask.predictions]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 and math.isfinite(score) for score in scores)
        assert sum(scores) <= 1.0001
        assert all(each.sequence.endswith(text[mask.span[1] :]) for each in mask.predictions)


def fuzz_texts(filler: MaskFiller, random: Random) -> str:
    """Fill a random string, alone or among others, with `fill` and as the pipeline."""
    text = any_text(random)
    way = random.randrange(3)
    if way == 0:
        check_answer(text, filler.fill(text))
    elif way == 1:
        others = [any_text(random), "A [MASK] film.", text]
        for each, result in zip(others, filler.fill_batch(others, top_k=2), strict=True):
            check_answer(each, result)
    else:
        found = filler(text, top_k=3)
        assert len(found) == 3 or len(found) == text.count("[MASK]") + text.count("<mask>")
    return "answered"


def _any_value(random: Random) -> Any:
    return random.choice(
        (
            *("error", "window", "left_to_right", "visible", "pll", "pll_word_l2r", "[a-z]+", "(", 0.5, False),
            *(None, True, 0, -1, 1, 5, 10**6, 10**30, 2.5, float("nan"), "", "good", "\ud800", b"good", [], ["good"]),
            *([None], ["good", 5], {"good": 1}, {"good"}, ("bad", "good"), object(), [[]], any_text(random), range(3)),
            *(np.int64(3), np.uint8(0), np.float32(0.5), np.float64("nan"), np.bool_(True), np.array(2), 10**5000),
            *(np.array(["good", "bad"]), "😀", ["😀", "good"], "nice 😀", ["[UNK]"], "\0", "\x07\x1b", "x" * 10**6),
            *(["x " * 10**6], ["good"] * 10**4, "a" * 10**5 + " [MASK]", "[MASK] " * 600, "[MASK:1-4]", "(a+)+$"),
            *("[MASK]", ["A [MASK].", any_text(random)], Path("x"), "cpu", "cuda:7", "int8", "fp16"),
        )
    )


def _some(random: Random, *names: str) -> dict[str, Any]:
    return {name: _any_value(random) for name in names if random.random() < 0.3}


_CHOICES = ("allow", "deny", "words_only", "pattern", "min_score", "renormalize", "long_text")


def fuzz_arguments(filler: MaskFiller, random: Random) -> str:
    """Call a public method, or open a filler, with arguments of any kind."""
    text = "A [MASK] film." if random.random() < 0.5 else _any_value(random)
    options = {name: _any_value(random) for name in ("top_k", "targets") if random.random() < 0.6}
    chosen = {name: _any_value(random) for name in _CHOICES if random.random() < 0.2}
    way = random.randrange(9)
    if way == 0:
        check_answer(text, filler.fill(text, **options))
    elif way == 1:
        filler.fill_batch(text if random.random() < 0.5 else [text], **options, **chosen)
    elif way == 2:
        filler(text, **options)
    elif way == 3:
        assert filler.count_tokens(text) >= 2
    elif way == 4:
        named = {"on_error": _any_value(random)} if random.random() < 0.3 else {"on_error": "return"}
        list(filler.fill_stream([text, "A [MASK]."], **options, **chosen, **named))
    elif way == 5:
        words = _any_value(random) if random.random() < 0.7 else ["good", _any_value(random)]
        filler.rank(text, words, **_some(random, "others", "normalize"))
    elif way == 6:
        filler.infill(text, **_some(random, "top_k", "beam_size", "order", "allow", "deny", "words_only"))
    elif way == 7:
        filler.score([text, "A film."], **_some(random, "method", "long_text"))
    else:
        opened = {name: _any_value(random) for name in ("device", "precision", "threads") if random.random() < 0.5}
        # Any word may be a model of the Hub, which is not to be asked.
        opened["local_files_only"] = True
        MaskFiller(_any_value(random) if random.random() < 0.7 else None, **opened)
    return "answered"


def damage(data: bytearray, random: Random) -> bytearray:
    """Flip, cut, repeat, blank or replace bytes."""
    way, at = random.randrange(6), random.randrange(len(data))
    if way == 0:
        for _ in range(random.randrange(1, 20)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == 1:
        del data[at:]
    elif way == 2:
        data[at : at + random.randrange(1, 200)] = random.randbytes(random.randrange(200))
    elif way == 3:
        data[at:at] = data[at : at + random.randrange(1, 2000)]
    elif way == 4:
        data[at : at + random.randrange(1, 5000)] = bytes(random.randrange(1, 5000))
    else:
        data[:] = random.randbytes(random.randrange(3000))
    return data


def fuzz_bundles(filler: MaskFiller, random: Random) -> str:
    """Damage one file and open the bundle; half of the time with a matching hash."""
    name = random.choice(FILES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for each in FILES:
            if each != name:
                shutil.copy(SHIPPED / each, folder)
        (folder / name).write_bytes(damage(bytearray((SHIPPED / name).read_bytes()), random))
        forged = name in ("tokenizer.json", "model.int8.weights") and random.random() < 0.5
        if forged:
            values = json.loads((SHIPPED / FILES[0]).read_text(encoding="utf-8"))
            stored = hash_file(folder / name)
            values["files"][name] = {"bytes": stored.bytes, "sha256": stored.sha256}
            (folder / FILES[0]).write_text(json.dumps(values), encoding="utf-8")
        result = MaskFiller(folder, device="cpu", threads=1).fill(PROBE)
    if not forged:
        assert result == filler.fill(PROBE)
    return "answered, forged" if forged else "answered"


_LETTERS = ("a", "e", " ", "[", "\xe9", "\ufdfa", "aa", "", "zz", "\u2581")


def _any_rule(random: Random, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return a random tokenizer rule, half of the time one that lengthens a text."""
    kind = random.choice(kinds)
    rule: dict[str, Any] = {"type": kind}
    if kind == "Replace":
        shape = random.choice(("String", "Regex"))
        patterns = _LETTERS if shape == "String" else (*_LETTERS, ".", "(a+)+$", "(?=a)", "\\s*", "(", "[a-z]{1,3}")
        rule |= {"pattern": {shape: random.choice(patterns)}, "content": random.choice(_LETTERS) * random.randrange(4)}
    elif kind == "Prepend":
        rule["prepend"] = random.choice(_LETTERS)
    elif kind == "Precompiled":
        rule["precompiled_charsmap"] = base64.b64encode(random.randbytes(random.randrange(40))).decode()
    elif kind == "Strip":
        rule |= {"content": "e", "start": random.choice((0, 3, 2**60)), "stop": random.choice((0, 3, 2**60))}
    elif kind == "ByteLevel":
        rule |= {"add_prefix_space": random.random() < 0.5, "trim_offsets": True, "use_regex": random.random() < 0.5}
    elif kind == "Metaspace":
        rule |= {"replacement": "\u2581", "prepend_scheme": "always", "split": random.random() < 0.5}
    return rule


_RULES = {
    "normalizer": ("normalizers", ("Replace", "Replace", "Prepend", "Precompiled", "NFKD", "NFKC", "Lowercase")),
    "pre_tokenizer": ("pretokenizers", ("ByteLevel", "Metaspace", "Whitespace")),
    "decoder": ("decoders", ("Replace", "Replace", "ByteLevel", "Fuse", "Strip")),
}


def fuzz_tokenizers(_filler: MaskFiller, random: Random) -> str:
    """Open a bundle whose tokenizer has up to fifty random rules, and fill masks."""
    place = random.choice(list(_RULES))
    inner, kinds = _RULES[place]
    rules = [_any_rule(random, kinds) for _ in range(random.choice((1, 2, 5, 50)))]
    with tempfile.TemporaryDirectory() as scratch:
        rule = {"type": "Sequence", inner: rules}
        bundle = with_tokenizer(Path(scratch, "bundle"), lambda values: values.update({place: rule}))
        filler = MaskFiller(bundle, device="cpu", threads=1)
        for text in (PROBE, f"a caf\xe9 [MASK] {any_text(random)}"):
            filler.fill(text, long_text="window")
    return "answered"


def fuzz_graphs(_filler: MaskFiller, random: Random) -> str:
    """Open a bundle whose graph has random outputs, and call every method."""
    numbers = np.random.default_rng(random.randrange(2**32))
    replaced = {}
    for name in ("top_ids", "top_logprobs", "candidate_logprobs", "logits"):
        if random.random() < 0.3:
            shape = random.choice(((1, 1), (1, 5), (1, 30522), (2, 1), (1,), (), (0, 1), (1, 1, 1)))
            kind = random.choice(("int64", "float32", "float64", "float16", "int8", "bool"))
            value = random.choice((0, -1, 5, 1e9, np.nan, np.inf, -np.inf)) + numbers.integers(0, 3, shape)
            with np.errstate(all="ignore"):
                replaced[name] = np.asarray(value).astype(kind)
    with tempfile.TemporaryDirectory() as scratch:
        length = random.choice((1e6, 3, 9))
        filler = MaskFiller(with_graph(Path(scratch, "bundle"), replaced, good_length=length), device="cpu", threads=1)
        check_answer(PROBE, filler.fill(PROBE, top_k=1))
        filler.infill(PROBE)
        filler.rank("A [MASK].", ["good", "very good"])
        filler.score(["A film."])
    return "answered"


@functools.cache
def _exported() -> bytes:
    """Return the ONNX file of a tiny BERT, which is written beside its tokenizer."""
    sys.path.insert(0, str(ROOT / "tools"))
    from graph_corpus import write_file
    from tiny_models import BUILDERS

    return write_file(BUILDERS["bert"](_scratch() / "checkpoint"), "traced", _scratch() / "file").read_bytes()


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


def fuzz_exports(_filler: MaskFiller, random: Random) -> str:
    """Export a damaged ONNX file of a tiny BERT, every fourth to int8 too; what becomes a bundle gives its answers."""
    import onnx
    from mlm_infer.export import export_bundle

    from tests.helpers.mutations import MUTATIONS

    graph = onnx.load_from_string(_exported())
    random.choice(MUTATIONS)(graph, random)
    (_scratch() / "file/model.onnx").write_bytes(graph.SerializeToString())
    precisions = random.choice([["fp32"], ["fp32"], ["fp32"], ["fp32", "int8"]])
    file, bundle = _scratch() / "file/model.onnx", _scratch() / "bundle"
    export_bundle(str(file), bundle, precisions=precisions, overwrite=True)
    check_answer(PROBE, MaskFiller(bundle, device="cpu", threads=1).fill(PROBE, top_k=1))
    return "answered"


PARTS: dict[str, Callable[[MaskFiller, Random], str]] = {
    "texts": fuzz_texts,
    "arguments": fuzz_arguments,
    "bundles": fuzz_bundles,
    "tokenizers": fuzz_tokenizers,
    "graphs": fuzz_graphs,
    "exports": fuzz_exports,
}


def main(part: str, count: int, seed: int) -> int:
    """Run one part `count` times and print the number of each outcome."""
    filler = MaskFiller(device="cpu", threads=1)
    outcomes: Counter[str] = Counter()
    for case in range(seed, seed + count):
        try:
            outcomes[PARTS[part](filler, Random(case))] += 1
        except MlmInferError as error:
            if "\n" in str(error):
                sys.stderr.write(f"{part}, case {case}: more than one line: {error!r}")
                return 1
            outcomes["InputError" if isinstance(error, InputError) else type(error).__name__] += 1
        except BaseException:
            sys.stderr.write(f"{part}, case {case}: {traceback.format_exc()}")
            return 1
    sys.stdout.write(json.dumps(outcomes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
