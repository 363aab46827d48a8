"""What is served under which name: adapters beside their base, each as it answers alone; reward models."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from preftune.api.served import is_reward_model, name_of, open_shelf
from preftune.api.service import Limits
from preftune.errors import ModelError
from preftune.model.load import load_model
from preftune.model.lora import LoraSettings, add_adapter, save_plain_lora
from preftune.serve.chat import Sampling, open_chat
from preftune.serve.reward import open_reward_model, score_examples
from preftune.types import Example, Message, Origin
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.export.hub import pickled, put_in_cache
from tests.serve.api_server import in_thread, save_byte_model
from tests.serve.test_score import SHAPE, save_model

QUESTIONS = ["Who?", "Where is it, and why?", "1 + 1", "Tell me a story."]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_byte_model(tmp_path_factory.mktemp("models") / "base")


def save_adapter(base, folder, seed, **settings):
    torch.manual_seed(seed)
    model = add_adapter(load_model(str(base)), LoraSettings(**{"r": 4, "alpha": 8, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    save_plain_lora(model, folder)
    return folder


@pytest.fixture(scope="module")
def places(base):
    return {
        "base": base,
        "terse": save_adapter(base, base.parent / "terse", 1),
        "kind": save_adapter(base, base.parent / "kind", 2, target_modules=["q_proj"], modules_to_save=["norm"]),
        "dora": save_adapter(base, base.parent / "dora", 3, dora=True),
    }


def alone(place):
    chat = open_chat(str(place), sampling=Sampling(temperature=0, max_tokens=24), history=False)
    return [chat.ask(question) for question in QUESTIONS]


def ask(running, name, question):
    messages = [{"role": "user", "content": question}]
    answer = running.client().chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=24)
    return answer.choices[0].message.content.strip()


@pytest.mark.parametrize("first", ["base", "terse"])
def test_each_name_answers_as_it_does_alone_while_all_are_asked_at_once(places, first):
    adapters = {name: str(place) for name, place in places.items() if name not in ("base", first)}
    jobs = [(name, question) for question in QUESTIONS for name in (first, *adapters)]
    with in_thread(places[first], name=first, adapters=adapters) as running, ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: ask(running, *job), jobs))

    wanted = {name: alone(places[name]) for name in (first, *adapters)}
    assert len({tuple(answers) for answers in wanted.values()}) == len(wanted)
    assert dict(zip(jobs, found, strict=True)) == {
        (name, question): answer for name in wanted for question, answer in zip(QUESTIONS, wanted[name], strict=True)
    }


def test_an_adapter_of_another_base_is_refused(places, tmp_path):
    other = save_adapter(save_byte_model(tmp_path / "other"), tmp_path / "on other", 4)
    with pytest.raises(ModelError, match=r"its base model is .*other"):
        open_shelf(str(places["base"]), adapters={"x": str(other)})


def test_an_adapter_with_tokens_of_its_own_is_refused(places, tmp_path):
    grown = load_model(str(places["base"]))
    grown.resize_token_embeddings(grown.config.vocab_size + 2)
    save_plain_lora(add_adapter(grown, LoraSettings(r=2, modules_to_save=["embed_tokens", "lm_head"])), tmp_path / "x")
    with pytest.raises(ModelError, match=r"tokens of its own|does not fit"):
        open_shelf(str(places["base"]), adapters={"x": str(tmp_path / "x")})


def test_a_whole_model_is_no_adapter(places):
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        open_shelf(str(places["base"]), adapters={"x": str(places["base"])})


def test_a_name_is_there_once(places):
    with pytest.raises(ModelError, match="names the model and an adapter"):
        open_shelf(str(places["base"]), name="x", adapters={"x": str(places["terse"])})


def test_the_system_text_of_training_stands_before_a_conversation_without_one(places, tmp_path):
    place = shutil.copytree(places["base"], tmp_path / "run")
    (place / "recipe.yaml").write_text("system_prompt: Answer in rhymes.\n")
    with in_thread(place) as running:
        found = ask(running, "run", "Who?")
        client, own = running.client(), [{"role": "system", "content": "x"}, {"role": "user", "content": "Who?"}]
        usage = client.chat.completions.create(model="run", messages=own, max_tokens=1).usage

    assert found == alone(place)[0]
    text = "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert usage.prompt_tokens == len(text.replace("<|im_start|>", "*").replace("<|im_end|>", "*"))


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("reward") / "judge"
    save_model(LlamaConfig(**SHAPE), build_byte_tokenizer(CHATML), folder)
    return folder


def test_a_reward_model_gives_the_scores_of_preftune_score(reward):
    example = Example((Message("user", "Where is Rome?"),), ("In Italy.", "On the moon."), Origin("x", "x", 1))
    wanted = score_examples(open_reward_model(str(reward)), [example]).values[0]
    ask = {"model": "judge", "messages": [{"role": "user", "content": "Where is Rome?"}]}
    with in_thread(reward) as running:
        found = running.post("/v1/score", {**ask, "responses": ["In Italy.", "On the moon."]}).json()
        said = [*ask["messages"], {"role": "assistant", "content": "In Italy."}]
        one = running.post("/v1/score", {**ask, "messages": said}).json()
        refused = [
            running.post("/v1/score", ask),
            running.post("/v1/score", {**ask, "responses": [""]}),
            running.post("/v1/score", {**ask, "responses": []}),
        ]
        with pytest.raises(openai.BadRequestError, match="is not a model that answers; ask it at /v1/score"):
            running.client().chat.completions.create(model="judge", messages=ask["messages"])

    assert found["scores"] == pytest.approx(wanted, abs=1e-5) and found["cut"] == 0
    assert one["scores"] == pytest.approx(wanted[:1], abs=1e-5)
    assert [answer.status_code for answer in refused] == [400, 400, 400]


@pytest.mark.parametrize(("most", "limit"), [(None, 255), (64, 64)])
def test_a_prompt_to_score_has_the_limit_of_a_prompt(reward, most, limit):
    """One that is within the body's limit would be encoded and held once for every response."""
    with in_thread(reward, limits=Limits(prompt_tokens=most)) as running:
        said = [
            running.post(
                "/v1/score",
                {"model": "judge", "messages": [{"role": "user", "content": "x" * size}], "responses": ["a", "b"]},
            )
            for size in (20, 300)
        ]

    assert [answer.status_code for answer in said] == [200, 400]
    assert f"tokens; at most {limit} can be read here" in said[1].json()["error"]["message"]


def test_a_reward_model_of_a_hub_is_read_as_a_pickle_only_when_that_is_said(reward, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pickled(put_in_cache(tmp_path, "me/judge", reward))
    with pytest.raises(ModelError, match=r"No reward model can be loaded from 'me/judge'.*safetensors"):
        open_shelf("me/judge", score=True)
    assert open_shelf("me/judge", score=True, allow_pickle=True).names == ["me/judge"]


def test_an_adapter_of_a_hub_is_read_as_a_pickle_only_when_that_is_said(places, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    build_byte_tokenizer(CHATML).save_pretrained(pickled(put_in_cache(tmp_path, "me/terse", places["terse"])))
    line = r"'me/terse' is an adapter without adapter_model\.safetensors.*--allow-pickle"
    with pytest.raises(ModelError, match=line):
        open_chat("me/terse")
    with pytest.raises(ModelError, match=line):
        open_shelf(str(places["base"]), adapters={"terse": "me/terse"})
    shelf = open_shelf(str(places["base"]), adapters={"terse": "me/terse"}, allow_pickle=True)
    assert shelf.names == ["base", "terse"]


def test_a_reward_model_is_known_by_its_files(reward, places):
    assert is_reward_model(str(reward))
    assert not is_reward_model(str(places["base"])) and not is_reward_model(str(places["terse"]))


def test_a_model_is_called_as_its_folder_or_as_on_the_hub(places):
    assert name_of(str(places["base"])) == "base"
    assert name_of(f"{places['base']}/") == "base"
    assert name_of("someone/some-model") == "someone/some-model"
