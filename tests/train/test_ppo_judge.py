"""The reward of PPO from a judge behind an endpoint; a local server plays the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from preftune import train
from preftune.endpoint import Endpoint, EndpointError
from preftune.errors import ModelError, RecipeError, TrainingError
from preftune.objectives.ppo import PPO
from preftune.train.ppo.judged import JudgedReward
from preftune.train.ppo.prompts import Prompt
from preftune.train.record import read_log
from preftune.types import Message, Origin
from tests.endpoint.server import Script, serving
from tests.train.test_ppo import models, weights, work  # noqa: F401, fixtures


def judge(body):
    """Longer answers are better, up to 9."""
    answer = body["messages"][0]["content"].partition("[answer]\n")[2].partition("\n[end of the answer]")[0]
    return f"It is what it is. Rating: [[{1 + min(len(answer), 8)}]]"


def test_a_run_takes_the_ratings_of_a_judge_and_a_second_one_asks_nothing(work, monkeypatch):  # noqa: F811
    monkeypatch.setattr("preftune.train.run.plot_log", lambda records, folder: [])
    work |= {"reward_function": None, "reward_judge": "judge", "seed": 3}
    script = Script("busy", "page", says=judge)
    with serving(script) as url:
        train(None, **work, reward_endpoint=f"{url}, {url}")
    first = weights()
    asked = len(script.asked)
    assert 1 <= read_log(Path("run/log.jsonl"))[0]["objective/scores"] <= 9 and 2 < asked <= 10
    assert script.asked[0]["model"] == "judge" and "Say " in script.asked[0]["messages"][0]["content"]
    with serving(script) as url:
        train(None, **work, reward_endpoint=url)
    assert len(script.asked) == asked
    assert all(torch.equal(value, first[name]) for name, value in weights().items())


def test_a_judge_may_have_moved_when_a_run_goes_on_and_another_judge_is_another_run():
    """Checkpoints hold the settings as `repr` writes them."""
    there = PPO(reward_endpoint="http://b/v1", reward_judge="m", reward_key_from="K")
    assert repr(there) == repr(PPO(reward_endpoint="http://a/v1", reward_judge="m"))
    assert repr(there) != repr(PPO(reward_endpoint="http://b/v1", reward_judge="n"))


@pytest.fixture
def rated(tmp_path):
    """The ratings of four responses."""

    def rate(script):
        prompts = [Prompt([1], (Message("user", f"q{n}"),), Origin("p.jsonl", "train", n)) for n in range(4)]
        with serving(script) as url:
            reward = JudgedReward(Endpoint(url, "judge", tries=1, concurrency=1), "{prompt} {response}")
            return reward(prompts, [], ["a", "b", "c", "d"])

    return rate


def test_a_response_without_a_rating_is_worth_the_mean_of_the_others(rated, caplog):
    says = {"q0 a": "[[2]]", "q1 b": "no idea", "q2 c": "[[4]]", "q3 d": "[[9]]"}
    assert rated(Script(says=lambda body: says[body["messages"][0]["content"]])) == [2.0, 5.0, 4.0, 9.0]
    assert "1 of 4 responses got no rating from the judge 'judge'" in caplog.text and "'no idea'" in caplog.text


def test_a_judge_that_rates_too_few_stops_the_run(rated):
    with pytest.raises(
        TrainingError, match=r"3 of 4 responses got no rating.*status 500: out of luck \(1 tries\)"
    ) as error:
        rated(Script("answer", then="fail", says=lambda body: "[[2]]"))
    assert "\n" not in str(error.value)


def test_a_wrong_address_or_key_is_one_line(work):  # noqa: F811
    work |= {"reward_function": None, "reward_judge": "judge"}
    with pytest.raises(RecipeError, match="'localhost' is no address of an endpoint"):
        train(None, **work, reward_endpoint="localhost")
    with pytest.raises(ModelError):
        train(None, **{**work, "model_name_or_path": "./none"}, reward_endpoint="http://127.0.0.1:9/v1")
    assert not Path("run").exists()
    with serving(Script(then="forbid")) as url, pytest.raises(EndpointError, match="MY_KEY"):
        train(None, **work, reward_endpoint=url, reward_key_from="MY_KEY")
