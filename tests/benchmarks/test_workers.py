"""The processes of the engines: their groups, and those that cannot run a model."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from mlm_infer.benchmarks.compare import Comparison, Limits
from mlm_infer.benchmarks.worker import ON_DEVICE
from mlm_infer.benchmarks.workers import PIPELINE, EngineError, Group, Machine, Worker, free_mb, groups_that_fit

ENGINES = ON_DEVICE["cpu"]
MACHINES = [Machine("", "avx512", {}), Machine(", AVX2", "avx2", {"MLM_INFER_CPU": "avx2"})]
LIMITS = Limits(singles=2, sentences=2, minutes=0, even_if_busy=True)


def test_small_models_are_measured_together() -> None:
    """A group for each instruction set; OpenVINO cannot be restricted to one."""
    whole, held = groups_that_fit(MACHINES, ENGINES, weights_mb=300, memory_mb=20_000)
    assert (whole.base, list(whole.engines)) == (PIPELINE, ENGINES)
    assert held.base == f"{PIPELINE}, AVX2"
    assert list(held.engines) == [name for name in ENGINES if not name.startswith("OpenVINO")]


def test_models_that_fill_the_memory_are_measured_in_groups() -> None:
    """Each engine once, two at a time, each beside a pipeline of its own."""
    assert free_mb() > 100
    groups = groups_that_fit(MACHINES, ENGINES, weights_mb=1e9, memory_mb=free_mb())
    assert all(len(group.engines) == 2 and PIPELINE in group.engines for group in groups)
    assert len({group.base for group in groups}) == len(groups)
    for machine in MACHINES:
        held = [name for group in groups if group.machine == machine for name in group.engines if name != PIPELINE]
        restricted = bool(machine.environment)
        expected = [name for name in ENGINES if name != PIPELINE and not (restricted and name.startswith("OpenVINO"))]
        assert Counter(held) == Counter(expected)


def start(engine: str, paths: dict[str, str]) -> Worker:
    """Start an engine on one thread."""
    group = Group(Machine("", "avx2", {}), (engine,), PIPELINE)
    return Worker.start(engine, Path(sys.executable), paths | {"device": "cpu"}, 1, group)


def test_ours_must_run_every_model(tmp_path: Path) -> None:
    """An engine of this package that cannot is an error, with the reason in one line."""
    worker = start("mlm-infer fp32", {"bundle": str(tmp_path)})
    try:
        with pytest.raises(EngineError, match=r"^mlm-infer fp32 cannot run this model: .*BundleError: ") as error:
            Comparison(LIMITS, lambda step: None).measure([worker], {}, ["A [MASK] film."])
        assert "\n" not in str(error.value)
    finally:
        worker.stop()


@pytest.mark.slow
def test_a_peer_that_cannot_run_a_model_is_left_out(base: Path, tmp_path: Path) -> None:
    """The others are measured, and the reason is kept."""
    workers = [
        start(PIPELINE, {"checkpoint": str(base)}),
        start("torch, head at masks", {"checkpoint": str(tmp_path / "none")}),
    ]
    comparison = Comparison(LIMITS, lambda step: None)
    try:
        comparison.measure(workers, {5: ["A [MASK] film.", "The [MASK] ends."]}, ["A good [MASK]."] * 12)
    finally:
        for worker in workers:
            worker.stop()
    assert list(comparison.engines) == [PIPELINE]
    assert comparison.left_out["torch, head at masks"].startswith("cannot run this model: ")
    assert set(comparison.others) == {"single texts of 5 tokens", "bulk"}
