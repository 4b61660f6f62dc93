"""`fine_tune`: from a checkpoint and text to a fine-tuned model in its place."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlm_infer.errors import InputError, MlmInferError, TrainingError
from mlm_infer.shared.checkpoint import open_checkpoint
from mlm_infer.shared.command import message_of
from mlm_infer.shared.folders import REPORT, check_output, move_into_place, writing
from mlm_infer.shared.memory import is_out_of_memory

from .best import BestKeeper, best_step, load_best
from .card import find_licences
from .checkpoints import (
    RESULT,
    CheckpointKeeper,
    check_same_run,
    check_work,
    fingerprint,
    is_finished,
    lacks_evaluation,
    last_checkpoint,
    read_state,
    remove_unfinished,
    work_folder,
    write_state,
)
from .config import TrainConfig
from .evaluations import Recorder
from .hub import Repository
from .job import PreparedText, TrainingJob
from .process_state import restored
from .processes import together
from .prompts import fills_of
from .pseudo_perplexity import PseudoPerplexity
from .report import Evaluation, TrainReport, describe_machine, thin
from .stopping import StoppedError, StopRequest
from .summaries import save_summaries
from .trainer import MaskedLMTrainer, QuietProgress

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
    mean over its masked tokens. The head runs at these positions only, which affects nothing but the speed. The weights
    of the evaluation with the lowest loss are saved.

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
        run = _Run(TrainingJob(config, work, checkpoint), work, checkpoint, on_evaluation)
        return run.run(output, progress=progress, overwrite=overwrite, sources=sources)


class _Run:
    """One run, stage by stage.

    Args:
        job: Model, text and trainer.
        work: The folder that is written until the run is complete.
        checkpoint: Where an interrupted run goes on; None starts anew.
        on_evaluation: As for `fine_tune`.
    """

    def __init__(
        self,
        job: TrainingJob,
        work: Path,
        checkpoint: Path | None,
        on_evaluation: Callable[[Evaluation], None] | None,
    ) -> None:
        self._job, self._work, self._checkpoint = job, work, checkpoint
        self._config, self._processes = job.config, job.processes
        self._recorder, self._bar = Recorder(on_evaluation), QuietProgress()
        self._pseudo: PseudoPerplexity | None = None

    def run(self, output: Path, *, progress: bool, overwrite: bool, sources: Sequence[str]) -> TrainReport:
        """Train, and move the result to its place."""
        hub = self._open_hub(output)
        # The first process fills the cache of `datasets`, the others read it.
        with self._processes.main_process_first():
            text = self._job.prepare_text()
        blocks = {"training text": text.train, "validation text": text.validation}
        mark = fingerprint(self._config, self._job.model, self._job.tokenizer, blocks, self._processes.num_processes)
        if self._checkpoint is not None:
            check_same_run(self._checkpoint, mark)
        with writing(self._work):
            self._make_work_folder()
        started = time.perf_counter()
        try:
            with StopRequest() as request, writing(self._work):
                trainer = self._make_trainer(text, request, mark, show=progress and self._processes.is_main_process)
                self._train(trainer)
                seconds = time.perf_counter() - started
                self._finish(trainer)
                report = self._report(trainer, text, seconds)
                if self._processes.is_main_process:
                    result = self._write(trainer, report)
                    move_into_place(result, output, overwrite=overwrite, sources=sources)
                    shutil.rmtree(self._work)
                self._processes.wait_for_everyone()
        except (TrainingError, OSError, RuntimeError, MemoryError) as error:
            told = self._with_checkpoint(error)
            if told is None:
                raise
            raise told from error
        finally:
            self._bar.close()
        if hub is not None:
            hub.upload(output)
        return report

    def _open_hub(self, output: Path) -> Repository | None:
        if not (self._config.push_to_hub and self._processes.is_main_process):
            return None
        return Repository(self._config.hub_model_id or output.name)

    def _make_work_folder(self) -> None:
        self._processes.wait_for_everyone()
        if self._processes.is_main_process:
            if self._work.exists() and self._checkpoint is None:
                shutil.rmtree(self._work)
            self._work.mkdir(parents=True, exist_ok=True)
            # Identifies the folder as this package's until the report is written.
            (self._work / REPORT).touch()
            remove_unfinished(self._work)
        self._processes.wait_for_everyone()

    def _make_trainer(
        self, text: PreparedText, request: StopRequest, mark: dict[str, Any], *, show: bool
    ) -> MaskedLMTrainer:
        config = self._config
        trainer = self._job.make_trainer(text, request)
        if config.pseudo_perplexity is not None:
            self._pseudo = PseudoPerplexity(
                text.validation.sample(config.pseudo_perplexity, config.seed),
                self._job.rule,
                batch_size=config.batch_size,
                way=trainer.way,
                request=request,
                progress=show,
            )
            trainer.add_callback(self._pseudo)
        log = read_state(self._checkpoint).log_history if self._checkpoint is not None else []
        # A checkpoint is marked as complete before that is removed which only an earlier one needs.
        for callback in (
            self._job.prompts,
            self._recorder,
            CheckpointKeeper(mark),
            BestKeeper(config.early_stopping, best_step(log)),
        ):
            trainer.add_callback(callback)
        if show:
            trainer.add_callback(self._bar)
        return trainer

    def _train(self, trainer: MaskedLMTrainer) -> None:
        """Train to the end, or raise KeyboardInterrupt once the step at which that was requested is saved."""
        checkpoint = self._checkpoint
        if checkpoint is not None and lacks_evaluation(read_state(checkpoint), int(trainer.args.eval_steps)):
            self._load(trainer, checkpoint)
            self._evaluate(trainer)
            if self._processes.is_main_process:
                write_state(checkpoint, trainer.state)
            self._processes.wait_for_everyone()
        if checkpoint is not None and is_finished(checkpoint, self._config):
            # The Trainer would make one more step.
            self._load(trainer, checkpoint)
            self._recorder.read(trainer.state)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.stop.stopped:
            raise _stopped(trainer)

    def _load(self, trainer: MaskedLMTrainer, checkpoint: Path) -> None:
        weights, _, _ = open_checkpoint(str(checkpoint))
        self._job.model.load_state_dict(weights.state_dict())
        trainer.state = read_state(checkpoint)

    def _evaluate(self, trainer: MaskedLMTrainer) -> None:
        if not trainer.evaluate():
            raise _stopped(trainer)

    def _finish(self, trainer: MaskedLMTrainer) -> None:
        """Evaluate the last step, and take the weights of the best one."""
        # Training may end between two evaluations, for example with a fractional number of epochs.
        evaluations = self._recorder.evaluations
        if not evaluations or evaluations[-1].step != trainer.state.global_step:
            self._evaluate(trainer)
        best = best_step(trainer.state.log_history)
        if best is not None and best != trainer.state.global_step:
            self._processes.wait_for_everyone()
            load_best(self._job.model, self._work, best)
        before, *after = self._recorder.evaluations
        if after and min(each.loss for each in after) > before.loss:
            self._job.warn("training raised the validation loss; a lower --learning-rate or more text may help")

    def _report(self, trainer: MaskedLMTrainer, text: PreparedText, seconds: float) -> TrainReport:
        log = trainer.state.log_history
        try:
            pair = self._pseudo and (self._pseudo.before(log), self._pseudo.measure(self._job.model))
        except StoppedError:
            raise _stopped(trainer) from None
        losses = [(row["step"], row["loss"]) for row in log if "loss" in row]
        return TrainReport(
            config=self._config,
            evaluations=tuple(self._recorder.evaluations),
            train_curve=thin(losses),
            fills=fills_of(log),
            pseudo_perplexity=pair,
            documents=text.counts,
            train_blocks=len(text.train),
            validation_blocks=len(text.validation),
            licences=find_licences(self._config),
            precision=self._job.precision,
            seconds=seconds,
            machine=describe_machine(str(trainer.args.device)) | {"processes": str(self._processes.num_processes)},
            warnings=self._job.warnings,
        )

    def _write(self, trainer: MaskedLMTrainer, report: TrainReport) -> Path:
        """Write model, tokenizer and reports to a folder beside the checkpoints, and return it."""
        result = self._work / RESULT
        trainer.args.output_dir = str(result)
        trainer.save_model()
        (result / "training_args.bin").unlink(missing_ok=True)  # a pickle, which is not needed
        if (self._work / "runs").is_dir():  # of TensorBoard
            (self._work / "runs").rename(result / "runs")
        save_summaries(report, result)
        return result

    def _with_checkpoint(self, error: Exception) -> TrainingError | None:
        """Return an error that ended a run in one line that names the last checkpoint; None if it is none of these."""
        config = self._config
        if self._processes.is_main_process:
            remove_unfinished(self._work)
        if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
            text = (
                f"out of memory with batches of {config.batch_size} blocks of {config.block_size} tokens; take "
                "--auto-batch-size, a smaller --batch-size with more --gradient-accumulation-steps, or "
                "--gradient-checkpointing"
            )
        elif isinstance(error, TrainingError) or (isinstance(error, OSError) and not isinstance(error, MlmInferError)):
            text = message_of(error)
        else:
            return None
        checkpoint = last_checkpoint(self._work)
        if checkpoint is not None:
            text += f"; the last good checkpoint is {checkpoint}"
            text += ", from which --resume continues" if isinstance(error, OSError) else ""
        return TrainingError(text)


def _stopped(trainer: MaskedLMTrainer) -> KeyboardInterrupt:
    return KeyboardInterrupt(
        f"stopped after step {trainer.state.global_step}, which is saved; "
        "the same command with --resume continues from there"
    )
