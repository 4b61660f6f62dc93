"""The benchmark program: it writes all figures, and every engine gives the pipeline's predictions."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlm_infer.benchmarks.report import markdown
from mlm_infer.export import Budget

from mlm_infer.runtime.cpu import cpu_kind
from tests.helpers.int8 import least_of

ENGINES = ("mlm-infer int8", "mlm-infer fp32", "transformers pipeline", "torch, head at masks", "TorchScript")


@pytest.fixture(scope="module")
def results(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a short run on the real small checkpoint, for speed and for quality, beside busy processes."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "mlm_infer.benchmarks.peers", "--shape", str(base), "--trained", str(base)]
    for engine in ENGINES:
        command += ["--engine", engine]
    command += ["--singles", "6", "--sentences", "32", "--minutes", "0", "--even-if-busy"]
    subprocess.run(
        [*command, "--work", str(folder), "--output", str(folder / "found.json")], check=True, capture_output=True
    )
    return folder / "found.json"


@pytest.mark.slow
def test_every_engine_is_measured_and_agrees(results: Path, base: Path) -> None:
    """fp32 engines give the pipeline's top-1 tokens, int8 meets its budget, and every figure is present."""
    found = json.loads(results.read_text(encoding="utf-8"))
    engines = found["shapes"][str(base)]
    assert tuple(engines) == ENGINES
    # The default budget, for a model of a perplexity as high as this one's, on texts with one mask each.
    within_budget = least_of(500, Budget().agreement(math.inf))
    for name, engine in engines.items():
        assert set(engine["latency_ms"]) == {"25", "128"}
        assert all(len(found["each"]) == 6 for found in engine["latency_ms"].values())
        assert len(engine["bulk"]["rounds_seconds"]) == 6
        assert engine["instruction_set"] == cpu_kind()
        assert set(engine["texts_per_second_by_call_size"]) == {"1", "8", "32"}
        assert engine["installed_mb"] > (500 if "torch" in name or "Torch" in name else 20)
        assert engine["peak_memory_mb"] > 0
        quality = found["quality"][name]
        assert quality["top1"] >= (within_budget if "int8" in name else 0.998), name
        assert "int8" in name or quality["top5"] >= 0.998, name
    assert engines["mlm-infer int8"]["installed_mb"] < engines["transformers pipeline"]["installed_mb"] / 4
    assert found["derived"][str(base)]["int8_peak_share"] > 0


@pytest.mark.slow
def test_table_and_chart_stand_beside_the_figures(results: Path) -> None:
    """The table has a row per engine and names the instruction set, whose chart is a PNG file."""
    table = results.with_suffix(".md").read_text(encoding="utf-8")
    assert all(table.count(f"{name}** |" if name.startswith("mlm") else f"| {name} |") == 2 for name in ENGINES)
    assert f"({cpu_kind()}), 2 threads" in table
    chart = results.with_name(f"found-{cpu_kind()}.png")
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_table_tells_of_a_busy_machine_and_of_wide_intervals(results: Path, base: Path) -> None:
    """What other processes took, engines that were left out, and the ratios that are not known exactly."""
    found = json.loads(results.read_text(encoding="utf-8"))
    shape = str(base)
    found["others"][shape] = {"bulk": 0.012, "single texts of 25 tokens": 0.004}
    found["left_out"][shape] = {"OpenVINO": "it has no such model"}
    engines = found["shapes"][shape]
    for engine in engines.values():
        steady = [2.0] * 8
        engine["bulk"]["rounds_seconds"] = steady
        engine["latency_ms"] = {"25": {"p50": 2.0, "p95": 2.0, "each": steady}}
    engines["TorchScript"]["bulk"]["rounds_seconds"] = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    table = markdown(found)
    assert "Other processes took up to 1.2% of the processors' time, during bulk." in table
    assert "OpenVINO is left out: it has no such model" in table
    assert "wider than 10% of the speed-up: TorchScript (in bulk 50%)." in table
    assert "(2.0x, 1.0 to 2.0)" in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--device", "cuda"], 1, "error: --device cuda: "),
        (
            ["--engine", "mlm-infer fp16"],
            2,
            "error: on cpu there is no engine 'mlm-infer fp16'; there are mlm-",
        ),
        (
            ["--shape", "bert-tiny"],
            2,
            "error: there is no shape 'bert-tiny', and no checkpoint of that name; there are ",
        ),
        (["--device", "cuda", "--engine", "OpenVINO"], 2, "error: on cuda there is no engine 'OpenVINO'; there are "),
    ],
)
def test_what_cannot_be_measured(options: list[str], status: int, message: str, tmp_path: Path) -> None:
    """A one-line error before any model is made; CUDA never falls back to the CPU."""
    if options == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU; tests/runtime/test_gpu.py runs on it")
    command = [sys.executable, "-m", "mlm_infer.benchmarks.peers", *options, "--work", str(tmp_path / "work")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(message)
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_bench(base: Path, bundles: dict[str, Path]) -> None:
    """mlm-bench measures every precision of a bundle, and the pipeline with --against."""
    command: list[str | Path] = ["mlm-bench", bundles["base"], "--against", base, "--singles", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)["figures"]
    assert list(figures) == ["fp32", "int8", "pipeline"]
    assert all(found["many texts, texts/s"] > 0 for found in figures.values())
    table = subprocess.run(["mlm-bench", "--singles", "3"], capture_output=True, text=True, check=True).stdout
    assert "25 tokens p50, ms" in table
