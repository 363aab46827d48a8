"""`preftune infer`: one answer a prompt, in the order of the rows, whatever stopped the job on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.errors import Interrupted
from preftune.serve.chat import Sampling, open_chat
from preftune.serve.infer import answers, infer_file, read_prompts
from tests.data.conftest import find_data_folder
from tests.export.conftest import save_adapter, save_small
from tests.holding import held_by_another

QUESTIONS = [f"{number} {'and more ' * (number % 3)}?" for number in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_small(folder / "base")
    return base, save_adapter(base, folder / "adapter")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    return tmp_path


def infer(model, *words):
    return main(["infer", str(model), "--input", "in.jsonl", "--output", "out.jsonl", "--max-tokens", "6", *words])


def rows(name="out.jsonl"):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_greedy_answers_are_those_of_a_chat(models, work):
    assert infer(models[1], "--temperature", "0") == 0
    chat = open_chat(str(models[1]), sampling=Sampling(temperature=0, max_tokens=6), history=False)
    for number, (question, row) in enumerate(zip(QUESTIONS, rows(), strict=True), start=1):
        assert row["row"] == number
        assert row["prompt"] == [{"role": "user", "content": question}]
        assert row["response"] == chat.ask(question)
        assert row["finish"] in ("stop", "length") and 1 <= row["tokens"] <= 6
    assert not Path("out.jsonl.part").exists()


def stop_after_five(*words):
    def tired(*given):
        for number, answer in answers(*given):
            if number == 5:
                raise KeyboardInterrupt
            yield number, answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preftune.serve.infer.answers", tired)
        assert infer(*words) == 130


def test_a_job_that_stopped_ends_at_the_same_file(models, work):
    assert infer(models[0]) == 0
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()

    stop_after_five(models[0])
    assert len(rows("out.jsonl.part")) == 6 and not Path("out.jsonl").exists()
    with Path("out.jsonl.part").open("ab") as file:
        file.write(b'{"row": 6, "prom')  # as a kill within a line leaves it
    assert infer(models[0], "--slots", "2") == 0
    assert Path("out.jsonl").read_bytes() == whole


def test_the_same_command_goes_on_with_overwrite_too(models, work, caplog):
    assert infer(models[0]) == 0
    finished = Path("out.jsonl").read_bytes()
    stop_after_five(models[0], "--seed", "4", "--overwrite")
    assert Path("out.jsonl").read_bytes() == finished  # until the new one is whole

    with caplog.at_level("INFO", "preftune"):
        assert infer(models[0], "--seed", "4", "--overwrite") == 0

    assert "going on after 5 of 12 rows" in caplog.text
    assert len(rows()) == 12 and Path("out.jsonl").read_bytes() != finished


def test_overwrite_begins_anew_where_a_row_is_not_of_this_job(models, work, capsys):
    stop_after_five(models[0])
    with Path("out.jsonl.part").open("ab") as file:
        file.write(b'{"row": 6}\n')
    assert infer(models[0]) == 2
    assert "Add --overwrite to begin anew" in capsys.readouterr().err
    assert infer(models[0], "--overwrite") == 0
    assert [row["row"] for row in rows()] == list(range(1, 13))


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with(models, work):
    words = [sys.executable, "-m", "preftune", "infer", str(models[0]), "--input", "in.jsonl", "--slots", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words += ["--max-tokens", "150", "--output"]
    subprocess.run([*words, "whole.jsonl"], check=True, env=environment)
    process = subprocess.Popen([*words, "out.jsonl"], env=environment)
    part = Path("out.jsonl.part")
    while not (part.is_file() and part.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("out.jsonl").exists()
    subprocess.run([*words, "out.jsonl"], check=True, env=environment)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_other_settings_do_not_go_on_with_a_job(models, work, capsys):
    chat = open_chat(str(models[0]), sampling=Sampling(max_tokens=6, seed=0))
    kept = pytest.raises(Interrupted, match="0 of 12 rows are kept; the same command goes on")
    with pytest.MonkeyPatch.context() as patch, kept:
        patch.setattr("preftune.serve.infer.Engine.step", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        infer_file(chat, "in.jsonl", "out.jsonl")
    assert infer(models[0], "--seed", "4") == 2
    assert "was begun with seed 0. Give that again to go on with it" in capsys.readouterr().err
    assert infer(models[0], "--seed", "4", "--overwrite") == 0


def test_two_processes_do_not_write_one_output(models, work, capsys):
    """Both would go on after the same row, and the file would hold rows twice."""
    with held_by_another("out.jsonl.part"):
        for words in ([], ["--overwrite"]):
            assert infer(models[0], *words) == 2
            assert "out.jsonl.part: another process is writing it" in capsys.readouterr().err
    assert infer(models[0]) == 0 and len(rows()) == len(QUESTIONS)


def test_an_empty_prompt_is_refused_as_in_a_file(models, capsys):
    assert main(["infer", str(models[0]), "--prompt", " "]) == 2
    assert "--prompt is empty" in capsys.readouterr().err


def test_a_finished_file_is_left_as_it_is(models, work, capsys):
    assert infer(models[0]) == 0
    before = Path("out.jsonl").read_bytes()
    assert infer(models[0]) == 2
    assert "out.jsonl: is finished already" in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before


def test_a_seed_decides_the_answers(models, work):
    said = []
    for seed in ("1", "1", "2"):
        assert infer(models[0], "--seed", seed, "--overwrite") == 0
        said.append([row["response"] for row in rows()])
    assert said[0] == said[1] != said[2]


def test_rows_of_any_form_with_the_system_text_of_training(models, work):
    given = [{"role": "system", "content": "Own."}, {"role": "user", "content": "one"}]
    lines = [
        {
            "chosen": [*given, {"role": "assistant", "content": "a"}],
            "rejected": [*given, {"role": "assistant", "content": "b"}],
        }
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chat = open_chat(str(models[0]), system="Be brief.")
    (own,), first = read_prompts(chat, "pairs.jsonl"), read_prompts(chat, "in.jsonl")[0]
    assert own.messages == given
    assert first.messages[0] == {"role": "system", "content": "Be brief."}


def test_the_small_real_model_answers(work):
    model = find_data_folder() / "models" / "stories260K-llama"
    assert infer(model, "--temperature", "0", "--slots", "3") == 0
    assert len(rows()) == 12 and all(row["response"] for row in rows())


def test_one_prompt_is_answered_on_the_spot(models, capsys):
    assert main(["infer", str(models[0]), "--prompt", "one", "--temperature", "0", "--max-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.strip() == open_chat(str(models[0]), sampling=Sampling(temperature=0, max_tokens=5)).ask("one")


class TestRefused:
    def line(self, capsys):
        error = capsys.readouterr().err.rstrip("\n").splitlines()
        return error[-1]

    def test_a_prompt_longer_than_the_context(self, models, work, capsys):
        Path("in.jsonl").write_text(json.dumps({"prompt": "short"}) + "\n" + json.dumps({"prompt": "x" * 400}) + "\n")
        assert infer(models[0]) == 2
        assert "in.jsonl[train] row 2: the prompt has" in self.line(capsys)
        assert not list(work.glob("out*"))

    def test_the_file_that_is_read(self, models, work, capsys):
        assert main(["infer", str(models[0]), "--input", "in.jsonl", "--output", "in.jsonl"]) == 2
        assert "is the file that is read" in self.line(capsys)

    def test_a_folder_that_is_not_there(self, models, work, capsys):
        assert main(["infer", str(models[0]), "--input", "in.jsonl", "--output", "none/out.jsonl"]) == 2
        assert "cannot be written there" in self.line(capsys)

    @pytest.mark.parametrize("text", ["", "{", '{"other": 1}\n', '{"prompt": ""}\n'])
    def test_rows_without_prompts(self, models, work, capsys, text):
        Path("in.jsonl").write_text(text)
        assert infer(models[0]) == 2
        assert self.line(capsys).startswith("DataError: ")

    @pytest.mark.parametrize("words", [["--input", "in.jsonl"], [], ["--input", "a", "--prompt", "b"]])
    def test_options_that_do_not_go_together(self, words, capsys):
        assert main(["infer", "x", *words]) == 2
        assert "usage: preftune infer" in capsys.readouterr().err
