"""`--force` replaces files that this package wrote, and never inputs or a user's files."""

import os
import re
import shutil
from pathlib import Path

import pytest
from mlm_infer.export import export_bundle
from mlm_infer.training import TrainConfig, fine_tune

from mlm_infer.errors import OutputExistsError
from mlm_infer.shared.folders import check_output, move_into_place
from tests.helpers.outputs import RELATIONS, bundle, contents


def write(kind: str, source: str, target: str) -> None:
    """Export or train with `--force`."""
    if kind == "export":
        export_bundle(source, target, overwrite=True)
    elif Path(source).is_file():
        fine_tune(TrainConfig(model="nowhere", data=source, output=Path(target)), overwrite=True)
    else:
        fine_tune(TrainConfig(model=source, output=Path(target)), overwrite=True)


@pytest.mark.parametrize("relation", RELATIONS)
def test_force_loses_nothing(
    relation: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked before anything is read or written, and at the end: a one-line error, and no file is lost."""
    prepare, source, target = RELATIONS[relation]
    shutil.copytree(tiny["bert"], tmp_path / "deep/ck")
    prepare(tmp_path)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for kind in ("export", "training"):
        with pytest.raises(OutputExistsError) as caught:
            write(kind, source, target)
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before
    (tmp_path / "finished").mkdir()
    with pytest.raises(OutputExistsError):
        move_into_place(tmp_path / "finished", Path(target), overwrite=True, sources=[source])
    assert contents(tmp_path) == before


def test_a_bundle_in_what_is_read_is_kept(tiny: dict[str, Path], tmp_path: Path) -> None:
    """A bundle inside an input may belong to it; elsewhere it is replaced."""
    checkpoint = shutil.copytree(tiny["bert"], tmp_path / "ck")
    bundle(checkpoint)
    with pytest.raises(OutputExistsError, match="lie in one another"):
        check_output(checkpoint / "bundle", overwrite=True, sources=[checkpoint])
    bundle(tmp_path)
    check_output(tmp_path / "bundle", overwrite=True, sources=[checkpoint])


def test_a_bundle_that_a_kill_left_half_removed_goes_with_the_next(tmp_path: Path) -> None:
    """The manifest is removed last and identifies the remaining files."""
    bundle(tmp_path)
    (tmp_path / "bundle").rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.replaced/tokenizer.json").unlink()
    (tmp_path / "new").mkdir()
    move_into_place(tmp_path / "new", tmp_path / "out", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".out.replaced", ".out.training", ".out.export-mine"])
def test_names_that_are_written_to_first(
    name: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's folder with the name of a temporary one is rejected or not touched."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("thesis")
    os.utime(tmp_path / name, (0, 0))
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    if name == ".out.export-mine":
        write("export", str(tiny["bert"]), "out")
    else:
        with pytest.raises(OutputExistsError, match=re.escape(name)):
            write("training", str(tiny["bert"]), "out")
    assert before.items() <= contents(tmp_path).items()


def test_a_checkpoint_in_the_work_folder_is_not_trained_from(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The run would clear the folder before reading the checkpoint."""
    inner = shutil.copytree(tiny["bert"], tmp_path / ".out.training/checkpoint-3")
    (tmp_path / ".out.training/training_report.json").touch()
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match="which this run clears"):
        write("training", str(inner), str(tmp_path / "out"))
    assert contents(tmp_path) == before


def test_a_training_is_replaced_and_what_was_added_to_it_kept(tiny: dict[str, Path], tmp_path: Path) -> None:
    """The report lists the files that belong to the training."""
    config = TrainConfig(
        model=str(tiny["bert"]),
        output=tmp_path / "out",
        block_size=32,
        max_train_blocks=8,
        max_validation_blocks=8,
        epochs=1,
    )
    fine_tune(config)
    fine_tune(config, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out/thesis.tex").write_text("thesis")
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        fine_tune(config, overwrite=True)
