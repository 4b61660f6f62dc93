"""Provokes every fault that has a message and prints what the user sees: docs/faults.md.

    python tools/faults.py > docs/faults.md

Each fault is prepared in a scratch folder with a copy of the package's bundle in `bundle` and a tiny checkpoint in
`checkpoint`. A real command then runs into it. Long because it is one list, of each fault and how to prepare it.
"""

import gzip
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from places import full_disk, read_only
from tiny_models import BUILDERS
from transformers import AutoModel, GPT2Config

from mlm_infer.bundle.manifest import hash_file

# ruff: noqa: S603

SHIPPED = Path(__file__).resolve().parent.parent / "mlm_infer/resources/english-small"
GRAPH, WEIGHTS, TOKENIZER = "model.int8.onnx", "model.int8.weights", "tokenizer.json"
FILL = 'mlm-fill "A [MASK] film." -m bundle'
TRAIN = "mlm-train --model checkpoint --data text.txt --output out --block-size 32"
EXPORT = "mlm-export checkpoint out"
RAY = "mlm-fill --engine ray --model bundle --input in --output out"
TESTED = "python -c \"from mlm_infer import MaskFiller; MaskFiller('bundle', self_test=True)\""

HEADER = """# Error messages

Common faults, and the line that the user sees for each. `python tools/faults.py > docs/faults.md`
generates this document: it provokes each fault and runs the command. A test keeps the document up to date. In Python
the same text is the message of an exception (see [guide.md](guide.md)). Commands exit with status 2 for wrong usage and
with status 1 otherwise. The model hub is switched off (`HF_HUB_OFFLINE=1`).
"""

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1"}

Prepare = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, how to prepare it in a scratch folder, and the command that meets it."""

    name: str
    prepare: Prepare
    command: str = FILL


def edit(change: Callable[[dict[str, Any]], object]) -> Prepare:
    """Return a preparation that changes the manifest."""

    def prepare(folder: Path) -> None:
        path = folder / "bundle/mlm_infer.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return prepare


def rewrite(name: str, change: Callable[[bytes], bytes], *, forge: bool = False) -> Prepare:
    """Return a preparation that changes a file of the bundle, and its hash too if `forge` is set."""

    def prepare(folder: Path) -> None:
        path = folder / "bundle" / name
        path.write_bytes(change(path.read_bytes()))
        if forge:
            stored = hash_file(path)
            edit(lambda v: v["files"].update({name: {"bytes": stored.bytes, "sha256": stored.sha256}}))(folder)

    return prepare


def flip(data: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 128]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    """Truncate the end."""
    return data[:-100]


def steal(data: bytes) -> bytes:
    """Make a graph refer to a file of the system."""
    model = onnx.ModelProto.FromString(data)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return bytes(model.SerializeToString())


def shuffle(folder: Path) -> None:
    """Replace the embeddings by random bytes, and update the hash."""
    graph = onnx.load(folder / "bundle" / GRAPH, load_external_data=False).graph
    largest = max(graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    start = int({each.key: each.value for each in largest.external_data}["offset"])
    random = np.random.default_rng(0).integers(-63, 64, math.prod(largest.dims), np.int8).tobytes()
    rewrite(WEIGHTS, lambda data: data[:start] + random + data[start + len(random) :], forge=True)(folder)


def outside(folder: Path) -> None:
    """Move the weights out of the bundle and leave a link."""
    (folder / "bundle" / WEIGHTS).rename(folder / "elsewhere")
    (folder / "bundle" / WEIGHTS).symlink_to("../elsewhere")


def killed(command: str, sign: str) -> Prepare:
    """Return a preparation that kills a command once a file exists."""

    def prepare(folder: Path) -> None:
        silent = subprocess.DEVNULL
        with subprocess.Popen(command.split(), cwd=folder, stdout=silent, stderr=silent) as process:
            while not any(folder.glob(sign)) and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)

    return prepare


def other_model(folder: Path) -> None:
    """Make a checkpoint of another model type."""
    GPT2Config(n_layer=1).save_pretrained(folder / "gpt2")


def headless(folder: Path) -> None:
    """Make a checkpoint of an encoder without a head."""
    AutoModel.from_pretrained(folder / "checkpoint").save_pretrained(folder / "encoder")
    for name in (TOKENIZER, "tokenizer_config.json"):
        shutil.copy(folder / "checkpoint" / name, folder / "encoder")


def plain_export(folder: Path, *, without: str | None = None, output: str = "logits") -> None:
    """Make a minimal plain ONNX export: the inputs and outputs of a model, and nothing in between."""
    shutil.copytree(folder / "checkpoint", folder / "plain")
    (folder / "plain/model.safetensors").unlink()
    ids, scores = (
        onnx.helper.make_tensor_value_info(name, kind, ["batch", "length", *more])
        for name, kind, more in (("input_ids", onnx.TensorProto.INT64, []), (output, onnx.TensorProto.FLOAT, [1]))
    )
    nodes = [
        onnx.helper.make_node("Cast", ["input_ids"], ["numbers"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Unsqueeze", ["numbers", "axis"], [output]),
    ]
    axis = onnx.helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [2])
    graph = onnx.helper.make_graph(nodes, "plain", [ids], [scores], [axis])
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, folder / "plain/model.onnx")
    if without:
        (folder / "plain" / without).unlink()


def put(name: str, content: bytes) -> Prepare:
    """Return a preparation that writes a file."""
    return lambda folder: (folder / name).write_bytes(content)


def rows_of(data: bytes, name: str = "in/x.jsonl") -> Prepare:
    """Prepare a file in a folder, and a folder `in` if the file is elsewhere."""

    def prepare(folder: Path) -> None:
        for path in (folder / "in/y.jsonl", folder / name):
            path.parent.mkdir(exist_ok=True)
        if not name.startswith("in/"):
            (folder / "in/y.jsonl").write_bytes(data)
        (folder / name).write_bytes(data)

    return prepare


def remove(name: str) -> Prepare:
    """Return a preparation that removes a file of the bundle."""
    return lambda folder: (folder / "bundle" / name).unlink()


def torchscript_alone(values: dict[str, Any]) -> None:
    """Declare that the bundle contains TorchScript only; the file itself is never opened."""
    values["models"] = {"torchscript": values["models"]["int8"]}
    values["known_answers"] = {}


def doubled(data: bytes) -> bytes:
    """Add tokenizer rules that turn one letter into a terabyte."""
    rule = {"type": "Replace", "pattern": {"String": "i"}, "content": "ii"}
    return json.dumps(json.loads(data) | {"normalizer": {"type": "Sequence", "normalizers": [rule] * 40}}).encode()


def nothing(folder: Path) -> None:
    """Prepare nothing."""


def words(count: int) -> str:
    """Return a text of some number of words and a mask."""
    return f"A {'good ' * count}[MASK]."


OLD_CPU = "MLM_INFER_CPU=avx2 mlm-fill 'A [MASK].' -m bundle"

PLAIN = (
    "python -c \"import sys; sys.modules['onnx_ir'] = None; "
    "from mlm_infer.cli.fill_command import main; main(['A [MASK].', '-m', 'plain'])\""
)
NO_EXPORT = (
    "python -c \"import sys; sys.modules['onnx_ir'] = None; "
    "from mlm_infer.cli.fill_command import main; main(['A [MASK].', '-m', 'checkpoint'])\""
)

GROUPS: dict[str, list[Fault]] = {
    "Bundles": [
        Fault("no such folder", nothing, 'mlm-fill "A [MASK]." -m nowhere'),
        Fault("an empty folder", lambda folder: (folder / "empty").mkdir(), 'mlm-fill "A [MASK]." -m empty'),
        *(
            fault
            for name in (TOKENIZER, GRAPH, WEIGHTS)
            for fault in (
                Fault(f"{name} missing", remove(name)),
                Fault(f"{name}: one bit flipped", rewrite(name, flip)),
                Fault(f"{name} cut short", rewrite(name, cut)),
            )
        ),
        Fault("manifest missing", remove("mlm_infer.json")),
        Fault("manifest: one bit flipped", rewrite("mlm_infer.json", flip)),
        Fault("manifest cut short", rewrite("mlm_infer.json", lambda data: data[:200])),
        Fault("manifest of a gigabyte", lambda folder: os.truncate(folder / "bundle/mlm_infer.json", 1 << 30)),
        Fault("manifest without a schema", edit(lambda v: v.pop("schema"))),
        Fault("manifest of a newer version", edit(lambda v: v.update(schema=99))),
        Fault("a field missing", edit(lambda v: v.pop("mask_id"))),
        Fault("a field of the wrong type", edit(lambda v: v.update(inputs="input_ids"))),
        Fault("an id outside the vocabulary", edit(lambda v: v.update(pad_id=v["vocab_size"]))),
        Fault("an invalid length", edit(lambda v: v.update(max_length=-1))),
        Fault("an unknown input", edit(lambda v: v["inputs"].append("position_ids"))),
        Fault("a file outside the folder", edit(lambda v: v["files"].update({"../x": v["files"][GRAPH]}))),
        Fault("a link out of the folder", outside),
        Fault("a graph that refers to another file", rewrite(GRAPH, steal, forge=True)),
        Fault("a tokenizer for another model", edit(lambda v: v.update(mask_id=104))),
        Fault("TorchScript only", edit(torchscript_alone)),
        Fault("a tokenizer that doubles a character forty times", rewrite(TOKENIZER, doubled, forge=True)),
        Fault("random embeddings with matching hashes", shuffle, "mlm-export verify bundle"),
        Fault("no known answers, `self_test=True`", edit(lambda v: v.update(known_answers={})), TESTED),
    ],
    "Third-party models": [
        Fault("a checkpoint, without [export]", nothing, NO_EXPORT),
        Fault("an encoder without a head", headless, 'mlm-fill "A [MASK]." -m encoder'),
        Fault(
            "a cache folder that cannot be written",
            nothing,
            'MLM_INFER_CACHE=locked/cache mlm-fill "A [MASK]." -m checkpoint',
        ),
        Fault("a full disk", nothing, 'MLM_INFER_CACHE=full/cache mlm-fill "A [MASK]." -m checkpoint'),
        Fault("a Hub id, offline", nothing, 'mlm-fill "A [MASK]." -m team/model'),
        Fault(
            "a precision that a plain export lacks",
            plain_export,
            "python -c \"from mlm_infer import MaskFiller; MaskFiller('plain', precision='int8')\"",
        ),
        Fault("a plain export without its tokenizer", lambda f: plain_export(f, without=TOKENIZER), PLAIN),
        Fault("a plain export without its settings", lambda f: plain_export(f, without="config.json"), PLAIN),
        Fault(
            "a plain export of an encoder without a head", lambda f: plain_export(f, output="last_hidden_state"), PLAIN
        ),
    ],
    "Texts and options": [
        Fault("no text", nothing, "mlm-fill"),
        Fault("no mask", nothing, 'mlm-fill "A film."'),
        Fault("an empty text", nothing, 'mlm-fill ""'),
        Fault("too long", nothing, f'mlm-fill "{words(600)}"'),
        Fault("a missing file", nothing, "mlm-fill -i nowhere.txt"),
        Fault("a file that is not UTF-8", put("x.txt", b"caf\xe9"), "mlm-fill -i x.txt"),
        Fault("`--top-k` out of range", nothing, 'mlm-fill "A [MASK]." -k 0'),
        Fault("a target of several tokens", nothing, 'mlm-fill "A [MASK]." -t wonderfullest'),
        Fault("a precision that the bundle lacks", nothing, f"{FILL} --precision fp32"),
        Fault("an unknown device", nothing, f"{FILL} --device tpu"),
        Fault("CUDA, with the CPU's onnxruntime", nothing, f"{FILL} --device cuda"),
        Fault(
            "int8 that an older version made for VNNI, on a processor without it",
            edit(lambda v: v["models"]["int8"].update(cpu="avx512_vnni")),
            OLD_CPU,
        ),
    ],
    "Folders of files, and the server": [
        Fault("no file of a known kind", lambda folder: (folder / "empty").mkdir(), RAY.replace("in ", "empty ")),
        Fault("no match", nothing, RAY.replace("in ", "'in/*.csv' ")),
        Fault("a missing column", rows_of(b'{"body": "A [MASK]."}'), RAY),
        Fault("an output of something else", rows_of(b'{"text": "A [MASK]."}', name="out/x.jsonl"), RAY),
        Fault("an output in its input", rows_of(b'{"text": "A [MASK]."}'), RAY.replace("output ", "output in/")),
        Fault("no cluster", rows_of(b'{"text": "A [MASK]."}'), f"{RAY} --address 127.0.0.1:9"),
        Fault("no folder for the results", nothing, "mlm-fill --engine ray --input in"),
        Fault("a model that cannot be opened", nothing, "mlm-serve nowhere --port 0"),
        Fault("an address that other machines reach", nothing, "mlm-serve --host 0.0.0.0"),
        Fault("an address of another machine", nothing, "MLM_SERVE_TOKEN=secret mlm-serve --host 203.0.113.1"),
    ],
    "Export": [
        Fault("the output exists", lambda folder: (folder / "out").mkdir(), EXPORT),
        Fault("no such checkpoint", lambda folder: (folder / "empty").mkdir(), "mlm-export empty out"),
        Fault("a checkpoint of another model type", other_model, "mlm-export gpt2 out"),
        Fault("an encoder without a head", headless, "mlm-export encoder out"),
        Fault(
            "calibration text in another alphabet",
            put("kana.txt", ("\N{HIRAGANA LETTER A}\n" * 50).encode()),
            f"{EXPORT} --quantize --calibration-data kana.txt",
        ),
        Fault("no calibration text", nothing, f"{EXPORT} --quantize --calibration-data nowhere.txt"),
        Fault("an unknown graph pass", nothing, f"{EXPORT} --no-pass speed"),
        Fault("an accuracy budget that int8 cannot meet", nothing, f"{EXPORT} --quantize --strict --min-agreement 1"),
        Fault("int8 that would not be smaller", nothing, f"{EXPORT} --quantize --min-agreement 0.9999"),
        Fault("a full disk", nothing, "mlm-export checkpoint full/out"),
        Fault("a read-only folder", nothing, "mlm-export checkpoint locked/out"),
        Fault("killed, then used", killed(EXPORT, ".out.export-*/bundle"), 'mlm-fill "A [MASK]." -m out'),
        Fault("another export finished first", nothing, f"{EXPORT} & sleep 0.5; {EXPORT}; wait"),
    ],
    "Training": [
        Fault("no model", nothing, "mlm-train --data text.txt --output out"),
        Fault("the output exists", lambda folder: (folder / "out").mkdir(), TRAIN),
        Fault("missing data", nothing, TRAIN.replace("text.txt", "nowhere.txt")),
        Fault("a missing column", put("x.csv", b"body\nA film.\n"), TRAIN.replace("text.txt", "x.csv")),
        Fault("an empty file", put("text.txt", b""), TRAIN),
        Fault("an incomplete .gz", put("text.txt.gz", gzip.compress(bytes(99))[:-9]), TRAIN.replace("txt", "txt.gz")),
        Fault("text without tokens", put("text.txt", b"\x01\n\x02\n"), TRAIN),
        Fault("shares above 1", nothing, f"{TRAIN} --mask-share 0.9 --random-share 0.2"),
        Fault("blocks longer than the model accepts", nothing, f"{TRAIN} --block-size 4096"),
        Fault("endless epochs", nothing, f"{TRAIN} --epochs inf"),
        Fault("an unknown schedule", nothing, f"{TRAIN} --lr-scheduler bogus"),
        Fault("a schedule without its settings", nothing, f"{TRAIN} --lr-scheduler cosine_with_min_lr"),
        Fault("a negative seed", nothing, f"{TRAIN} --seed -1"),
        Fault("no text left for training", nothing, f"{TRAIN} --validation-fraction 0.9999"),
        Fault("a UTF-16 file", put("text.txt", "A film.\nA book.\n".encode("utf-16")), TRAIN),
        Fault("a model in no folder", nothing, TRAIN.replace("checkpoint", "./nowhere")),
        Fault("a model that predicts from left to right", other_model, TRAIN.replace("checkpoint", "gpt2")),
        Fault("early stopping after no evaluation", nothing, f"{TRAIN} --early-stopping 0"),
        Fault("nothing to resume", nothing, f"{TRAIN} --resume"),
        Fault("a full disk", nothing, TRAIN.replace("output ", "output full/")),
        Fault("a read-only folder", nothing, TRAIN.replace("output ", "output locked/")),
        Fault("killed in its first epoch, then resumed", killed(TRAIN, ".out.training"), f"{TRAIN} --resume"),
    ],
}


def meet(fault: Fault, checkpoint: Path) -> str:
    """Prepare a fault, run its command, and return the line that it prints."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(SHIPPED, folder / "bundle")
        shutil.copytree(checkpoint, folder / "checkpoint")
        lines = (f"Film {number} is one that one likes, and a long one.\n" for number in range(400))
        (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
        fault.prepare(folder)
        (folder / "locked").mkdir()
        with full_disk(folder / "full", 4096) as limit, read_only(folder / "locked") as drop:
            before = limit if "full/" in fault.command else drop if "locked/" in fault.command else None
            command = ["bash", "-c", fault.command]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=before, env=ENVIRONMENT
            )
        said = r"error: |WARNING: |mlm_infer\.\w+\.\w+Error: "
        seen = [line for line in done.stderr.splitlines() if re.match(said, line)]
        if len(seen) != 1:
            raise AssertionError(f"{fault.name}: {seen}\n{done.stderr}")
        line = re.sub(r"^mlm_infer\.errors\.(\w+: )", r"\1", seen[0])
        return _plain(line, folder)


def _plain(line: str, folder: Path) -> str:
    """Replace what differs between runs: temporary names, and digits that depend on the processor."""
    line = line.replace(f"{folder}/", "").replace(str(folder), ".")
    line = re.sub(r"\.export-\w+", ".export-N", line)
    line = re.sub(r"-[0-9a-f]{16}\b", "-HASH", line)
    line = re.sub(r"(perplexity |top-1 agreement )[+-]?\d+\.\d+%", r"\1N%", line)
    return re.sub(r"-\d+\.\d{4}", "-N", line)


def tables(groups: Iterable[str]) -> str:
    """Provoke the faults of some groups and return their tables."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        checkpoint = BUILDERS["bert"](Path(scratch) / "checkpoint")
        lines = []
        for title in groups:
            lines += [f"## {title}", "", "| fault | what the user sees |", "|---|---|"]
            seen = list(pool.map(lambda fault: meet(fault, checkpoint), GROUPS[title]))
            lines += [f"| {fault.name} | `{line}` |" for fault, line in zip(GROUPS[title], seen, strict=True)]
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{HEADER}\n{tables(GROUPS)}")
