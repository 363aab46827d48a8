"""The requests of the page, over tiny models, real files and real runs."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.recipe.schema import SCHEMA_KEYS
from preftune.web import app as web_app
from preftune.web.browse import differences
from preftune.web.form import FILES, MODELS, TEXTS, build_form
from preftune.web.jobs import Jobs
from preftune.web.places import Places
from tests.web.conftest import Page, save_model, save_pairs

STATIC = Path(web_app.__file__).parent / "static"


def texts(events, sides=2):
    return ["".join(event.get("text", "") for event in events if event.get("side") == side) for side in range(sides)]


class TestChat:
    def test_both_models_answer_by_the_seed_and_say_how_many_tokens(self, page, tiny):
        first, again = page.ask(*tiny, seed=3), page.ask(*tiny, seed=3)
        assert texts(first) == texts(again)
        assert texts(first)[0] != texts(first)[1]
        for side in (0, 1):
            ends = [event for event in first if event.get("side") == side and event.get("finish")]
            assert [end["finish"] in ("stop", "length") for end in ends] == [True]
            assert 1 <= ends[0]["tokens"] <= 12
        assert {event["prompt_tokens"] for event in first if "prompt_tokens" in event} == {5 + 4}

    def test_an_answer_comes_in_pieces_and_half_a_character_waits(self, page, tiny):
        events = page.ask(tiny[0], seed=1, max_tokens=60, temperature=1.5)
        pieces = [event["text"] for event in events if event.get("text")]
        assert len(pieces) > 5
        assert all("\ufffd" not in piece for piece in pieces[:-1] if len(piece) == 1)

    def test_what_was_said_before_is_read(self, page, tiny):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        alone = page.ask(tiny[0], temperature=0)
        after = page.ask({"model": str(tiny[0]), "turns": turns}, temperature=0)
        count = [next(e["prompt_tokens"] for e in events if "prompt_tokens" in e) for events in (alone, after)]
        assert count == [9, 9 + 6]

    def test_a_question_that_does_not_fit_is_one_line_and_the_other_side_answers(self, page, tiny):
        events = page.ask(tiny[0], {"model": str(tiny[1])}, question="x" * 300)
        errors = [event["error"] for event in events if "error" in event]
        assert len(errors) == 2
        assert "reads 256" in errors[0]

    def test_a_model_of_no_list_is_refused(self, page):
        reply = page.post("ask", {"question": "a", "sides": [{"model": "gpt2"}]})
        assert reply.status_code == 400
        assert "none of the list" in reply.json()["error"]

    def test_a_model_that_was_trained_again_is_read_again(self, tmp_path):
        model = save_model(tmp_path / "model", 1)
        page = Page(Places(tmp_path, models=(str(model),)))
        before = texts(page.ask(model, temperature=0))
        assert texts(page.ask(model, temperature=0)) == before
        save_model(model, 2)
        assert texts(page.ask(model, temperature=0)) != before

    def test_the_start_of_a_run_stands_beside_it(self, tiny, tmp_path):
        run = save_model(tmp_path / "runs/one", 5)
        (run / "recipe.yaml").write_text(f"model_name_or_path: {tiny[0]}\n")
        assert Places(tmp_path / "runs", models=(str(run),)).pair() == [str(tiny[0]), str(run)]
        assert Places(tmp_path / "runs").pair() == [str(tiny[0]), str(run)]


class TestVotes:
    def test_a_vote_is_a_row_that_trains(self, page, places, tiny, capsys):
        for seed in (1, 2, 3):
            events = page.ask(*tiny, seed=seed, question=f"hello {seed}", system="Be short.")
            assert page.post("vote", {"id": events[0]["id"], "better": seed % 2}).status_code == 200
        examples = load_preferences(places.votes)
        assert [message.content for message in examples[0].prompt] == ["Be short.", "hello 1"]
        answers = [text.strip() for text in texts(page.ask(*tiny, seed=1, question="hello 1", system="Be short."))]
        assert examples[0].responses == (answers[1], answers[0])
        assert main(["check", str(places.votes), "--model", str(tiny[0])]) == 0
        assert "3 to train on" in capsys.readouterr().out

    def test_a_question_has_one_vote(self, page, places, tiny):
        key = page.ask(*tiny, seed=1)[0]["id"]
        assert page.post("vote", {"id": key, "better": 0}).status_code == 200
        again = page.post("vote", {"id": key, "better": 1})
        assert again.status_code == 400
        assert "voted on already" in again.json()["error"]
        assert len(places.votes.read_text().splitlines()) == 1

    def test_what_makes_no_pair_is_refused(self, page, places, tiny):
        same = page.ask(tiny[0], tiny[0], seed=1)[0]["id"]
        assert "same" in page.post("vote", {"id": same, "better": 0}).json()["error"]
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        apart = page.ask(tiny[0], {"model": str(tiny[1]), "turns": turns}, seed=1)[0]["id"]
        assert "different conversations" in page.post("vote", {"id": apart, "better": 0}).json()["error"]
        alone = page.ask(tiny[0], seed=1)[0]["id"]
        assert page.post("vote", {"id": alone, "better": 0}).status_code == 400
        assert not places.votes.exists()

    def test_a_torn_line_does_not_swallow_the_next_vote(self, page, places, tiny):
        places.votes.write_text('{"prompt": "torn')
        page.post("vote", {"id": page.ask(*tiny, seed=1)[0]["id"], "better": 0})
        assert json.loads(places.votes.read_text().splitlines()[1])["chosen_model"] == str(tiny[0])

    def test_a_file_that_cannot_be_written_is_one_line(self, tiny, tmp_path):
        (tmp_path / "file").write_text("")
        page = Page(Places(tmp_path, models=tuple(map(str, tiny)), votes=tmp_path / "file/votes.jsonl"))
        reply = page.post("vote", {"id": page.ask(*tiny, seed=1)[0]["id"], "better": 0})
        assert reply.status_code == 400
        assert "--votes" in reply.json()["error"]


def write_run(folder):
    folder.mkdir(parents=True)
    records = [{"step": step, "seconds": 1.0, "loss": 1 / step, "rewards/margins": 0.1 * step} for step in (1, 2, 3)]
    records[1]["loss"] = float("nan")
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 4, "lo')
    looks = [{"step": s, "answers": [{"prompt": "<b>Hi", "answer": f"<script>{s}"}]} for s in (0, 3)]
    (folder / "watch.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    return folder


class TestRuns:
    def test_a_run_has_its_curves_answers_and_newest_lines(self, page, places):
        write_run(places.runs / "one")
        listed = page.get("runs").json()["runs"]
        assert [(run["name"], run["step"], run["finished"]) for run in listed] == [("one", 3, False)]
        run = page.get("run", name="one").json()
        assert run["charts"][0]["lines"] == [{"label": "training", "points": [[1, 1.0], [3, 1 / 3]]}]
        assert run["answers"] == [{"prompt": "<b>Hi", "steps": [0, 3], "answers": ["<script>0", "<script>3"]}]
        assert len(run["log"]) == 3

    def test_files_that_no_run_of_ours_wrote_are_shown_as_far_as_they_can_be(self, page, places):
        folder = write_run(places.runs / "one")
        (folder / "log.jsonl").write_text('{"step": 1, "loss": NaN, "note": "half \\ud83d"}\n')
        looks = ['{"step": 1, "answers": ["text"]}', '{"step": NaN, "answers": [{}]}', "[1]"]
        (folder / "watch.jsonl").write_text("".join(f"{look}\n" for look in looks))
        run = page.get("run", name="one").json()
        assert run["log"] == ['{"step": 1, "loss": NaN, "note": "half \ud83d"}']
        assert run["answers"] == []

    def test_a_link_out_of_a_run_is_not_followed(self, page, places, tmp_path):
        folder = write_run(places.runs / "one")
        (tmp_path / "secret").write_text("secret")
        (folder / "README.md").symlink_to(tmp_path / "secret")
        assert page.get("run", name="one").json()["report"] == ""
        os.symlink(write_run(tmp_path / "elsewhere"), places.runs / "two")
        assert page.get("run", name="two").status_code == 400


class TestData:
    def look(self, browser, places, **more):
        reply = browser.get("rows", file=str(places.data[0] / "pairs.jsonl"), **more)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def test_texts_without_a_model(self, page, places):
        found = self.look(page, places)
        assert found["mapping"] == [
            "paired: prompt = 'prompt' (text), chosen = 'chosen' (text), rejected = 'rejected' (text)"
        ]
        assert (found["rows"], found["pages"], len(found["page"])) == (12, 3, 5)
        chosen, rejected = found["page"][0]["responses"]
        assert [piece for piece, differs in chosen["pieces"] if differs] == ["The", "."]
        assert [piece for piece, differs in rejected["pieces"] if differs] == ["No", "!"]

    def test_tokens_of_a_model_are_all_of_the_text_and_the_end_of_turn(self, page, places, tiny):
        found = self.look(page, places, model=str(tiny[0]), page=1)
        row = found["page"][0]
        assert row["row"] == 6
        assert "".join(piece for piece, _ in row["prompt"]) == "<s><|user|>Say 5.<|end|><|assistant|>"
        assert "".join(piece for piece, _ in row["responses"][0]["pieces"]) == "The number 5.<|end|>"
        assert row["responses"][0]["length"] == len("The number 5.") + 1
        assert found["lengths"]["chosen"]["longest"] == len("The number 11.") + 1

    def test_the_first_rows_are_read_and_none_twice(self, page, places):
        assert self.look(page, places, rows=3)["rows"] == 3
        assert self.look(page, places, rows=500)["rows"] == 12

    def test_columns_can_be_named(self, page, places):
        rows = [{"q": "a", "good": "b", "bad": "c"}]
        (places.data[0] / "own.jsonl").write_text("".join(json.dumps(row) for row in rows))
        file = str(places.data[0] / "own.jsonl")
        assert page.get("rows", file=file).status_code == 400
        assert page.get("rows", file=file, columns="q=prompt good=chosen bad=rejected").json()["rows"] == 1
        assert "question=prompt" in page.get("rows", file=file, columns="q").json()["error"]

    def test_a_link_out_of_the_folder_is_not_listed(self, page, places, tmp_path):
        save_pairs(tmp_path / "outside.jsonl")
        (places.data[0] / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
        assert page.get("files").json()["files"] == [str(places.data[0] / "pairs.jsonl")]

    def test_what_both_have_in_common_is_not_marked(self):
        assert differences([["a", "b", "c"], ["a", "x", "c"]]) == [
            [("a", False), ("b", True), ("c", False)],
            [("a", False), ("x", True), ("c", False)],
        ]


class TestForm:
    def values(self, places, tiny, **more):
        return {"model_name_or_path": str(tiny[0]), "dataset": str(places.data[0] / "pairs.jsonl"), **more}

    def test_what_is_filled_in_is_a_recipe(self, page, places, tiny):
        values = self.values(places, tiny, learning_rate="1e-5", use_peft="true", max_steps="3", lora_r="")
        found = page.post("recipe", {"name": "one", "values": values}).json()
        assert "learning_rate: 1.0e-05\n" in found["yaml"]
        assert "use_peft: true\nmax_steps: 3\n" in found["yaml"]
        assert f"output_dir: {places.runs}/one\n" in found["yaml"]
        assert found["command"] == f"preftune train {places.runs}/.web/one.yaml"

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("learning_rate", "fast", "'learning_rate' must be"),
            ("trust_remote_code", "true", "not a field"),
            ("output_dir", "/tmp/x", "not a field"),
            ("tokenizer_name_or_path", "/etc", "not a field"),
            ("chat_template", "/etc/passwd", "must be one of"),
            ("model_name_or_path", "/etc", "none of the list"),
            ("eval_dataset", "/etc/passwd", "none of the list"),
            ("reward_function", "x.py:f", "not a field"),
            ("objective", "ppo", "ppo"),
        ],
    )
    def test_what_is_wrong_or_not_for_a_form_is_one_line(self, page, places, tiny, key, value, said):
        filled = {"name": "one", "values": self.values(places, tiny, **{key: value})}
        checked = page.post("recipe", filled).json()
        assert said in checked["wrong"]
        assert "\n" not in checked["wrong"]
        assert checked["yaml"] == ""
        assert page.post("training/start", filled).json() == {"error": checked["wrong"]}
        assert page.get("training").json()["state"] == "none"

    @pytest.mark.parametrize("name", ["", "..", "a/b", ".web", "/tmp/x", "a" * 65, "a b"])
    def test_a_run_has_a_plain_name(self, page, places, tiny, name):
        assert page.post("training/start", {"name": name, "values": self.values(places, tiny)}).status_code == 400

    def test_no_field_holds_a_free_text_but_those_that_are_known(self):
        for objective in ("simpo", "kto", "sft", "reward", "dpo"):
            fields = [field for group in build_form(objective) for field in group["fields"]]
            assert len({field["name"] for field in fields}) == len(fields)
            assert {field["name"] for field in fields if field["kind"] == "text"} == set(TEXTS)
            assert {field["name"] for field in fields if field["kind"] in ("model", "file")} == {*MODELS, *FILES}
        names = {field["name"] for group in build_form("simpo") for field in group["fields"]}
        assert {"beta", "gamma_beta_ratio", "learning_rate", "lora_r", "truncation"} <= names
        assert len(names & set(SCHEMA_KEYS)) > 40


def test_a_training_starts_and_is_told_its_end(page, places, tiny):
    values = {
        "model_name_or_path": str(tiny[0]),
        "dataset": str(places.data[0] / "pairs.jsonl"),
        "total_batch_size": "2",
    }
    assert page.post("training/start", {"name": "one", "values": values}).json()["state"] == "running"
    again = page.post("training/start", {"name": "two", "values": values})
    assert "going on" in again.json()["error"]
    page.post("training/stop", {})
    deadline = time.monotonic() + 30
    while page.get("training").json()["state"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert page.get("training").json()["exit_code"] in (-15, 143)


ASKED_ONCE = """
import signal, time
def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # asked once more, it ends at once
    time.sleep(0.5)
    print("saved", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(60)
"""


def test_a_run_that_is_saving_saves_to_its_end_when_the_page_ends(tmp_path):
    jobs, out = Jobs(tmp_path, name="one"), tmp_path / ".web/one.out"
    out.parent.mkdir()
    with out.open("wb") as file:
        jobs.process = subprocess.Popen([sys.executable, "-c", ASKED_ONCE], stdout=file, start_new_session=True)
    while "up" not in out.read_text():
        assert jobs.running
        time.sleep(0.02)
    jobs.stop()
    assert jobs.state()["state"] == "stopping"
    time.sleep(0.2)

    jobs.close()

    assert out.read_text() == "up\nsaved\n"
    assert jobs.state()["exit_code"] == 0


def test_the_page_asks_nobody_else_and_sets_no_html():
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        outside = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in outside and "https://" not in outside, path.name
        for unsafe in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            ' onclick="',
        ):
            assert unsafe not in text, (path.name, unsafe)


def test_both_languages_have_every_word():
    lines = (STATIC / "words.js").read_text(encoding="utf-8")
    english, chinese = lines.split("zh:")

    def words(text):
        return set(re.findall(r'(?:^|[,{]\s*)"?([\w-]+)"?:\s*"', text, re.MULTILINE))

    assert len(words(english)) > 90
    assert words(english) <= words(chinese)
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-(?:say|hint|label)="([^"]+)"', page)) <= words(english)


class TestCommand:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--host", "0.0.0.0"], "opens the page to others. Add --auth"),
            (["--auth", "ann"], "must be user:password"),
            (["--data", "nothing-here"], "there is no 'nothing-here'"),
        ],
    )
    def test_a_wrong_option_is_one_line(self, capsys, words, said):
        assert main(["web", *words]) == 2
        assert said in capsys.readouterr().err

    def test_a_taken_port_is_one_line(self, capsys):
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            door.listen()
            assert main(["web", "--port", str(door.getsockname()[1])]) == 2
        assert "Name another --port" in capsys.readouterr().err

    def test_the_other_name(self, capsys):
        assert main(["web-ui", "--help"]) == 0
        assert "preftune web" in capsys.readouterr().out
