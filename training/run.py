"""`fine_tune`: from a checkpoint and text to a fine-tuned model in its place."""

from collections.abc import Callable

from mlm_infer.shared.folders import check_output

from .config import TrainConfig
from .job import TrainingJob
from .report import Evaluation, TrainReport
from .work import check_work, last_checkpoint, work_folder

__all__ = ["fine_tune"]


def fine_tune(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> TrainReport:
    """Fine-tune a masked language model, and write the model, its tokenizer and reports.

    Training draws new masks in every epoch; evaluation uses masks that are drawn once. The loss of a step is the mean
    over its masked tokens. The head runs at these positions only, which affects nothing but the speed.

    Args:
        config: The configuration of the run.
        overwrite: Replace an existing output folder once the new one is complete, provided that it is empty or contains
            only files that this package wrote, and does not overlap with an input.
        resume: Continue after the last finished epoch of an interrupted run with the same configuration.
        progress: Show progress bars on stderr.
        on_evaluation: Called after each evaluation, the one before training included.

    Returns:
        The report, which is also written to `config.output`: as `training_report.json`, as `report/index.html` with
        `report/curve.png`, and as the model card `README.md`.

    Raises:
        OutputExistsError: The output folder exists and `overwrite` is false, or it must not be replaced.
        ModelError: The checkpoint is not a usable masked language model.
        DataError: The data cannot be read or contains too little text.
        InputError: A value of the configuration is invalid for this model or machine.
    """
    output = config.output.expanduser()
    sources = [each for each in (config.model, config.data, config.validation_data) if each is not None]
    check_output(output, overwrite=overwrite, sources=sources)
    work = work_folder(output)
    check_work(work, sources)
    job = TrainingJob(config, work, last_checkpoint(work) if resume else None)
    return job.run(progress=progress, on_evaluation=on_evaluation, output=output, overwrite=overwrite, sources=sources)
