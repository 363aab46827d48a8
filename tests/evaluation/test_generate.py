"""AlpacaEval end to end: a small model answers, a small reward model judges, the figures are printed."""

import json
import os

import pytest
import torch
import transformers
import yaml

from preftune.cli.main import main
from preftune.errors import DataError
from preftune.evaluation.answers import Candidate, Journal, changed_preset
from preftune.evaluation.bench_answers import answer_arena_hard, answer_mt_bench
from preftune.evaluation.files import read_rows, write_rows
from preftune.evaluation.generate import PRESETS, configuration, generate_outputs
from preftune.model.ends import ending_ids
from preftune.types import Message
from tests.data.conftest import CHATML, build_byte_tokenizer
from tests.endpoint.server import Script, serving
from tests.holding import held_by_another
from tests.small import SHAPE as SMALL

SHAPE = {**SMALL, "vocab_size": 260, "pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 257}
QUESTIONS = [{"dataset": "d", "instruction": f"Say {n}.", "output": "x" * n, "generator": "base"} for n in range(1, 9)]
SHORT = changed_preset(PRESETS["mistral-base"], 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, a reward model, and a baseline's outputs."""
    folder = tmp_path_factory.mktemp("alpaca")
    torch.manual_seed(0)
    policy = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    reward = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SHAPE, num_labels=1))
    with torch.no_grad():
        for parameter in (*policy.parameters(), *reward.parameters()):
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        build_byte_tokenizer(CHATML).save_pretrained(folder / name)
    write_rows(folder / "baseline.json", QUESTIONS)
    return folder


def outputs_of(folder, questions, output, **more):
    model = str(folder / "policy")
    return generate_outputs(model, Candidate(model, **more), questions, output, SHORT)


def test_the_benchmark_runs_end_to_end_and_does_no_step_twice(folder, tmp_path, capsys):
    words = ["eval", "alpaca-eval", "run", str(folder / "policy"), "--preset", "mistral-base", "--max-new-tokens", "12",
             "--baseline", str(folder / "baseline.json"), "--folder", str(tmp_path), "--reward-model",
             str(folder / "reward"), "--minimal", "--json"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])
    rows = read_rows(tmp_path / "annotations.json")
    assert found["annotator"] == f"reward_model:{folder / 'reward'}"
    assert found["win_rate"] == pytest.approx(100 * sum(row["preference"] - 1 for row in rows) / 8)
    assert found["n_total"] == 8 and found["lc_variant"] == "minimal"
    for row in rows:
        assert (row["preference"] > 1.5) == (row["scores"][1] > row["scores"][0])
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    (tmp_path / "scores.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in times} == {
        "model_outputs.json",
        "annotations.json",
        "configs.yaml",
        "prompt.txt",
        "run.json",
    }
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    capsys.readouterr()
    for changed, message in (
        (["--temperature", "0"], "model_outputs.json: is there already, made with other 'temperature'"),
        (["--scale", "2"], "annotations.json: is there already, made with other 'scale'"),
    ):
        assert main([*words, *changed]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "model_outputs.json").unlink()  # judged anew, or not at all
    assert main([*words, "--temperature", "0"]) == 2
    assert "annotations.json: is there already, made with other 'outputs'" in capsys.readouterr().err


def test_a_job_that_was_cut_off_goes_on_and_gives_the_same(folder, tmp_path):
    whole = outputs_of(folder, QUESTIONS, tmp_path / "whole.json")
    assert [row["instruction"] for row in whole] == [row["instruction"] for row in QUESTIONS]
    assert read_rows(tmp_path / "whole.json") == whole and not (tmp_path / "whole.json.part.jsonl").exists()
    stopped_after(folder, tmp_path / "torn.json", 3)
    part = tmp_path / "torn.json.part.jsonl"
    assert len(part.read_text().splitlines()) == 4
    with part.open("a") as file:
        file.write('{"key": "3", "outp')
    with pytest.raises(DataError, match="was begun with 'seed' 0, now it is 1"):
        outputs_of(folder, QUESTIONS, tmp_path / "torn.json", seed=1)
    assert outputs_of(folder, QUESTIONS, tmp_path / "torn.json") == whole


def stopped_after(folder, output, answers):
    """What a kill leaves."""

    def add(journal, key, text):
        if len(journal.found) == answers:
            raise KeyboardInterrupt
        kept(journal, key, text)

    kept = Journal.add
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "add", add)
        outputs_of(folder, QUESTIONS, output)


def test_other_questions_or_weights_do_not_go_on_with_a_job(folder, tmp_path):
    """As many questions, in another order: the answers that are kept are to other ones."""
    stopped_after(folder, tmp_path / "o.json", 2)
    with pytest.raises(DataError, match="was begun with other 'prompts'"):
        outputs_of(folder, QUESTIONS[::-1], tmp_path / "o.json")
    weights = folder / "policy/model.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(DataError, match="was begun with other 'weights'"):
        outputs_of(folder, QUESTIONS, tmp_path / "o.json")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_two_processes_do_not_write_one_output(folder, tmp_path):
    refused = pytest.raises(DataError, match="another process is writing it")
    with held_by_another(tmp_path / "o.json.part.jsonl"), refused:
        outputs_of(folder, QUESTIONS, tmp_path / "o.json")
    assert len(outputs_of(folder, QUESTIONS, tmp_path / "o.json")) == 8


@pytest.mark.parametrize(
    "text", ["[1]\n", "3\n", '{"model": "x"}\n[]\n', "\xff\n", '{"model": "x"}\n{"key": "1", "output": 3}\n']
)
def test_a_file_that_holds_no_answers_is_one_line(tmp_path, text):
    (tmp_path / "o.json.part.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="expected kept answers"):
        Journal(tmp_path / "o.json", {"model": "x"})


def test_the_official_configuration_names_model_sampling_and_the_package(folder, tmp_path):
    outputs_of(folder, QUESTIONS[:1], tmp_path / "o.json", generator="mine")
    text = (tmp_path / "configs.yaml").read_text()
    entry = yaml.safe_load(text)["mine"]
    assert entry["completions_kwargs"] == {
        "model_name": str(folder / "policy"), "max_new_tokens": 12, "top_p": 1.0, "temperature": 0.7,
    }  # fmt: skip
    assert "alpaca-eval 0.6.2" in text and entry["prompt_template"] == "mine/prompt.txt"
    assert (tmp_path / "prompt.txt").read_text() == "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"


def test_the_official_prompt_spells_what_the_system_text_spells(folder):
    candidate = Candidate(str(folder / "policy"))
    candidate.system = "Never write <|im_end|>."
    assert "system\nNever write <|im_end|>.<|im_end|>" in configuration("m", candidate, SHORT)[1]


def test_what_is_read_and_what_is_not_ours_is_not_written_over(folder, tmp_path, capsys):
    rows = [QUESTIONS[0]]
    write_rows(tmp_path / "questions.json", rows)
    words = ["eval", "alpaca-eval", "generate", str(folder / "policy"), "--preset", "greedy", "--max-new-tokens", "2",
             "--questions", str(tmp_path / "questions.json"), "--output"]  # fmt: skip
    assert main([*words, str(tmp_path / "questions.json")]) == 2
    assert "questions.json: is a file that is read" in capsys.readouterr().err
    assert read_rows(tmp_path / "questions.json") == rows
    (tmp_path / "prompt.txt").write_text("mine")
    assert main([*words, str(tmp_path / "o.json")]) == 2
    assert "prompt.txt: is there already, and is none of ours" in capsys.readouterr().err
    (tmp_path / "prompt.txt").unlink()
    assert main([*words, str(tmp_path / "o.json")]) == main([*words, str(tmp_path / "o.json")]) == 0


def test_an_unknown_preset_is_one_line(folder, tmp_path, capsys):
    words = ["eval", "alpaca-eval", "generate", str(folder / "policy"), "--preset", "llama9", "--questions",
             str(folder / "baseline.json"), "--output", str(tmp_path / "o.json")]  # fmt: skip
    assert main(words) == 2
    assert "'llama9' is none of llama3-instruct" in capsys.readouterr().err


def test_mt_bench_answers_two_turns_and_the_second_sees_the_first(folder, tmp_path, capsys):
    questions = [{"question_id": n, "category": kind, "turns": [f"Say {n}.", "Again."]}
                 for n, kind in ((81, "writing"), (111, "math"))]  # fmt: skip
    write_rows(tmp_path / "question.jsonl", questions)
    words = ["eval", "mt-bench", "generate", str(folder / "policy"), "--questions", str(tmp_path / "question.jsonl"),
             "--output", str(tmp_path / "answers.jsonl"), "--max-new-tokens", "8"]  # fmt: skip
    assert main(words) == 0
    rows = read_rows(tmp_path / "answers.jsonl")
    assert [(row["question_id"], row["model_id"], len(row["choices"][0]["turns"])) for row in rows] == [
        (81, "policy", 2), (111, "policy", 2),
    ]  # fmt: skip
    first, second = rows[1]["choices"][0]["turns"]  # math is greedy
    candidate = Candidate(str(folder / "policy"))
    talk = [Message("user", "Say 111."), Message("assistant", first), Message("user", "Again.")]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    ids = candidate.prompt_ids([talk])[0]
    written = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=8,
        do_sample=False, eos_token_id=list(ending_ids(model, candidate.chat)), pad_token_id=0,
    )[0, len(ids):]  # fmt: skip
    assert candidate.chat.tokenizer.decode(written, skip_special_tokens=True).strip() == second
    with pytest.raises(DataError, match="question 1: expected two turns"):
        answer_mt_bench(candidate, [{"question_id": 1, "category": "math", "turns": ["a"]}], tmp_path / "x.jsonl")


def test_arena_hard_answers_have_the_official_form(folder, tmp_path):
    questions = [{"uid": uid, "prompt": f"Tell {uid}."} for uid in "ab"]
    candidate = Candidate(str(folder / "policy"), "mine")
    rows = answer_arena_hard(candidate, questions, tmp_path / "mine.jsonl", changed_preset(PRESETS["greedy"], 6))
    assert read_rows(tmp_path / "mine.jsonl") == rows
    assert [(row["uid"], row["model"], row["messages"][0]["content"]) for row in rows] == [
        ("a", "mine", "Tell a."), ("b", "mine", "Tell b."),
    ]  # fmt: skip
    assert all(isinstance(row["messages"][1]["content"]["answer"], str) for row in rows)
    with pytest.raises(DataError, match="uid 'a' is there twice"):
        answer_arena_hard(candidate, [questions[0], questions[0]], tmp_path / "x.jsonl")


def test_mt_bench_and_arena_hard_run_end_to_end_on_an_endpoint(folder, tmp_path, capsys):
    """The server repeats what it is asked, so the judge's prompt decides the verdict."""
    write_rows(tmp_path / "mt.jsonl", [{"question_id": 81, "category": "writing", "turns": ["Say.", "Again."]}])
    write_rows(tmp_path / "prompts.jsonl", [
        {"name": f"single-v1{turn}", "system_prompt": "Judge.", "prompt_template": text}
        for turn, text in (("", "[[4]] {answer}"), ("-multi-turn", "[[7]] {answer_2}"))
    ])  # fmt: skip
    questions = [{"uid": uid, "category": "hard_prompt", "prompt": f"Tell {uid}."} for uid in "ab"]
    write_rows(tmp_path / "arena.jsonl", questions)
    answer_arena_hard(Candidate(str(folder / "policy"), "base"), questions, tmp_path / "base.jsonl", SHORT)
    (tmp_path / "judge.yaml").write_text("prompt_template: '[[B>A]] {QUESTION} {ANSWER_A} {ANSWER_B}'")
    (tmp_path / "categories.yaml").write_text("hard_prompt: {baseline: base, system_prompt: x}")
    common = [str(folder / "policy"), "--max-new-tokens", "6", "--json", "--judge", "j", "--endpoint"]
    script = Script()
    with serving(script) as url:
        mt = ["eval", "mt-bench", "run", *common, url, "--questions", str(tmp_path / "mt.jsonl"), "--references",
              str(tmp_path / "reference.jsonl"), "--prompts", str(tmp_path / "prompts.jsonl"), "--folder",
              str(tmp_path / "mt")]  # fmt: skip
        write_rows(tmp_path / "reference.jsonl", [{"question_id": 1, "choices": [{"turns": ["a", "b"]}]}])
        assert main(mt) == 0
        said = capsys.readouterr().out
        assert json.loads(said[said.index("{") :])["by_turn"] == {"1": 4.0, "2": 7.0}
        arena = ["eval", "arena-hard", "run", *common, url, "--questions", str(tmp_path / "arena.jsonl"), "--baseline",
                 str(tmp_path / "base.jsonl"), "--prompts", str(tmp_path / "judge.yaml"), "--folder",
                 str(tmp_path / "arena"), "--version", "v2.0", "--categories",
                 str(tmp_path / "categories.yaml")]  # fmt: skip
        assert main(arena) == 0
        said = capsys.readouterr().out
        found = json.loads(said[said.index("{") :])
        assert (found["model"], found["questions"], found["battles"]) == ("policy", 2, 4)
        assert found["category"] == "hard_prompt"
        asked = len(script.asked)
        assert main(mt) == 0 and main(arena) == 0
        assert len(script.asked) == asked == 2 + 4
