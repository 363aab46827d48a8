"""Reward accuracy: against log-probs taken the slow way, for every objective of pairs, and a reward model's scores."""

import json
import shutil

import pytest
import torch
import transformers

from preftune.cli.main import main
from preftune.data import load_rows, to_examples, tokenize_examples
from preftune.errors import DataError, ModelError, RecipeError
from preftune.evaluation.preferences import implicit_rewards, measure_preferences
from preftune.objectives import load_objective, objective_names
from preftune.serve.reward import open_reward_model, score_examples
from preftune.types import Layout
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.small import SHAPE as SMALL

SHAPE = {**SMALL, "vocab_size": 260, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}
PAIRS = [
    {"prompt": f"Question {n}?", "chosen": "yes" * (1 + n % 3), "rejected": "no, never"[: 2 + n], "kind": "ab"[n % 2]}
    for n in range(7)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two language models and a reward model with the same tokenizer, and seven pairs."""
    folder = tmp_path_factory.mktemp("preferences")
    for seed, (name, kind) in enumerate((("policy", "CausalLM"), ("reference", "CausalLM"), ("reward", None))):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(**SHAPE, **({} if kind else {"num_labels": 1}))
        model = (transformers.LlamaForCausalLM if kind else transformers.LlamaForSequenceClassification)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 0.1)
        model.save_pretrained(folder / name)
        build_byte_tokenizer(CHATML).save_pretrained(folder / name)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return folder


@torch.no_grad()
def slow_logps(folder, name):
    """(7, 2) sums and lengths, one sequence at a time through the model's own logits."""
    examples = to_examples(load_rows(folder / "pairs.jsonl"), Layout.PAIRED)
    groups, _ = tokenize_examples(examples, build_byte_tokenizer(CHATML))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
    sums = torch.zeros(len(groups), 2)
    for row, group in enumerate(groups):
        for place, ids in enumerate(group.response_ids):
            whole = torch.tensor([group.prompt_ids + ids])
            logps = model(whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            sums[row, place] = logps.gather(1, torch.tensor(ids)[:, None]).sum()
    return sums, torch.tensor([[len(ids) for ids in group.response_ids] for group in groups])


def test_simpos_reward_is_the_mean_log_prob_times_beta(folder):
    sums, lengths = slow_logps(folder, "policy")
    expected = 2.5 * sums / lengths
    report = measure_preferences(
        str(folder / "policy"), folder / "pairs.jsonl", objective="simpo", settings={"beta": 2.5}, subset="kind"
    )
    margins = expected[:, 0] - expected[:, 1]
    assert report.overall.pairs == 7
    assert report.overall.accuracy == pytest.approx(100 * (margins > 0).float().mean().item())
    assert report.overall.margin == pytest.approx(margins.mean().item(), abs=1e-4)
    assert {name: one.pairs for name, one in report.subsets.items()} == {"a": 4, "b": 3}
    assert report.subsets["a"].margin == pytest.approx(margins[::2].mean().item(), abs=1e-4)
    assert report.subset_mean == pytest.approx(sum(one.accuracy for one in report.subsets.values()) / 2)
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in PAIRS]
    assert report.by_length["chosen longer"].pairs == sum(longer)
    assert sum(one.pairs for one in report.by_length.values()) == 7


def test_dpos_reward_is_over_the_reference(folder):
    policy, _ = slow_logps(folder, "policy")
    reference, _ = slow_logps(folder, "reference")
    examples = to_examples(load_rows(folder / "pairs.jsonl"), Layout.PAIRED)
    rule = load_objective("dpo", beta=0.3)
    rewards, cut = implicit_rewards(rule, str(folder / "policy"), str(folder / "reference"), examples)
    assert torch.allclose(torch.tensor(rewards), 0.3 * (policy - reference), atol=1e-4)
    assert cut == 0


def test_every_objective_of_pairs_has_an_implicit_reward(folder):
    examples = to_examples(load_rows(folder / "pairs.jsonl"), Layout.PAIRED)[:2]
    for name in objective_names():
        try:
            rule = load_objective(name)
        except RecipeError:
            continue  # one that samples
        if rule.layout != Layout.PAIRED or rule.reads != "logps":
            with pytest.raises(RecipeError, match="no implicit reward of pairs"):
                measure_preferences("m", folder / "pairs.jsonl", objective=name)
            continue
        reference = str(folder / "reference") if rule.needs_reference else None
        rewards, _ = implicit_rewards(rule, str(folder / "policy"), reference, examples)
        assert torch.tensor(rewards).shape == (2, 2) and torch.tensor(rewards).isfinite().all(), name


def test_a_reward_models_accuracy_is_that_of_its_scores(folder, capsys):
    examples = to_examples(load_rows(folder / "pairs.jsonl"), Layout.PAIRED)
    scores = score_examples(open_reward_model(str(folder / "reward")), examples).values
    assert main(["eval", "preferences", str(folder / "reward"), str(folder / "pairs.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reward"] == "score"
    assert found["overall"]["accuracy"] == pytest.approx(100 * sum(a > b for a, b in scores) / 7)
    assert found["overall"]["margin"] == pytest.approx(sum(a - b for a, b in scores) / 7, abs=1e-6)
    assert main(["eval", "preferences", str(folder / "policy"), str(folder / "pairs.jsonl"), "--objective", "simpo",
                 "--set", "beta=2", "--subset", "kind"]) == 0  # fmt: skip
    assert "mean of subsets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "more"),
    [("reward", {}), ("policy", {"objective": "dpo", "reference": "reference"})],
)
def test_the_system_text_of_training_is_in_front_of_prompts_that_have_none(folder, tmp_path, name, more):
    more = more | ({"reference": str(folder / "reference")} if more else {})
    shutil.copytree(folder / name, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("system_prompt: You are a pirate.\n")
    own = [*({**row, "system": "Be brief."} for row in PAIRS[:2]), *PAIRS[2:]]
    said = [{"system": "You are a pirate.", **row} for row in own]
    for file, rows in (("own.jsonl", own), ("said.jsonl", said)):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = measure_preferences(str(tmp_path / "run"), tmp_path / "own.jsonl", **more)

    assert found == measure_preferences(str(folder / name), tmp_path / "said.jsonl", **more)
    without = measure_preferences(str(folder / name), tmp_path / "own.jsonl", **more)
    assert abs(found.overall.margin - without.overall.margin) > 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "dpo"}, "Name it: --reference MODEL"),
        ({"objective": "simpo", "reference": "m"}, "'simpo' has no reference model"),
        ({"settings": {"beta": 1.0}}, "Name the objective"),
        ({"subset": "colour", "objective": "simpo"}, "the column 'colour' is missing"),
    ],
)
def test_what_does_not_fit_together_is_one_line(folder, settings, message):
    with pytest.raises((RecipeError, DataError), match=message):
        measure_preferences(str(folder / "policy"), folder / "pairs.jsonl", **settings)


def test_a_reference_with_another_tokenizer_is_refused(folder, tmp_path):
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    build_byte_tokenizer(
        CHATML.replace("user", "USER").replace("im_start|>assistant", "im_start|>bot")
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="are not those of"):
        measure_preferences(str(folder / "policy"), folder / "pairs.jsonl", objective="dpo", reference=str(tmp_path))
