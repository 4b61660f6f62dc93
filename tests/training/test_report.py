"""What people look at: the curve, the HTML page, the model card, filled sentences, and the upload."""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from matplotlib.text import Annotation
from mlm_infer.training import Evaluation, TrainConfig, TrainReport, fine_tune
from mlm_infer.training.curve import draw_curve
from mlm_infer.training.report import DocumentCounts, Fill
from mlm_infer.training.summaries import save_summaries
from transformers import pipeline

from mlm_infer import InputError
from tests.helpers.hub_server import serve_hub

HOSTILE = "<script>alert(1)</script> | `x` \"[MASK]\" & 'y' \u202e\n</table>"


def report(count: int, output: Path, **values: Any) -> TrainReport:
    """A report with a number of evaluations whose loss falls and then rises."""
    evaluations = [Evaluation("before", 0, 0, 4.2, 5000, 0.3, 0.5, None)]
    for at in range(1, count):
        loss = 2.4 + 1.5 * math.exp(-at / 4) + max(0, at - 20) / 100
        evaluations.append(Evaluation(f"epoch {at}", at, at * 100, loss, 5000, 0.5, 0.7, loss + 0.1))
    settings: dict[str, Any] = {
        "config": TrainConfig(model="org/model", output=output),
        "evaluations": tuple(evaluations),
        "train_curve": tuple((step, 2.5 + math.exp(-step / 400)) for step in range(20, count * 100, 20)),
        "fills": (),
        "pseudo_perplexity": None,
        "documents": DocumentCounts(train=9, validation=3, empty=1, repeated=0, unused_splits=("test",)),
        "train_blocks": 90,
        "validation_blocks": 30,
        "licences": {"org/model": "apache-2.0"},
        "precision": "fp32",
        "seconds": 12.0,
        "machine": {"cpu": "a processor"},
        "warnings": (),
    }
    return TrainReport(**settings | values)


@pytest.mark.parametrize(("count", "written"), [(2, 2), (10, 10), (30, 30), (200, 30)])
def test_labels_of_the_curve_do_not_overlap(count: int, written: int, tmp_path: Path) -> None:
    """All of 30 perplexities are written out, and of 200 a part with the first, the best and the last of them."""
    shown = report(count, tmp_path)
    figure = draw_curve(shown)
    (axis,) = figure.axes
    labels = [child for child in axis.get_children() if isinstance(child, Annotation)]
    boxes = [label.get_window_extent() for label in labels]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    assert not [(a, b) for at, a in enumerate(boxes) for b in boxes[:at] if a.overlaps(b)]
    assert len(labels) == written if count <= 30 else len(labels) >= written
    texts = {label.get_text() for label in labels}
    for each in (shown.evaluations[0], shown.best, shown.evaluations[-1]):
        assert f"{each.perplexity:,.4g}" in texts
    for box in boxes:
        assert figure.bbox.fully_contains(box.x0, box.y0)
        assert figure.bbox.fully_contains(box.x1, box.y1)


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects text, tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its addresses."""
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close a tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


def hostile(output: Path) -> TrainReport:
    """A report in which every text of a user tries to be markup."""
    fills = (Fill(0, HOSTILE, ((("</td><b>", 0.5),),)), Fill(900, HOSTILE, (((HOSTILE, 0.5),),)))
    config = TrainConfig(model=HOSTILE, data=HOSTILE, text_column=HOSTILE, output=output, prompts=(HOSTILE,))
    return report(10, output, config=config, fills=fills, warnings=(HOSTILE,), licences={HOSTILE: HOSTILE})


def test_page_fetches_nothing_and_shows_text_as_text(tmp_path: Path) -> None:
    """No script, no address but that of the picture in the page itself, and no markup from a user's text."""
    save_summaries(hostile(tmp_path), tmp_path)
    reader = Reader()
    reader.feed((tmp_path / "report/index.html").read_text(encoding="utf-8"))
    assert reader.open == []
    assert not reader.tags & {"script", "link", "iframe", "object", "b", "form"}
    assert [address[:22] for address in reader.addresses] == ["data:image/png;base64,"]
    assert reader.text.count("<script>alert(1)</script>") > 5
    assert "\u202e" not in reader.text
    assert str(tmp_path.parent) not in reader.text


def test_card_is_read_by_the_hub_client(tmp_path: Path) -> None:
    """Its metadata name the base model, and hostile text neither leaves a table nor becomes markup."""
    data = tmp_path / "reviews.csv"
    data.write_text("text\nx\n")
    config = TrainConfig(model="org/model", data=str(data), output=tmp_path / "out")
    (tmp_path / "out").mkdir()
    save_summaries(report(3, tmp_path / "out", config=config), tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict()["base_model"] == "org/model"
    assert card.data.pipeline_tag == "fill-mask"
    assert str(tmp_path) not in card.content
    for known in ("| reviews\\.csv |", "| epoch 2 (saved) | 200 |", "| org/model | apache-2.0 |", "(report/curve.png)"):
        assert known.replace("\\.", ".") in card.content
    save_summaries(hostile(tmp_path / "out"), tmp_path / "out")
    content = ModelCard.load(tmp_path / "out/README.md").text
    assert not re.search(r"(?<!\\)<(script|/table|b>)", content)
    for row in re.findall(r"^\|.*\|$", content, re.M):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 8), row
    listed = json.loads((tmp_path / "out/training_report.json").read_text())["files"]
    assert {"README.md", "report/curve.png", "report/index.html"} <= set(listed)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, TrainReport]:
    """A short run with sentences."""
    config = TrainConfig(
        model=str(base),
        output=tmp_path_factory.mktemp("prompts") / "out",
        epochs=2,
        block_size=64,
        max_train_blocks=32,
        max_validation_blocks=16,
        prompts=("A [MASK] film.", "The <mask> is [MASK]."),
    )
    return config, fine_tune(config)


def test_sentences_are_filled_at_each_evaluation(trained: tuple[TrainConfig, TrainReport], base: Path) -> None:
    """The predictions before and after are those of the transformers pipeline."""
    config, shown = trained
    assert shown.prompts == config.prompts
    assert [each.step for each in shown.fills] == [step for step in (0, 1, 2) for _ in config.prompts]
    for step, model in ((0, base), (2, config.output)):
        fill = next(each for each in shown.fills if (each.step, each.text) == (step, "A [MASK] film."))
        expected = pipeline("fill-mask", model=str(model), device="cpu")("A [MASK] film.")
        assert [token for token, _ in fill.predictions[0]] == [row["token_str"] for row in expected]
        assert [share for _, share in fill.predictions[0]] == pytest.approx(
            [row["score"] for row in expected], abs=1e-4
        )
    assert len(shown.fills[1].predictions) == 2
    for name in ("report/index.html", "README.md"):
        assert "A " in (config.output / name).read_text(encoding="utf-8")
    assert "after each evaluation" in (config.output / "report/index.html").read_text(encoding="utf-8")


def test_wrong_sentences(base: Path, tmp_path: Path) -> None:
    """One without a mask, and one too long, before anything is trained."""
    for prompt, message in (("A film.", "prompt 1 has no mask: 'A film.'"), ("long " * 600 + "[MASK]", "at most 512")):
        with pytest.raises(InputError, match=message):
            fine_tune(TrainConfig(model=str(base), output=tmp_path / "out", prompts=(prompt,)))


def test_files_of_a_user_in_the_report_folder_are_kept(
    trained: tuple[TrainConfig, TrainReport], tmp_path: Path
) -> None:
    """`--force` names what it would lose, in `report/` too, and replaces the folder once that is gone."""
    from mlm_infer.errors import OutputExistsError
    from mlm_infer.shared.folders import check_output, move_into_place

    output = Path(shutil.copytree(trained[0].output, tmp_path / "out"))
    (output / "report/notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"report/notes\.txt"):
        check_output(output, overwrite=True)
    (output / "report/notes.txt").unlink()
    shutil.copytree(trained[0].output, tmp_path / "new")
    move_into_place(tmp_path / "new", output, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


PUSH = """
import sys
from pathlib import Path
from mlm_infer.training import TrainConfig, fine_tune
fine_tune(TrainConfig(model=sys.argv[1], output=Path("out"), epochs=1, block_size=32, max_train_blocks=8,
                      max_validation_blocks=8, push_to_hub=True))
"""


@pytest.mark.slow
def test_upload_has_the_card_and_no_pickle(base: Path, tmp_path: Path) -> None:
    """The real client against a local Hub: model, card and report arrive, without pickles and local paths."""
    (tmp_path / "uploads").mkdir()
    with serve_hub({}, uploads=tmp_path / "uploads") as (address, _):
        own = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": address, "HF_TOKEN": "hf_local", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", PUSH, str(base)]
        subprocess.run(command, cwd=tmp_path, env=os.environ | own, check=True)
    arrived = {path.relative_to(tmp_path / "uploads").as_posix() for path in (tmp_path / "uploads").rglob("*.*")}
    assert {"model.safetensors", "config.json", "README.md", "report/index.html", "report/curve.png"} <= arrived
    assert not [name for name in arrived if name.endswith((".bin", ".pt", ".pkl")) or name == "training_report.json"]
    assert str(tmp_path) not in (tmp_path / "uploads/README.md").read_text(encoding="utf-8")


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH; Debian: apt-get install chromium")
def test_page_opens_in_a_browser_without_scripts_and_network(tmp_path: Path) -> None:
    """A real browser renders the picture and the tables, and runs nothing."""
    save_summaries(hostile(tmp_path), tmp_path)
    (tmp_path / "profile/Default").mkdir(parents=True)
    no_scripts = {"profile": {"default_content_setting_values": {"javascript": 2}}}
    (tmp_path / "profile/Default/Preferences").write_text(json.dumps(no_scripts))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,1600",
        f"--screenshot={tmp_path / 'page.png'}",
        (tmp_path / "report/index.html").as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    header = (tmp_path / "page.png").read_bytes()[:24]
    assert struct.unpack(">II", header[16:24]) == (1000, 1600)
    # The blue of the curve is drawn in the upper half, where the picture is.
    from matplotlib.image import imread

    pixels = imread(tmp_path / "page.png")[:800, :, :3] * 255
    assert (abs(pixels - (0x1F, 0x5F, 0xA8)).max(-1) < 12).sum() > 300
