"""vLLM takes the engine's requests and gives its events. What needs vLLM is run where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch
import transformers

from preftune.cli.main import main
from preftune.errors import MissingExtraError, ModelError
from preftune.generation import Engine, Request, Sampling, build_engine, load_vllm
from tests.data.conftest import CHATML, build_byte_tokenizer

HAS_VLLM = importlib.util.find_spec("vllm") is not None
PROMPTS = [[256, 40, 50, 60], [256, 70, 80, 90, 100, 110], [256, 5]]


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_the_extra_is_named(tmp_path, capsys):
    with pytest.raises(MissingExtraError, match=r"The engine 'vllm' needs the 'vllm' extra"):
        load_vllm(str(tmp_path))


if HAS_VLLM:

    @pytest.fixture(scope="module")
    def folder(tmp_path_factory):
        """A Llama of a head size that vLLM's CPU attention has."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        place = tmp_path_factory.mktemp("vllm")
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=260,
            max_position_embeddings=128,
            bos_token_id=256,
            eos_token_id=257,
        )
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, 0, 0.2)
        model.save_pretrained(place)
        build_byte_tokenizer(CHATML, adds_bos=True).save_pretrained(place)
        return place

    @pytest.fixture(scope="module")
    def engine(folder):
        return build_engine(load_vllm(str(folder), torch_dtype="float32"), 8)

    @pytest.fixture(scope="module")
    def ours(folder):
        return Engine(transformers.AutoModelForCausalLM.from_pretrained(folder).eval())

    def requests(**sampling):
        chosen = Sampling(**{"max_new_tokens": 12, "temperature": 0.0, "logprobs": True, "top_logprobs": 2} | sampling)
        return [Request(number, prompt, (1, 2), chosen) for number, prompt in enumerate(PROMPTS)]

    def test_greedy_answers_and_log_probs_are_those_of_our_engine(engine, ours):
        assert engine.context == ours.context == 128
        found, want = ({(k, i): answer for k, i, answer in one.run(requests())} for one in (engine, ours))
        assert {place: answer.ids for place, answer in found.items()} == {place: a.ids for place, a in want.items()}
        for place, answer in found.items():
            assert answer.finish == "length"
            assert answer.logprobs == pytest.approx(want[place].logprobs, abs=1e-4)

    def test_an_ending_token_ends_the_answer_and_belongs_to_it(engine, ours):
        end = next(ours.run(requests()[:1]))[2].ids[3]
        found = {k: answer for k, _, answer in engine.run(requests(ends=(end,)))}
        want = {k: answer for k, _, answer in ours.run(requests(ends=(end,)))}
        assert found[0].finish == "stop" and found[0].ids[-1] == end
        assert {k: (a.ids, a.finish) for k, a in found.items()} == {k: (a.ids, a.finish) for k, a in want.items()}

    def test_the_likeliest_tokens_come_with_their_log_probs(engine, ours):
        tops = []
        for one in (engine, ours):
            one.submit(requests()[1])
            events = [event for _ in range(20) if one.busy for event in one.step()]
            tops.append([event.top for event in events if event.index == 0])
        assert [[i for i, _ in top] for top in tops[0]] == [[i for i, _ in top] for top in tops[1]]
        for a, b in zip(*tops, strict=True):
            assert [p for _, p in a] == pytest.approx([p for _, p in b], abs=1e-4)

    def test_seeds_are_the_requests_own_and_the_context_ends_an_answer(engine):
        sampled = Request("s", PROMPTS[0], (5, 5, 6), Sampling(max_new_tokens=1000, temperature=1.0))
        found = {index: answer for _, index, answer in engine.run([sampled])}
        assert found[0].ids == found[1].ids != found[2].ids
        assert len(found[0].ids) == 128 - 4 and found[0].finish == "length"

    def test_a_request_is_dropped_and_one_of_its_answers_ended(engine):
        engine.submit(Request("a", PROMPTS[0], (1, 2), Sampling(max_new_tokens=50)))
        engine.step()
        assert engine.end("a", 0) and not engine.end("a", 0) and engine.holds("a")
        assert {event.index for event in engine.step()} <= {1}
        assert engine.cancel("a") and not engine.holds("a") and not engine.busy and not engine.cancel("a")

    def test_what_cannot_be_answered_is_refused(engine):
        for request in (Request("a", []), Request("a", [1], ()), Request("a", [1] * 128)):
            with pytest.raises(ModelError):
                engine.submit(request)
        assert not engine.busy

    def test_sample_writes_the_same_rows(folder, tmp_path):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"prompt": "Where is Rome?"}\n{"prompt": "Hi"}\n')
        rows = {}
        for name in ("vllm", "transformers"):
            output = tmp_path / f"{name}.jsonl"
            words = ["--output", str(output), "--engine", name, "--temperature", "0", "--max-tokens", "12"]
            words += ["--torch-dtype", "float32"]
            assert main(["sample", str(folder), str(prompts), "--seeds", "1", *words]) == 0
            rows[name] = [json.loads(line) for line in output.read_text().splitlines()]
        assert rows["vllm"] == rows["transformers"]

    def test_an_adapter_is_to_be_merged_first(tmp_path):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"}))
        with pytest.raises(ModelError, match="preftune export"):
            load_vllm(str(tmp_path))
