"""vLLM in place of our engine (extra `vllm`): the same requests, the same events.

    model = load_vllm("runs/my")
    engine = build_engine(model, slots=256)         # then as `preftune.generation.engine`

Token ids go in and token ids come out, so template, BOS and ending tokens are those of training here too. A seed is the
request's own, but vLLM's kernels may round otherwise in another batch: a sampled answer is not promised to be the same
again, as it is with our engine.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, GenerationConfig

from preftune.errors import MissingExtraError, ModelError
from preftune.generation.engine import Engine
from preftune.generation.request import Answer, Event, Request, Sampling, check_request
from preftune.model.load import find_adapter, one_line

SETTINGS = {  # vLLM's, where the environment does not say otherwise
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a signal or a kill is then that of one process
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


@dataclass(frozen=True)
class VllmModel:
    """What stands for the model where vLLM has it: its configuration, and how to start the engine."""

    place: str
    config: Any
    generation_config: GenerationConfig
    torch_dtype: str
    trust_remote_code: bool = False


@dataclass
class _Open:
    """A request, and its answers that are being written."""

    request: Request
    answers: dict[int, Answer] = field(default_factory=dict)


def load_vllm(place: str, *, torch_dtype: str = "auto", trust_remote_code: bool = False) -> VllmModel:
    """Read a model's configuration; its weights are loaded when an engine is built.

    Args:
        place: a folder with a whole model, or a hub name.
        torch_dtype: of the weights: auto (as saved), float32, bfloat16 or float16.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: there is no model, or it is an adapter.
    """
    _vllm()
    if find_adapter(place, "main") is not None:
        raise ModelError(
            f"'{place}' is an adapter; vLLM takes whole models. Merge it: preftune export {place} --out FOLDER"
        )
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as cause:
        raise ModelError(f"No model can be loaded from '{place}': {one_line(cause)}") from cause
    try:
        named = GenerationConfig.from_pretrained(place)
    except OSError:  # a model need not have one
        named = GenerationConfig.from_model_config(config)
    return VllmModel(place, config, named, torch_dtype, trust_remote_code)


def build_engine(model: Any, slots: int) -> Engine | VllmEngine:
    """The engine of a model of transformers, or of vLLM's."""
    return VllmEngine(model, slots=slots) if isinstance(model, VllmModel) else Engine(model, slots=slots)


class VllmEngine:
    """Answers of one model through vLLM's engine, in this process; see `preftune.generation.engine.Engine`.

    Raises:
        ModelError: vLLM cannot run the model here; its reason in one line.
    """

    def __init__(self, model: VllmModel, *, slots: int = 256) -> None:
        vllm = _vllm()
        self._vllm = vllm
        arguments = vllm.EngineArgs(
            model=model.place,
            dtype=model.torch_dtype,
            max_num_seqs=slots,
            skip_tokenizer_init=True,
            trust_remote_code=model.trust_remote_code,
            disable_log_stats=True,
        )
        try:
            self._engine = vllm.LLMEngine.from_engine_args(arguments)
        except Exception as cause:  # of a large program, by many names
            raise ModelError(f"vLLM cannot run '{model.place}' here: {one_line(cause)}") from cause
        self.context: int | None = self._engine.model_config.max_model_len
        self._open: dict[Hashable, _Open] = {}
        self._names: dict[str, tuple[Hashable, int]] = {}  # vLLM's name of an answer
        self._count = 0

    @property
    def shares_prompts(self) -> bool:
        """Prompts are kept by their blocks and found again."""
        return True

    @property
    def busy(self) -> bool:
        return bool(self._names)

    @property
    def load(self) -> tuple[int, int]:
        """Answers that vLLM has taken up, and requests that wait: vLLM has its own queue."""
        return len(self._names), 0

    def holds(self, key: Hashable) -> bool:
        """Whether a request is not finished yet."""
        return key in self._open

    def submit(self, request: Request) -> None:
        """Take up a request.

        Raises:
            ModelError: its key is in use, its prompt is empty or fills the model's context, or it wants no answer.
        """
        check_request(request, self._open, self.context)
        most = request.sampling.max_new_tokens
        room = most if self.context is None else self.context - len(request.prompt)
        self._open[request.key] = _Open(request)
        for index, seed in enumerate(request.seeds):
            name = str(self._count)
            self._count += 1
            self._names[name] = request.key, index
            self._open[request.key].answers[index] = Answer()
            given = {"prompt_token_ids": list(request.prompt)}
            self._engine.add_request(name, given, self._parameters(request.sampling, seed, room))

    def cancel(self, key: Hashable) -> bool:
        """Drop a request; False where there is none with this key."""
        if key not in self._open:
            return False
        for index in list(self._open[key].answers):
            self.end(key, index)
        return True

    def end(self, key: Hashable, index: int) -> bool:
        """End one answer where it is; False where it is not being written."""
        name = next((name for name, answer in self._names.items() if answer == (key, index)), None)
        if name is None:
            return False
        self._engine.abort_request([name])
        self._close(name)
        return True

    def step(self) -> list[Event]:
        """The next tokens, as vLLM has them.

        Raises:
            ModelError: vLLM failed; what it was writing is lost.
        """
        events: list[Event] = []
        try:
            outputs = self._engine.step()
        except Exception as cause:
            raise ModelError(f"vLLM failed: {one_line(cause)}") from cause
        for output in outputs:
            if output.request_id in self._names:  # one that was ended may have a last word
                events += self._read(output.request_id, output.outputs[0])
        return events

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Hashable, int, Answer]]:
        """(key, number of the answer, answer) as they finish."""
        for request in requests:
            self.submit(request)
        while self.busy:
            for event in self.step():
                if event.answer is not None:
                    yield event.key, event.index, event.answer

    def _parameters(self, sampling: Sampling, seed: int, room: int) -> Any:
        return self._vllm.SamplingParams(
            seed=seed,
            max_tokens=min(sampling.max_new_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_token_ids=list(sampling.ends),
            ignore_eos=True,  # `ends` has all that end an answer
            logprobs=sampling.top_logprobs if sampling.logprobs else None,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )

    def _read(self, name: str, piece: Any) -> Iterator[Event]:
        key, index = self._names[name]
        opened = self._open[key]
        answer, sampling = opened.answers[index], opened.request.sampling
        tokens = list(piece.token_ids)
        for place, token in enumerate(tokens):
            logprob: float | None = None
            top: tuple[tuple[int, float], ...] = ()
            if sampling.logprobs:
                found = piece.logprobs[place]
                logprob = found[token].logprob
                best = sorted(found.items(), key=lambda item: item[1].rank)[: sampling.top_logprobs]
                top = tuple((other, one.logprob) for other, one in best)
                answer.logprobs.append(logprob)
            answer.ids.append(token)
            done = piece.finish_reason if place == len(tokens) - 1 else None
            if done is not None:
                answer.finish = "stop" if done == "stop" else "length"
                self._close(name)
            yield Event(key, index, token, logprob, None if done is None else answer, top)

    def _close(self, name: str) -> None:
        key, index = self._names.pop(name)
        del self._open[key].answers[index]
        if not self._open[key].answers:
            del self._open[key]


def _vllm() -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError:
        raise MissingExtraError("The engine 'vllm'", "vllm") from None
    return vllm
