"""A Trainer whose checkpoints are complete or do not exist, and which resumes its own run or none."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import rotate_checkpoints

from preftune.errors import CheckpointError, RecipeError
from preftune.model.load import one_line
from preftune.model.sharding import is_sharded, whole_state
from preftune.train.checkpoint import MANIFEST, STAGING, publish, seal, step_of
from preftune.train.held import HeldTrainer

logger = logging.getLogger(__name__)


class SealedTrainer(HeldTrainer):
    """Stages, seals and publishes checkpoints (`preftune.train.checkpoint`), and refuses torn or foreign ones.

    A subclass says what the run is (`_identity`), what to look at before a save (`_before_saving`), and what a
    checkpoint holds beside the Trainer's files (`_save_more`, `_load_more`).
    """

    staging = False
    window_start = 0.0  # of the throughput that is logged; time spent saving is moved out of it

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resume to go on with the same run."""
        raise NotImplementedError

    def _before_saving(self) -> None:
        """Raise where the state is not worth saving."""

    def _save_more(self, folder: Path) -> None:
        """Write further files into a staged checkpoint, in the main process."""

    def _load_more(self, checkpoint: Path) -> None:
        """Read them again."""

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
        if not self.staging:  # uploads in the background from the folder it is given: only a published one
            super()._push_from_checkpoint(checkpoint_folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        try:
            super().init_hf_repo(token, private)
        except Exception as cause:  # whatever the network's library raises: before training it is a setting to mend
            raise RecipeError(
                f"'push_to_hub': no repository for '{self.args.hub_model_id or self.args.output_dir}' on the hub "
                f"({one_line(cause)}). Log in with `hf auth login`, or set push_to_hub: false."
            ) from cause

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Trainer's; a hub that is out of reach does not take a finished run down with it."""
        try:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        except Exception as cause:
            folder = self.args.output_dir
            logger.warning("Saved in %s, but not on the hub (%s). Upload it with `hf upload`.", folder, one_line(cause))
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
        self._before_saving()
        started = time.perf_counter()
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)  # what a crash left
        self.accelerator.wait_for_everyone()
        with self._staged():
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            self._save_more(run / STAGING / name)
        if self.state.best_model_checkpoint:  # written with the staging path
            self.state.best_model_checkpoint = self.state.best_model_checkpoint.replace(f"{os.sep}{STAGING}", "")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(run, name)
        self.accelerator.wait_for_everyone()
        self.window_start += time.perf_counter() - started  # as evaluation, not training throughput
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _publish(self, run: Path, name: str) -> None:
        staged = run / STAGING / name
        if self.state.best_model_checkpoint:
            self.state.save_to_json(str(staged / "trainer_state.json"))
        seal(staged, {"step": self.state.global_step, "run": self._identity()})
        publish(staged, run / name)
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=False,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._require(checkpoint, "scheduler.pt")
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # they keep theirs in shards and check themselves
            self._require(checkpoint, "optimizer.pt")
        if checkpoint is not None:
            self._load_more(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        ranked = self.args.world_size > 1
        self._require(checkpoint, f"rng_state_{self.args.process_index}.pth" if ranked else "rng_state.pth")
        super()._load_rng_state(checkpoint)

    def _check_same_run(self, checkpoint: Path) -> None:
        """Refuse to go on with other data, another batch or another objective than the checkpoint was made with."""
        manifest = checkpoint / MANIFEST
        if not manifest.is_file():
            return  # not one of ours; Trainer decides
        saved = json.loads(manifest.read_text(encoding="utf-8")).get("run", {})
        now = self._identity()
        changed = [
            f"{key} {saved[key]!r} then, {now[key]!r} now" for key in now if key in saved and saved[key] != now[key]
        ]
        if changed:
            raise CheckpointError(
                f"'{checkpoint}' is of another run: {'; '.join(changed)}. Use the recipe that made it, or start afresh "
                "with model_name_or_path set to it."
            )

    def _require(self, checkpoint: str | None, name: str) -> None:
        if checkpoint is not None and not (Path(checkpoint) / name).is_file():
            step = step_of(Path(checkpoint))
            raise CheckpointError(
                f"'{checkpoint}' has no {name}: going on from step {step} without it would be another run. "
                "It was saved with save_only_model, or by another number of processes."
            )
