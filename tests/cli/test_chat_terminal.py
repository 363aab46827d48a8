"""`preftune chat` on a pseudo-terminal, its commands, and what it draws."""

import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from preftune.cli.main import main
from preftune.data.chat import read_chat_format
from preftune.errors import ModelError
from preftune.model.load import load_model, load_tokenizer
from preftune.serve.chat import Chat, Sampling, _Speaker, open_chat
from preftune.serve.markdown import MarkdownStream, printable, whole_blocks
from preftune.serve.terminal import Terminal, save, set_sampling
from tests.data.conftest import find_data_folder
from tests.export.conftest import save_adapter, save_small

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_small(folder / "before")
    return base, save_adapter(base, folder / "after")


class Pty:
    """A program on a terminal of 80 columns: what is typed goes in, what it draws is read up to the next prompt."""

    def __init__(self, *words, cwd):
        self.end, other = pty.openpty()
        environment = {
            **os.environ,
            "TERM": "xterm",
            "COLUMNS": "80",
            "LINES": "24",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "preftune", *words],
            stdin=other,
            stdout=other,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(other)
        self.seen = ""

    def enter(self, text, seconds=60):
        """Type it, and give what is drawn until the next prompt."""
        self.seen = ""
        os.write(self.end, text.encode())
        return self.prompt(seconds)

    def prompt(self, seconds=60):
        end = time.monotonic() + seconds
        while not self.seen.endswith("\n> "):
            ready, _, _ = select.select([self.end], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no prompt in {self.seen!r}"
            self.seen += ESCAPES.sub("", os.read(self.end, 65536).decode(errors="replace"))
        return self.seen

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.mark.slow
def test_a_session_on_a_terminal(models, tmp_path):
    """Two models, commands, editing keys, an error, several lines, saving, leaving: one process."""
    before, after = models
    words = ("chat", str(before), "--compare", str(after), "--temperature", "0", "--max-tokens", "4")
    terminal = Pty(*words, cwd=tmp_path)
    try:
        assert "/help says what there is" in terminal.prompt()
        drawn = terminal.enter("one\n")
        assert drawn.index("before ─") < drawn.index("after ─")  # a rule with the name above each answer
        assert "Saved in first.jsonl." in terminal.enter("/save first.jsonl\n")
        assert "Forgotten." in terminal.enter("/reset\n")
        assert "System text: Be brief." in terminal.enter("/system Be brief.\n")
        assert "/nonsense is no command" in terminal.enter("/nonsense\n")
        assert "top_p is a number above 0 and up to 1, found '2'." in terminal.enter("/set top_p 2\n")
        terminal.enter("wxo\x1b[D\x1b[D\x7ft\n")  # wxo, two to the left, w erased, a t: txo
        terminal.enter("\x1b[A\x01a \n")  # the line before, from its start: a txo
        time.sleep(2)  # the prompt is drawn a moment before keys are read one by one
        terminal.enter("half a line\x03")
        terminal.enter('"""\nfirst\n\nsecond\n"""\n')
        assert "Saved in all.json." in terminal.enter("/save all.json\n")
        os.write(terminal.end, b"/exit\n")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()
    rows = [json.loads(line) for line in (tmp_path / "first.jsonl").read_text().splitlines()]
    assert [row["messages"][0] for row in rows] == [{"role": "user", "content": "one"}] * 2
    assert rows[0]["messages"][1] != rows[1]["messages"][1]
    one, _ = json.loads((tmp_path / "all.json").read_text())
    said = [turn["content"] for turn in one["messages"] if turn["role"] != "assistant"]
    assert said == ["Be brief.", "txo", "a txo", "first\n\nsecond"]


@pytest.fixture
def chat(models):
    model, tokenizer = load_model(str(models[0])).eval(), load_tokenizer(str(models[0]))
    return Chat(model, read_chat_format(tokenizer), sampling=Sampling(temperature=0, max_tokens=5), name="m")


def test_the_pieces_are_the_answer(chat):
    pieces = []
    answer = chat.ask("one", pieces.append)
    assert "".join(pieces).strip() == answer == chat.turns[-1].content


def test_ctrl_c_ends_an_answer_and_keeps_what_was_said(chat):
    chat.sampling.max_tokens = 50
    said = []

    def stop(piece):
        said.append(piece)
        raise KeyboardInterrupt

    whole = chat.ask("one")
    chat.reset()
    short = chat.ask("one", stop)
    assert whole.startswith(short) and len(short) < len(whole)
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]


def test_a_question_that_cannot_be_asked_changes_nothing_of_the_conversation(chat):
    chat.ask("one")
    before = list(chat.turns)
    with pytest.raises(ModelError, match="Ask a shorter one"):
        chat.ask("x" * 300)
    assert chat.turns == before
    with torch.no_grad(), pytest.raises(ModelError, match="logits are not finite"):
        chat.model.lm_head.weight.fill_(float("nan"))
        chat.ask("two")
    assert chat.turns == before


def test_a_temperature_of_almost_nothing_and_a_seed_of_any_size_are_taken(chat):
    greedy = chat.ask("one")
    chat.reset()
    chat.sampling = Sampling(temperature=1e-40, max_tokens=5, seed=2**70)
    assert chat.ask("one") == greedy


def test_the_space_at_the_start_of_a_line_is_streamed():
    """Tokenizers after sentencepiece drop the space that a text begins with."""
    folder = find_data_folder() / "tokenizers/phi3"
    tokenizer = load_tokenizer(str(folder))
    text = "one\n   - two\n\tthree\n  四😀\n"
    said = []
    speaker = _Speaker(tokenizer, said.append)
    speaker.put(torch.tensor([[1]]))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        speaker.put(torch.tensor([token]))
    speaker.end()
    assert "".join(said) == text


def test_two_answers_stand_side_by_side_on_a_wide_terminal(chat):
    other = Chat(chat.model, chat.format, sampling=chat.sampling, name="other")
    for width, together in ((120, True), (80, False)):
        terminal, drawn = Terminal([chat, other]), io.StringIO()
        terminal.console = Console(file=drawn, force_terminal=True, width=width, height=30, highlight=False)
        terminal.plain = False
        terminal._ask("one")
        final = ESCAPES.sub("", drawn.getvalue()).splitlines()
        assert any(line.split() == ["m", "other"] for line in final) is together
    with torch.no_grad():
        chat.model.lm_head.weight.fill_(float("nan"))
    terminal.console = Console(file=drawn, force_terminal=True, width=120, height=30, highlight=False)
    terminal._ask("one")
    assert drawn.getvalue().count("ModelError") == 2


def test_a_saved_row_stands_on_a_line_of_its_own(chat, tmp_path):
    chat.ask("one")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}')
    save([chat], str(file))
    assert [list(json.loads(line)) for line in file.read_text().splitlines()] == [["a"], ["messages", "model"]]


def test_the_same_seed_gives_both_models_the_same_draws(models, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    place = str(models[0])
    assert main(["chat", place, "--compare", place, "--seed", "3", "--temperature", "2", "--max-tokens", "9"]) == 0
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith(place)]
    assert len(said) == 4 and said[0] == said[1] and said[2] == said[3] and said[0] != said[2]


def test_top_k_of_one_is_greedy(chat):
    greedy = chat.ask("one")
    chat.reset()
    chat.sampling = Sampling(temperature=1.0, top_k=1, max_tokens=5)
    assert chat.ask("one") == greedy


def test_a_whole_input_is_one_question(models, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    monkeypatch.setattr(Chat, "ask", lambda self, question, say: asked.append(question))
    assert main(["chat", str(models[0]), "--whole-input"]) == 0
    assert asked == ["one\n\ntwo"]


def test_bytes_that_are_no_text_are_no_traceback(models, monkeypatch, capsys):
    stream = io.TextIOWrapper(io.BytesIO(b"a\xff\xfeb\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stream)
    assert main(["chat", str(models[0]), "--temperature", "0", "--max-tokens", "2"]) == 0


def test_the_small_real_model_answers_greedily_as_transformers_does():
    folder = find_data_folder() / "models" / "stories260K-llama"
    chat = open_chat(str(folder), sampling=Sampling(temperature=0, max_tokens=20))
    said = chat.ask("Once upon a time")
    ids = torch.tensor(chat.format.prompt_ids([chat.turns[:1]]))
    output = chat.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=chat.format.end_id)
    assert said == chat.format.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() != ""


@pytest.mark.parametrize("place", ["export", "run"])
def test_other_places_of_a_model(place, models, tmp_path):
    from preftune.export.write import export_model

    before, after = models
    if place == "export":
        export_model(str(after), tmp_path / "out")
    else:
        save_adapter(before, tmp_path / "out" / "checkpoint-2")
    sampling = Sampling(temperature=0, max_tokens=5)
    one, two = (open_chat(str(name), sampling=sampling).ask("one") for name in (after, tmp_path / "out"))
    assert one == two


class TestCommands:
    def said(self, chat, monkeypatch, *lines):
        """What the terminal shows for these lines."""
        terminal = Terminal([chat], plain=True)
        terminal.console = Console(file=io.StringIO(), width=200)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        terminal.run()
        return terminal.console.file.getvalue()

    def test_help_names_them_all(self, chat, monkeypatch):
        shown = self.said(chat, monkeypatch, "/help")
        assert all(command in shown for command in ("/reset", "/system", "/set", "/save", "/exit"))

    def test_a_slash_is_asked_about_with_two(self, chat, monkeypatch):
        self.said(chat, monkeypatch, "//etc is what?")
        assert chat.turns[0].content == "/etc is what?"

    def test_the_system_text_is_left_out_by_a_dash(self, chat, monkeypatch):
        assert "System text: Be brief." in self.said(chat, monkeypatch, "/system Be brief.", "/system")
        assert "There is no system text." in self.said(chat, monkeypatch, "/system -")
        assert chat.system is None

    def test_settings_change_and_show(self, chat, monkeypatch):
        shown = self.said(chat, monkeypatch, "/set max_tokens 7", "/set seed 4", "/set nothing 1", "/set top_k -1")
        assert "max_tokens 7" in shown and "seed 4" in shown and "There is no setting 'nothing'" in shown
        assert "top_k is a whole number of at least 0, found '-1'." in shown
        set_sampling(chat.sampling, "seed", "-")
        assert chat.sampling.seed is None

    def test_a_conversation_is_saved_by_the_ending_of_the_name(self, chat, tmp_path):
        assert save([chat], str(tmp_path / "a.md")) == "Nothing has been said yet."
        answer = chat.ask("one")
        assert "ends with '.txt'" in save([chat], str(tmp_path / "a.txt"))
        for name in ("a.md", "a.json", "a.jsonl", "a.jsonl"):
            assert save([chat], str(tmp_path / name)).startswith("Saved in")
        assert "exists already, and is left as it is" in save([chat], str(tmp_path / "a.json"))
        assert "could not be written" in save([chat], str(tmp_path / "none" / "a.json"))
        assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
        assert answer in (tmp_path / "a.md").read_text()

    def test_a_saved_conversation_is_data_to_train_on(self, chat, tmp_path):
        from preftune.data import load_preferences

        answer = chat.ask("one")
        save([chat], str(tmp_path / "a.jsonl"))
        (example,) = load_preferences(tmp_path / "a.jsonl", layout="single")
        assert (example.prompt[0].content, example.responses) == ("one", (answer,))


class TestMarkdown:
    def draw(self, *pieces):
        console = Console(file=io.StringIO(), width=60, force_terminal=True, height=10)
        with MarkdownStream(console) as stream:
            for piece in pieces:
                stream.write(piece)
        return console.file.getvalue()

    def test_blocks_are_drawn_once_and_in_order(self):
        drawn = self.draw("# Ti", "tle\n\nsome **bo", "ld** words\n\n* one\n* two\n")
        shown = ESCAPES.sub("", drawn.rpartition("some **bold** words")[2])
        assert "\x1b[1mbold\x1b[0m" in drawn
        assert shown.count("bold words") == 1 and shown.rindex("•") > shown.index("bold words")

    def test_a_blank_line_in_a_code_block_does_not_cut_it(self):
        assert whole_blocks("a\n\n```\nx\n\ny") == ("a\n\n", "```\nx\n\ny")
        assert whole_blocks("a\n\n```\nx\n\ny\n```\n\nb") == ("a\n\n```\nx\n\ny\n```\n\n", "b")

    def test_an_answer_cannot_steer_the_terminal(self):
        assert printable("a\x1b[2Jb\x07\x9b1mc\r\n\td") == "a[2Jb1mc\n\td"
        assert "\x1b[2J" not in self.draw("clear \x1b[2J this")
