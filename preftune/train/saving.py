"""A Trainer whose checkpoints are complete or do not exist, and which resumes its own run or none."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers.trainer_utils import HubStrategy, set_seed
from transformers.utils import PushInProgress

from preftune import __version__
from preftune.errors import CheckpointError, RecipeError, TrainingError
from preftune.model.load import one_line
from preftune.model.sharding import is_sharded, whole_state
from preftune.train.checkpoint import STAGING, checkpoints, facts_of, seal, step_of
from preftune.train.engines import DDP, ONE
from preftune.train.held import HeldTrainer
from preftune.train.identity import changed_settings
from preftune.train.push import open_repo, push_checkpoint, push_folder
from preftune.train.rescue import RescueClock, publish_step
from preftune.train.window import ReopenWindow, Window

logger = logging.getLogger(__name__)


class SealedTrainer(HeldTrainer):
    """Stages, seals and publishes checkpoints (`preftune.train.checkpoint`), and refuses torn or foreign ones.

    A subclass says what the run is (`_identity`), and what a checkpoint holds beside the Trainer's files (`_save_more`,
    `_load_more`).
    """

    settings: dict[str, Any] = {}  # what a recipe says beside that (`preftune.train.identity.run_settings`)
    clock: RescueClock | None = None
    window: Window | None = None  # the logging window of the checkpoint that is saved or loaded
    watch: Any = None  # of a collapse (`preftune.train.watch`): its start is part of a checkpoint
    margins: Any = None  # of every pair (`preftune.train.margins`)
    staging = False
    upload_later = False  # push_to_hub waits for upload_run
    window_start = 0.0  # of the throughput that is logged; time spent saving is moved out of it

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resume to go on with the same run."""
        raise NotImplementedError

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        raise NotImplementedError

    def _save_more(self, folder: Path) -> None:
        """Write further files into a staged checkpoint, in the main process."""
        if self.watch is not None:
            self.watch.save(folder)

    def _load_more(self, checkpoint: Path) -> None:
        """Read them again."""
        if self.watch is not None:
            self.watch.load(checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether `save_strategy: best` saves: at a new best, and where a callback has asked for it.

        That is an interrupt, the clock, or a healthy look that a rollback may go back to.
        """
        return super()._determine_best_metric(metrics, trial) or self.control.should_save

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """As Trainer's, which under `save_total_limit: 1` leaves the best checkpoint alone.

        A run that is to go on needs its newest one, and one that goes back its healthy one.
        """
        limit, back = self.args.save_total_limit, self.watch is not None and self.watch.goes_back
        if back or self.state.global_step < self.state.max_steps:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    def _watch_the_clock(self, rescue_minutes: float) -> None:
        """Rescue checkpoints, and log lines that a resume does not cut. The clock is asked after other callbacks."""
        self.clock = RescueClock(rescue_minutes, self.args.device)
        for callback in (ReopenWindow(self), self.clock):
            self.add_callback(callback)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        self.staging = True
        try:
            yield
        finally:
            self.staging = False

    def _get_output_dir(self, trial: Any) -> str:
        run = super()._get_output_dir(trial)
        return os.path.join(run, STAGING) if self.staging else run

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """In the background; of a published checkpoint alone, and by HubStrategy CHECKPOINT and the like all of it."""
        args = self.args
        if self.staging or not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not args.hub_always_push:
            return
        jobs = push_checkpoint(Path(checkpoint_folder), self.hub_model_id, args.hub_strategy, args.hub_revision)
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        try:
            self.hub_model_id = open_repo(name, private=private, update=True)
        except Exception as cause:  # whatever the network's library raises: before training it is a setting to mend
            raise RecipeError(
                f"'push_to_hub': no repository for '{name}' on the hub ({one_line(cause)}). Log in with `hf auth "
                "login`, or set push_to_hub: false."
            ) from cause
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save and upload. A run with a recipe does that when its folder is complete (`upload_run`), and not before."""
        if self.upload_later:
            return None
        self.save_model(_internal_call=True)
        return self.upload_run(commit_message or "Model save", revision)

    def upload_run(self, message: str = "End of training", revision: str | None = None) -> str | None:
        """Put the output folder on the hub; one that is out of reach does not take a finished run down with it."""
        if not self.is_world_process_zero():
            return None
        folder = self.args.output_dir
        self._finish_current_push()
        try:
            if self.hub_model_id is None:
                self.init_hf_repo()
            return push_folder(
                folder, self.hub_model_id, update=True, revision=revision or self.args.hub_revision, message=message
            )
        except Exception as cause:
            logger.warning(
                "Saved in %s, but not on the hub (%s). Upload it with `preftune push`.", folder, one_line(cause)
            )
            return None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; weights that lie in pieces are made whole and saved in transformers' files.

        Trainer leaves out the final model of FSDP with SHARDED_STATE_DICT, and that of ZeRO-3 without
        stage3_gather_16bit_weights_on_model_save. A checkpoint of the former holds the pieces alone.
        """
        if not (is_sharded(self.model) or self.is_deepspeed_enabled):  # DeepSpeed copies what is tied
            return super().save_model(output_dir, _internal_call)
        pieces = self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
        if not (pieces and _internal_call):
            self._save(output_dir, state_dict=whole_state(self.model, keep=self.args.should_save))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        return None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.window = Window.of(self, self._summed)
        started = time.perf_counter()
        if self.margins is not None:
            self.margins.flush(durable=True)  # before the checkpoint that says they were seen
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        rescue = self.clock is not None and self.clock.saves(self.args, self.state)
        try:
            self._write(run, name, rescue, model, trial)
        except (OSError, RuntimeError, SafetensorError) as cause:
            if self.args.should_save:
                shutil.rmtree(run / STAGING, ignore_errors=True)  # room again, for whoever looks
            raise TrainingError(not_saved(cause, run, name)) from cause
        self.window_start += time.perf_counter() - started  # as evaluation, not training throughput
        if self.args.push_to_hub and not rescue:
            self._push_from_checkpoint(str(run / name))

    def _write(self, run: Path, name: str, rescue: bool, model: Any, trial: Any) -> None:
        if self.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)  # what a crash left
        self.accelerator.wait_for_everyone()
        best, only_model = self.state.best_model_checkpoint, self.args.save_only_model
        self.args.save_only_model = only_model and not rescue
        try:
            with self._staged():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_only_model = only_model
        if self.args.should_save:
            self.window.save(run / STAGING / name)
            self._save_more(run / STAGING / name)
        if rescue:
            self.state.best_model_checkpoint = best
        elif self.state.best_model_checkpoint:  # written with the staging path
            self.state.best_model_checkpoint = self.state.best_model_checkpoint.replace(f"{os.sep}{STAGING}", "")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(run, name, rescue)
        self.accelerator.wait_for_everyone()

    def _publish(self, run: Path, name: str, rescue: bool) -> None:
        staged = run / STAGING / name
        if self.state.best_model_checkpoint or rescue:
            self.state.save_to_json(str(staged / "trainer_state.json"))
        seal(staged, self._facts())
        publish_step(run, self.state.global_step, rescue, self.args, self.state.best_model_checkpoint)

    def _facts(self) -> dict[str, Any]:
        facts = facts_of_run(self._identity(), self.settings, self.args.world_size)
        return {"step": self.state.global_step, **facts, "engine": self.engine}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._require(checkpoint, "scheduler.pt")
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # they keep theirs in shards and check themselves
            self._require(checkpoint, "optimizer.pt")
        self.window = None if checkpoint is None else Window.load(Path(checkpoint))
        if checkpoint is not None:
            self._load_more(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        then = None if checkpoint is None else facts_of(Path(checkpoint)).get("processes")
        if then not in (None, self.args.world_size):
            set_seed(self.args.seed + self.state.global_step)  # draws of other processes; only dropout asks for any
            if self.args.process_index == 0:
                now = self.args.world_size
                logger.warning("Made by %d processes and gone on with by %d: same batch, same order.", then, now)
            return
        ranked = self.args.world_size > 1
        self._require(checkpoint, f"rng_state_{self.args.process_index}.pth" if ranked else "rng_state.pth")
        super()._load_rng_state(checkpoint)

    def check_same_run(self, checkpoint: Path) -> None:
        """Refuse to go on with other data, another batch or another objective than the checkpoint was made with."""
        check_same_run(checkpoint, self._identity(), self.settings, self.args.world_size)
        check_same_world(checkpoint, self.engine, self.args.world_size)

    def _require(self, checkpoint: str | None, name: str) -> None:
        if checkpoint is not None and not (Path(checkpoint) / name).is_file():
            step = step_of(Path(checkpoint))
            raise CheckpointError(
                f"'{checkpoint}' has no {name}: going on from step {step} without it would be another run. "
                "It was saved with save_only_model, or by another number of processes."
            )


def facts_of_run(run: dict[str, Any], settings: dict[str, Any], processes: int) -> dict[str, Any]:
    """What a manifest says of who wrote it."""
    names = ("torch", "transformers", "accelerate")
    return {
        "run": run,
        "settings": settings,
        "processes": processes,
        "versions": {
            "python": platform.python_version(),
            "preftune": __version__,
            **{name: version(name) for name in names},
        },
    }


def check_same_run(
    checkpoint: Path,
    now: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    processes: int | None = None,
) -> None:
    """Refuse to go on where what a run is (`now`), or its settings, are not what the checkpoint's manifest says.

    Raises:
        CheckpointError: with what has changed.
    """
    facts = facts_of(checkpoint)  # {}: not one of ours; whoever reads it decides
    then = facts.get("run", {})
    changed = [*changed_settings(then, now), *changed_settings(facts.get("settings", {}), settings or {})]
    if not changed:
        return
    remedy = "Use the recipe that made it, or start afresh with model_name_or_path set to it."
    batch, others = then.get("global_batch"), facts.get("processes", processes)
    if len(changed) == 1 and batch != now.get("global_batch") and processes not in (None, others):
        remedy = (
            f"It was made by {others} process{'es' * (others != 1)}, and this is {processes}: set total_batch_size: "
            f"{batch}, in place of per_device_train_batch_size and gradient_accumulation_steps."
        )
    raise CheckpointError(f"'{checkpoint}' is of another run: {'; '.join(changed)}. {remedy}")


def check_same_world(checkpoint: Path, engine: str, processes: int) -> None:
    """Refuse another engine or another number of processes where either keeps a piece of the optimizer for each.

    Under DDP, or in one process, the optimizer is whole in every process, and the order of the data and the batch do
    not depend on how many there are. Other engines lay their state out each in its own way.

    Raises:
        CheckpointError: the pieces are of other processes, or of another engine.
    """
    facts = facts_of(checkpoint)
    then, before, whole = facts.get("processes", processes), facts.get("engine", engine), (ONE, DDP)
    if (then, before) == (processes, engine) or (engine in whole and before in whole):
        return
    made = f"{then} process{'es' * (then != 1)} under {before}"
    raise CheckpointError(
        f"'{checkpoint}' was made by {made}, and this is {engine} with {processes}: FSDP2 and DeepSpeed keep a piece "
        f"of the optimizer's state for each process, each in its own way. Go on with {made}, or start afresh with "
        "model_name_or_path set to it."
    )


def not_saved(cause: Exception, run: Path, name: str) -> str:
    """What could not be written and why, and what is there to go on from."""
    left = checkpoints(run)
    intact = f"{left[0].name} and what is older are intact" if left else "there is no earlier checkpoint"
    try:
        room = f"{shutil.disk_usage(run).free / 2**30:.1f} GiB are free"
    except OSError:
        room = "the folder is gone"
    return (
        f"{name} could not be written to '{run}' ({one_line(cause)}; {room}); {intact}. Make room or mend the folder, "
        "and go on with resume_from_checkpoint=auto."
    )
