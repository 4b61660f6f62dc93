"""`fine_tune`: from a checkpoint and text to a fine-tuned model in its place."""

from collections.abc import Callable

from mlm_infer.errors import InputError
from mlm_infer.shared.folders import check_output

from .checkpoints import check_work, last_checkpoint, work_folder
from .config import TrainConfig
from .job import TrainingJob
from .process_state import restored
from .processes import together
from .report import Evaluation, TrainReport

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

    Training draws new masks in every epoch; evaluation uses masks that are drawn once. The loss of an update is the
    mean over its masked tokens. The head runs at these positions only, which affects nothing but the speed.

    In the main thread, Ctrl-C and SIGTERM end the run after the step that is being computed, with a checkpoint.
    Environment variables, random generators and signal handlers are as before when this returns.

    Args:
        config: The configuration of the run.
        overwrite: Replace an existing output folder once the new one is complete, provided that it is empty or contains
            only files that this package wrote, and does not overlap with an input. Discard an interrupted run.
        resume: Continue an interrupted run with the same configuration; `epochs` may be higher.
        progress: Show progress bars on stderr.
        on_evaluation: Called after each evaluation, the one before training included.

    Returns:
        The report, which is also written to `config.output`: as `training_report.json`, as `report/index.html` with
        `report/curve.png`, and as the model card `README.md`.

    Raises:
        OutputExistsError: The output folder or an interrupted run exists and `overwrite` is false, or it must not be
            replaced.
        ModelError: The checkpoint is not a usable masked language model.
        DataError: The data cannot be read or contains too little text.
        InputError: A value of the configuration is invalid for this model or machine, or the run to resume was another.
        TrainingError: A loss is not finite, memory ran out, or a checkpoint cannot be written; names the last one.
        KeyboardInterrupt: The run was stopped, and can be resumed.
    """
    output = config.output.expanduser()
    sources = [each for each in (config.model, config.data, config.validation_data) if each is not None]
    with restored(), together() as processes:
        # Each process checks before the first one changes anything.
        check_output(output, overwrite=overwrite, sources=sources)
        work = work_folder(output)
        check_work(work, sources, replace=overwrite or resume)
        checkpoint = last_checkpoint(work) if resume else None
        if resume and checkpoint is None:
            raise InputError(f"there is nothing to resume: {work} holds no checkpoint; start without --resume")
        processes.wait_for_everyone()
        job = TrainingJob(config, work, checkpoint)
        return job.run(
            progress=progress, on_evaluation=on_evaluation, output=output, overwrite=overwrite, sources=sources
        )
