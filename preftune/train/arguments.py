"""`TrainingArguments` as whole-step training needs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from preftune.errors import RecipeError
from preftune.model.spread import device_of
from preftune.train.best import lower_is_better
from preftune.train.engines import DDP, ONE, asked_engine, join_deepspeed, prepare_environment


@dataclass
class PreferenceArguments(TrainingArguments):
    """`TrainingArguments` for whole-step training.

    `per_device_train_batch_size x gradient_accumulation_steps x processes` is the global batch, as published. It is
    folded into the first factor here, because one item of the loader is one optimizer step.

    `device_map` spreads the layers of the model over several devices of the process (`preftune.model.spread`): auto,
    over all GPUs that are left for it, or a map of module names to devices.
    """

    device_map: Any = None

    def __post_init__(self) -> None:
        self.per_device_train_batch_size *= self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False  # it hides the NaN and trains on
        self.ddp_find_unused_parameters = False
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            self.use_cpu = True  # under torchrun without it, ranks train apart and exit 0
        if self.metric_for_best_model and self.greater_is_better is None:
            self.greater_is_better = not lower_is_better(self.metric_for_best_model)
        prepare_environment(on_cpu=bool(self.use_cpu))
        own = self.tf32
        if own is None and any((self.torch_compile, self.torch_compile_backend, self.torch_compile_mode)):
            self.tf32 = False  # else transformers rounds float32 products on GPUs, unasked
        with _dynamo_left_alone():
            super().__post_init__()
        self.tf32 = own
        self._check_backend()
        if self.fsdp and self.fsdp_config.get("cpu_ram_efficient_loading"):
            raise RecipeError(
                "'cpu_ram_efficient_loading' gives weights to the first process alone, and each process looks at the "
                "model before it is sharded. Leave it out of fsdp_config."
            )
        join_deepspeed(self)
        if self.device_map is not None:
            self._settle_device_map()
        if self.n_gpu > 1:
            raise RecipeError(
                f"{self.n_gpu} GPUs are visible to one process. Start one process a GPU (--nproc, torchrun, "
                "accelerate; a model that is too large for one takes fsdp: true or ZeRO-3), set device_map: auto, "
                "which spreads the model's layers over them, or CUDA_VISIBLE_DEVICES to one of them."
            )
        if self.fsdp and self.parallel_mode != ParallelMode.DISTRIBUTED:
            raise RecipeError(
                "'fsdp' shards over several processes, and this is one alone. Start them with --nproc N, torchrun or "
                "accelerate launch, or leave fsdp out."
            )

    def _settle_device_map(self) -> None:
        engine = asked_engine(self)
        if engine not in (ONE, DDP):
            raise RecipeError(f"'device_map' and {engine} do not go together: the engine places weights itself.")
        if engine == DDP and self.device_map != "auto":
            raise RecipeError("'device_map' is a map for one process, and several train. Set device_map: auto.")
        self._n_gpu = min(self.n_gpu, 1)  # the others are the model's, and take no batches
        if engine == DDP and self.spreads:
            os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # DDP of one model on several devices

    @property
    def spreads(self) -> bool:
        """Whether the layers of a model lie on several of them."""
        return len(self.devices) > 1

    @property
    def devices(self) -> list[torch.device]:
        """Those of this process, its own first: as published, of G GPUs and W processes r, r + W, r + 2W, ..."""
        if self.device_map == "auto" and self.device.type == "cuda":
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            return [
                torch.device("cuda", i) for i in range(self.device.index or 0, torch.cuda.device_count(), processes)
            ]
        given = self.device_map.values() if isinstance(self.device_map, dict) else ()
        return list(dict.fromkeys([self.device, *(device_of(place) for place in given)]))

    @property
    def place_model_on_device(self) -> bool | None:
        return False if self.spreads else super().place_model_on_device

    def _check_backend(self) -> None:
        """accelerate would end in a traceback, and later."""
        known = [name.lower() for name in DynamoBackend.__members__]
        if self.torch_compile and str(self.torch_compile_backend).lower() not in known:
            raise RecipeError(
                f"'torch_compile_backend' must be one of {', '.join(known)}, found {self.torch_compile_backend!r}."
            )


@contextmanager
def _dynamo_left_alone() -> Iterator[None]:
    """TrainingArguments write torch_compile into the environment, where the next run of this process would find it."""
    before = {name: os.environ.get(name) for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE")}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def checkpointing_kwargs(args: TrainingArguments) -> dict[str, object] | None:
    """Of gradient checkpointing, by the name that the installed release has for them."""
    return getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs


def default_micro_batch_tokens(device: torch.device) -> int:
    """Packed tokens of a micro-batch when the recipe names none."""
    return default_micro_batch_tokens_of(device.type)


def default_micro_batch_tokens_of(kind: str) -> int:
    """The same for a kind of device."""
    return 4096 if kind == "cpu" else 8192
