"""Threads share one filler; a session asks for what the machine has."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlm_infer import InputError, MaskFiller
from mlm_infer.runtime.cpu import available_cpus, cpu_kind, cpu_name

from .test_pipeline_parity import masked_sentences


@pytest.mark.parametrize("name", ["base", "roberta"])
def test_sixteen_threads_give_what_one_gives(name: str, bundles: dict[str, Path]) -> None:
    """The tokenizer is frozen and the session is shared: the same answers, to the bit."""
    filler = MaskFiller(bundles[name], precision="fp32", threads=1)
    texts = masked_sentences(filler.info.mask_token, 80, seed=11)
    expected = [filler.fill(text) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(filler.fill, texts)) == expected


def test_count_tokens(bundles: dict[str, Path]) -> None:
    """What counts towards the longest text, special tokens included."""
    filler = MaskFiller(bundles["base"])
    assert filler.count_tokens("") == 2
    assert filler.count_tokens("good good <mask>") == filler.count_tokens("good good [MASK]") == 5
    limit = filler.info.max_length
    filler.fill("good " * (limit - 3) + "[MASK]")
    with pytest.raises(InputError, match=f"{limit + 1} tokens, this model takes at most {limit}"):
        filler.fill("good " * (limit - 2) + "[MASK]")


def test_machine() -> None:
    """What is reported of the processor is of the kinds that int8 is made for."""
    assert cpu_kind() in ("avx2", "avx512", "avx512_vnni", "arm64")
    assert available_cpus() >= 1
    assert cpu_name()
