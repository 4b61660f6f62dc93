"""Runs one engine in its own process: reads requests from stdin and writes timed answers to stdout, as JSON lines.

Runs in whatever environment has the engine, so it imports this package only for the engines that need it.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Fill = Callable[[list[str], int], list[list[int]]]
"""Maps texts with one mask each, and a batch size, to the top-5 token ids of each text."""


def _ours(precision: str, *, backend: str = "auto") -> Callable[[dict[str, str], int], Fill]:
    def load(paths: dict[str, str], threads: int) -> Fill:
        from mlm_infer import MaskFiller

        _change(json.loads(paths.get("settings", "{}")))
        filler = MaskFiller(
            paths["bundle"], device=paths["device"], precision=precision, threads=threads, backend=backend
        )

        def fill(texts: list[str], batch: int) -> list[list[int]]:
            found: list[list[int]] = []
            for start in range(0, len(texts), batch):
                results = filler.fill_batch(texts[start : start + batch])
                found += [[each.token_id for each in result.masks[0].predictions] for result in results]
            return found

        return fill

    return load


def _change(settings: dict[str, str]) -> None:
    """Change settings of this process that the package has no options for, for benchmarks/settings.py.

    Args:
        settings: Constants by module and name, and settings of ONNX Runtime's sessions by key; an empty one is ONNX
            Runtime's default.
    """
    from mlm_infer.runtime.ort_session import SESSION_SETTINGS

    for name, value in settings.items():
        if name.startswith("session."):
            SESSION_SETTINGS[name] = value
            continue
        module, _, constant = name.rpartition(".")
        holder = importlib.import_module(module)
        if not isinstance(getattr(holder, constant, None), int):
            raise ValueError(f"{module} has no whole number {constant}")
        setattr(holder, constant, int(value))


def _from_pipeline(pipe: Any) -> Fill:
    def fill(texts: list[str], batch: int) -> list[list[int]]:
        # The pipeline returns a list per text only if it gets several texts.
        answers = pipe(texts, batch_size=batch) if len(texts) > 1 else [pipe(texts[0])]
        return [[each["token"] for each in answer] for answer in answers]

    return fill


def _transformers(paths: dict[str, str], threads: int) -> Fill:
    import torch
    from transformers import pipeline

    torch.set_num_threads(threads)
    return _from_pipeline(pipeline("fill-mask", model=paths["checkpoint"], device=paths["device"]))


def _torch_rows(paths: dict[str, str], threads: int, *, script: bool = False) -> Fill:
    """A plain torch loop with the head at the masks only, to separate this effect from our other optimizations."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from mlm_infer.shared.masked_rows import masked_logits

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(paths["checkpoint"])
    device = paths["device"]
    model = AutoModelForMaskedLM.from_pretrained(paths["checkpoint"], torchscript=script).eval().to(device)
    traced: Any = None
    if script:
        example = tokenizer(["a b c d", "a b"], return_tensors="pt", padding=True).to(device)
        traced = torch.jit.trace(model, (example["input_ids"], example["attention_mask"]))

    @torch.inference_mode()
    def fill(texts: list[str], batch: int) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True).to(device)
            rows = (inputs["input_ids"].reshape(-1) == tokenizer.mask_token_id).nonzero().squeeze(1)
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            if script:
                logits = traced(ids, mask)[0]
                logits = logits.reshape(-1, logits.shape[-1])[rows]
            else:
                logits = masked_logits(model, ids, mask, rows, fast=True)
            best = torch.log_softmax(logits, -1).topk(5)
            # Decoding is part of the work of every engine, so it is done here too, and its result dropped.
            for tokens, _ in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                [tokenizer.decode([each]) for each in tokens]
                found.append(tokens)
        return found

    return fill


def _torchscript(paths: dict[str, str], threads: int) -> Fill:
    return _torch_rows(paths, threads, script=True)


def _optimum(key: str) -> Callable[[dict[str, str], int], Fill]:
    def load(paths: dict[str, str], threads: int) -> Fill:
        import onnxruntime
        from optimum.onnxruntime import ORTModelForMaskedLM
        from transformers import AutoTokenizer, pipeline

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = "CUDAExecutionProvider" if paths["device"] == "cuda" else "CPUExecutionProvider"
        model = ORTModelForMaskedLM.from_pretrained(paths[key], session_options=options, provider=provider)
        tokenizer = AutoTokenizer.from_pretrained(paths["checkpoint"])
        return _from_pipeline(pipeline("fill-mask", model=model, tokenizer=tokenizer, device=paths["device"]))

    return load


def _openvino(key: str) -> Callable[[dict[str, str], int], Fill]:
    def load(paths: dict[str, str], threads: int) -> Fill:
        from optimum.intel import OVModelForMaskedLM
        from transformers import AutoTokenizer, pipeline

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        model = OVModelForMaskedLM.from_pretrained(paths[key], ov_config=settings)
        tokenizer = AutoTokenizer.from_pretrained(paths["checkpoint"])
        return _from_pipeline(pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu"))

    return load


ENGINES: dict[str, Callable[[dict[str, str], int], Fill]] = {
    "mlm-infer int8": _ours("int8"),
    "mlm-infer fp16": _ours("fp16"),
    "mlm-infer fp32": _ours("fp32"),
    "mlm-infer TorchScript": _ours("fp32", backend="torchscript"),
    "transformers pipeline": _transformers,
    "torch, head at masks": _torch_rows,
    "TorchScript": _torchscript,
    "optimum fp32": _optimum("optimum"),
    "optimum int8": _optimum("optimum_int8"),
    "OpenVINO": _openvino("openvino"),
    "OpenVINO int8": _openvino("openvino_int8"),
}


ON_DEVICE = {
    "cpu": [name for name in ENGINES if name != "mlm-infer fp16"],
    "cuda": [name for name in ENGINES if "int8" not in name and "OpenVINO" not in name],
}
"""Engines by device: int8 and OpenVINO run on the CPU only, fp16 is measured on CUDA only."""


def _installed_mb() -> float:
    """Return the disk size of all distributions from which this process has imported modules."""
    owners = importlib.metadata.packages_distributions()
    names = {name for module in list(sys.modules) for name in owners.get(module.partition(".")[0], [])}
    files = [Path(str(file.locate())) for name in names for file in importlib.metadata.distribution(name).files or []]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main() -> None:
    """Answer requests until stdin ends."""
    engine, threads, paths = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    # Libraries print to stdout, so it is redirected to stderr, and the answers keep a copy of the original.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = 0.0
    fill = None
    first = True
    for line in sys.stdin:
        request = json.loads(line)
        # Loaded with the first request, so that loading and the first answer can be timed together.
        if fill is None:
            started = time.perf_counter()
            fill = ENGINES[engine](paths, threads)
        for _ in range(request["warm_up"]):
            fill(request["texts"], request["batch"])
        before, used = time.perf_counter(), time.process_time()
        ids = fill(request["texts"], request["batch"])
        after = time.perf_counter()
        answer = {"seconds": after - before, "cpu_seconds": time.process_time() - used, "ids": ids}
        if first:
            answer["load_and_first"] = after - started
            answer["installed_mb"] = _installed_mb()
            first = False
        # VmHWM is the peak resident memory of this process since it started.
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            answer["peak_mb"] = next(int(row.split()[1]) for row in status if row.startswith("VmHWM")) / 1024
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
