"""Answers of the engine against `model.generate`, one prompt at a time."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from preftune.data import read_chat_format
from preftune.errors import ModelError
from preftune.generation import Engine, Request, Sampling
from preftune.model.ends import ending_ids
from preftune.model.load import load_tokenizer
from tests.data.conftest import find_data_folder
from tests.generation.conftest import END, answers_of, assert_same_but_for_ties, build_requests, greedy
from tests.small import ARCHITECTURES, SHAPE, build_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_are_those_of_generate_whatever_else_is_in_the_batch(name):
    model = build_model(name).eval()
    engine, requests = Engine(model, slots=7), build_requests(8)

    found = answers_of(engine, requests)

    assert engine.shares_prompts
    assert len(found) == 24
    for request in requests:
        wanted = greedy(model, request)
        for index in range(3):
            assert_same_but_for_ties(model, request, found[request.key, index].ids, wanted)


def test_a_real_models_answers_are_those_of_generate():
    folder = find_data_folder() / "models" / "stories260K-llama"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(str(folder))
    ends = ending_ids(model, read_chat_format(tokenizer))
    sampling = Sampling(max_new_tokens=60, temperature=0, ends=ends)
    starts = ["Once upon a time", "The dog", "Lily and Ben went to the park. They saw a big tree and", "One day, a cat"]
    requests = [Request(text, tokenizer(text)["input_ids"], (0, 1), sampling) for text in starts]

    found = answers_of(Engine(model, slots=5), requests)

    for request in requests:
        assert_same_but_for_ties(model, request, found[request.key, 1].ids, greedy(model, request))


def test_a_window_that_bites_while_a_prompt_is_read_and_while_an_answer_is_written():
    model = build_model("gemma2").eval()
    requests = [Request("long", list(range(3, 63)), (0,), Sampling(40, temperature=0))]

    found = answers_of(Engine(model), [*requests, *build_requests(5)])

    assert_same_but_for_ties(model, requests[0], found["long", 0].ids, greedy(model, requests[0]))


def test_a_sampled_answer_is_a_function_of_its_prompt_and_seed():
    model = build_model().eval()
    requests = build_requests(8, (13, 21), temperature=0.7, top_p=0.9)

    together = answers_of(Engine(model, slots=9), requests)

    for request in requests[::3]:
        for index, seed in enumerate(request.seeds):
            alone = Request("alone", request.prompt, (seed,), request.sampling)
            assert answers_of(Engine(model, slots=1), [alone])["alone", 0].ids == together[request.key, index].ids
    assert any(together[number, 0].ids != together[number, 1].ids for number in range(8))


def test_an_answer_ends_with_an_ending_token_or_at_its_length_or_with_the_context():
    model = build_model().eval()
    endless = Request("endless", [5] * 250, (0,), Sampling(1000, temperature=1.0, top_p=1.0))
    short = Request("short", [5, 6], (0,), Sampling(3, temperature=1.0))

    found = answers_of(Engine(model), [endless, short, *build_requests(6, temperature=1.0, top_p=1.0, tokens=200)])

    assert (found["endless", 0].finish, len(found["endless", 0].ids)) == ("length", 6)  # 256 positions
    assert (found["short", 0].finish, len(found["short", 0].ids)) == ("length", 3)
    ended = [answer for answer in found.values() if answer.ended]
    assert ended
    assert all(answer.ids.index(END) == len(answer.ids) - 1 for answer in ended)
    assert all(END not in answer.ids for answer in found.values() if not answer.ended)


def test_log_probs_are_those_of_the_model_itself():
    model = build_model().eval()
    request = Request("a", [7, 8, 9], (4,), Sampling(12, temperature=0.5, top_p=0.8, logprobs=True))

    answer = answers_of(Engine(model), [request, *build_requests(3)])["a", 0]

    with torch.inference_mode():
        logits = model(torch.tensor([request.prompt + answer.ids])).logits[0, 2:-1]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
    assert answer.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_requests_that_come_and_go_while_others_are_written():
    model = build_model().eval()
    engine, requests = Engine(model, slots=4), build_requests(8, (0, 1), tokens=20)
    waiting, found, streamed = list(requests), {}, {}
    engine.submit(Request("dropped", [9] * 20, (0, 1, 2), Sampling(200, temperature=0)))
    for turn in range(500):
        if turn == 3:
            assert engine.cancel("dropped")
        if waiting and turn % 2:
            engine.submit(waiting.pop())
        for event in engine.step():
            streamed.setdefault((event.key, event.index), []).append(event.token)
            if event.answer is not None:
                found[event.key, event.index] = event.answer
        if not waiting and not engine.busy:
            break

    assert "dropped" not in {key for key, _ in found}
    assert len(found) == 16
    for request in requests:
        assert_same_but_for_ties(model, request, found[request.key, 1].ids, greedy(model, request))
        assert streamed[request.key, 1] == found[request.key, 1].ids
    assert engine.load == (0, 0)


def test_a_cancelled_request_frees_its_slots_and_its_key_wherever_it_is():
    engine = Engine(build_model().eval(), slots=2)
    for key in ("written", "read", "queued"):
        engine.submit(Request(key, [5] * 200, (0, 1), Sampling(50, temperature=0)))
    engine.step()

    assert [engine.cancel(key) for key in ("read", "queued", "written", "written")] == [True, True, True, False]

    assert not engine.busy
    assert engine.load == (0, 0)
    engine.submit(Request("written", [5], (0,), Sampling(2, temperature=0)))


def test_every_prompt_is_computed_once():
    model = build_model().eval()
    engine, seen = Engine(model, slots=3), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))

    answers_of(engine, [Request("a", [5] * 50, tuple(range(7)), Sampling(4, temperature=0))])

    assert [tokens for tokens in seen if tokens > 3] == [50]


def test_a_model_with_a_cache_of_its_own_answers_one_at_a_time(caplog):
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=211, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0, eos_token_id=END
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    requests = build_requests(3, (0, 1), tokens=8)
    with caplog.at_level(logging.WARNING, "preftune"):
        engine = Engine(model, slots=4)

    found = answers_of(engine, requests)

    assert not engine.shares_prompts
    assert "one sequence at a time" in caplog.text
    for request in requests:
        assert_same_but_for_ties(model, request, found[request.key, 1].ids, greedy(model, request))


def build_llama4():
    """Its layers do not take the engine's cells."""
    config = transformers.Llama4TextConfig(
        **{**SHAPE, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 16}
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def test_layers_of_another_kind_take_the_plain_road():
    model = build_llama4()
    request = Request("a", list(range(5, 20)), (0,), Sampling(12, temperature=0))

    engine = Engine(model)

    assert not engine.shares_prompts
    assert_same_but_for_ties(model, request, answers_of(engine, [request])["a", 0].ids, greedy(model, request))


@pytest.mark.parametrize("build", [build_model, build_llama4])
def test_after_a_prompt_that_failed_the_next_is_answered_as_ever(build):
    """As memory that is full for one long prompt leaves an engine that goes on to live."""
    model = build().eval()
    engine, sampling = Engine(model, slots=4), Sampling(8, temperature=0)
    engine.submit(Request("short", [9, 8, 7], (0,), sampling))
    engine.submit(Request("long", [5] * 30, (0,), sampling))

    def refuse(module, args):
        if args[0].shape[-1] == 30:
            raise torch.OutOfMemoryError("full")

    hook = model.get_input_embeddings().register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        engine.step()
    hook.remove()
    assert engine.cancel("short") and engine.cancel("long")

    request = Request("next", [5, 6, 7, 8], (0,), sampling)
    assert answers_of(engine, [request])["next", 0].ids == greedy(model, request)


def test_a_policy_in_training_is_left_as_it_was():
    from preftune.model.policy import to_policy

    model = to_policy(build_model())
    before = model.config._attn_implementation
    request = build_requests(1, (0,))[0]

    found = answers_of(Engine(model), [request])

    assert found[request.key, 0].ids == greedy(build_model().eval(), request)
    assert model.training
    assert model.config._attn_implementation == before


def test_low_precision_takes_the_fast_road():
    assert Engine(build_model(dtype=torch.bfloat16).eval()).shares_prompts


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("a", [], (0,)), "at least one token"),
        (Request("a", [5], ()), "at least one seed"),
        (Request("a", [5] * 256, (0,)), "256 tokens, the model reads 256"),
        (Request("b", [5], (0,)), "not finished yet"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(request_, said):
    engine = Engine(build_model().eval())
    engine.submit(Request("b", [5], (0,), Sampling(5)))

    with pytest.raises(ModelError, match=said):
        engine.submit(request_)


def test_logits_that_are_no_numbers_are_an_error():
    model = build_model().eval()
    engine = Engine(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)

    with pytest.raises(ModelError, match="not finite"):
        answers_of(engine, build_requests(1))


def test_an_answer_that_is_ended_frees_its_slot_and_leaves_the_others_as_they_are():
    model = build_model().eval()
    prompt = [5, 6, 7]
    sampling = Sampling(20, temperature=0)
    alone = answers_of(Engine(model), [Request("a", prompt, (0,), sampling)])["a", 0].ids
    engine = Engine(model, slots=2)
    engine.submit(Request("a", prompt, (0, 1, 2), sampling))
    engine.step()

    assert engine.end("a", 0)
    assert not engine.end("a", 0) and not engine.end("b", 0)
    found = {event.index: event.answer for event in steps(engine) if event.answer}

    assert {index: answer.ids for index, answer in found.items()} == {1: alone, 2: alone}
    assert engine.load == (0, 0)


def steps(engine):
    while engine.busy:
        yield from engine.step()


def test_the_likeliest_tokens_come_with_their_log_probs():
    model = build_model().eval()
    engine = Engine(model)
    engine.submit(Request("a", [5, 6], (0,), Sampling(4, temperature=0, logprobs=True, top_logprobs=3)))
    engine.submit(Request("b", [5, 6], (0,), Sampling(4, temperature=0)))

    events = list(steps(engine))

    own = [event for event in events if event.key == "a"]
    ids = [5, 6, *(event.token for event in own)]
    with torch.inference_mode():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, event in enumerate(own):
        values, tokens = logps[1 + place].topk(3)
        assert [token for token, _ in event.top] == tokens.tolist()
        assert [value for _, value in event.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert event.logprob == pytest.approx(event.top[0][1])
    assert all(event.top == () for event in events if event.key == "b")
