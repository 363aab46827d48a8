"""The report: its figures are those of the JSON, and what a model writes stays text."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from preftune.cli.main import main
from preftune.report.charts import Picture, draw, ticks
from preftune.report.collect import Run
from preftune.report.markup import element
from preftune.report.tables import run_tables
from preftune.report.write import build_report

ATTACK = "<script>alert(1)</script> | & \"'> ![x](http://x.test/y.png)"
SCORES = {
    "alpaca": {
        "model": "m", "baseline": "b", "annotator": "reward_model:r", "win_rate": 65.864226, "standard_error": 1.4263,
        "discrete_win_rate": 66.1, "avg_length": 1833, "n_total": 805, "n_null": 0, "length_controlled_winrate": 72.35,
        "lc_variant": "minimal",
    },
    "arena": {"model": "m", "judge": "j", "version": "v0.1", "score": 59.1, "lower": 56.9, "upper": 61.0,
              "battles": 1400, "questions": 500, "nulls": 3},
    "mt": {"model": "m", "judge": "j", "score": 8.76875, "by_turn": {"1": 9.075, "2": 8.4625},
           "by_category": {"writing": 9.1}, "rated": 160, "unrated": 0},
}  # fmt: skip


class Page(HTMLParser):
    """Tags, and the cells of tables as (text, value in full)."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [found[key] for key in ("src", "href", "data", "action", "xlink:href") if key in found]
        assert not any(key.startswith("on") for key in found)
        if tag == "td":
            self.cells.append(["", found.get("data-value")])

    def handle_endtag(self, tag):
        self.tags.append("/" + tag)

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "td":
            self.cells[-1][0] += data


def make_run(folder, scale=1.0, answer="It is four."):
    folder.mkdir()
    records = [{"step": n, "loss": scale / n, "rewards/margins": scale * n, "seconds": n} for n in (1, 2, 3, 4)]
    summary = {
        "objective": "loss = x < y",
        "metrics": {"loss": scale / 4, "rewards/accuracies": 0.8125, "lengths/chosen": 61.5},
        "steps": 4, "rows": 1234, "seconds_total": 12.345, "train_seconds": 10.5, "groups_per_second": 3.25,
        "tokens_total": 98765, "peak_memory_gib": 1.5, "device": "cpu", "processes": 1,
    }  # fmt: skip
    looks = [
        {"step": step, "answers": [{"prompt": "2 + 2?", "answer": text}]} for step, text in ((0, "5"), (4, answer))
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "watch.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def evaluation(folder, **scores):
    folder.mkdir()
    for name, row in scores.items():
        (folder / f"{name}.json").write_text(json.dumps(row))
    return [str(folder / f"{name}.json") for name in scores]


def written(tmp_path, *words):
    assert main(["report", *map(str, words), "--output", str(tmp_path / "out.html")]) == 0
    return (tmp_path / "out.html").read_text(), (tmp_path / "out.md").read_text()


def numbers_in(value):
    if isinstance(value, dict):
        return [one for item in value.values() for one in numbers_in(item)]
    return [value] if isinstance(value, int | float) else []


def test_every_figure_of_the_json_is_on_the_page_and_in_the_markdown(tmp_path):
    summary = make_run(tmp_path / "simpo")
    page, markdown = written(tmp_path, tmp_path / "simpo", "--eval", *evaluation(tmp_path / "out", **SCORES))
    shown = [(text, float(value)) for text, value in Page(page).cells if value is not None]
    for figures in (summary, *SCORES.values()):
        for number in numbers_in(figures):
            texts = [text for text, value in shown if value == number]
            assert texts, number
            for text in texts:  # what is read is what is meant, to its last digit
                digits = len(text.partition(".")[2])
                assert float(text.replace(",", "")) == pytest.approx(number, abs=0.5 * 10**-digits + 1e-9, rel=5e-4)
                assert f"| {text} |" in markdown
    low, high = (65.864226 + sign * 1.96 * 1.4263 for sign in (-1, 1))
    assert {value for _, value in shown} >= {low, high}


def test_what_a_model_writes_stays_text(tmp_path):
    make_run(tmp_path / "simpo", answer=ATTACK)
    scores = {key: row | {"model": ATTACK} for key, row in SCORES.items()}
    page, markdown = written(tmp_path, tmp_path / "simpo", "--eval", *evaluation(tmp_path / "out", **scores),
                             "--title", ATTACK)  # fmt: skip
    found = Page(page)
    assert "script" not in found.tags and "img" not in found.tags
    assert [ATTACK, None] in found.cells
    for line in markdown.splitlines():
        bare = re.sub(r"\\.", "", line)
        assert "<script" not in bare and "![" not in bare
        if line.startswith("|"):
            assert bare.count("|") >= 3
    rows = [re.sub(r"\\.", "", line).count("|") for line in markdown.splitlines() if "alert" in line and line[0] == "|"]
    assert rows[-1] == 4  # prompt, before, after


def test_the_page_asks_for_nothing_beside_itself(tmp_path):
    make_run(tmp_path / "simpo")
    page, _ = written(tmp_path, tmp_path / "simpo", "--eval", *evaluation(tmp_path / "out", **SCORES))
    found = Page(page)
    assert found.addresses == [] and not {"link", "script", "img", "iframe", "object"} & set(found.tags)
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page.replace("&#x27;", "'") and found.tags.count("svg") == 2


def test_figures_of_held_out_prompts_stand_before_and_after():
    heldout = {"zh_share_before": 0.585, "zh_share_after": 0.999, "repetition_before": 0.0, "repetition_after": 0.25}
    _, table = run_tables([Run("demo", {"steps": 4, "heldout": heldout}, [], None)])
    assert [[cell.value for cell in row[1:]] for row in table.rows] == [[0.585, 0.999], [0.0, 0.25]]
    assert [row[0].text for row in table.rows] == ["zh_share", "repetition"]


def test_shapes_of_a_chart_are_closed_so_that_none_holds_the_next():
    drawn = draw(Picture("Loss", "nats", [("training", [(1, 2.0), (2, 1.0)]), ("held out", [(2, 3.0)])]))
    svg = ElementTree.fromstring(drawn).find("svg")
    assert {len(shape) for shape in svg} == {0}
    assert [shape.tag for shape in svg].count("polyline") == 2 and [shape.tag for shape in svg].count("circle") == 3


def test_two_runs_share_a_chart_and_are_told_apart_by_name(tmp_path):
    for parent in "ab":
        (tmp_path / parent).mkdir()
        make_run(tmp_path / parent / "simpo")
    report = build_report([tmp_path / "a/simpo", tmp_path / "b/simpo"])
    assert report.tables["Training"][0].headings == ("figure", "a/simpo", "b/simpo")
    loss = next(picture for picture in report.pictures if picture.title.startswith("Loss"))
    assert loss.series == [(f"{name}/simpo", [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]) for name in "ab"]


def test_numbers_of_two_judges_are_in_two_tables(tmp_path):
    other = SCORES["alpaca"] | {"annotator": "weighted_alpaca_eval_gpt4_turbo", "model": "other"}
    best = SCORES["alpaca"] | {"win_rate": 70.0, "model": "n"}
    paths = evaluation(tmp_path / "out", mine=SCORES["alpaca"], best=best, gpt=other)
    first, second = build_report([], paths).tables["Evaluations"]
    assert first.title == "AlpacaEval 2, judged by reward_model:r against b"
    assert [row[0].text for row in first.rows] == ["n", "m"]
    assert [row[0].text for row in second.rows] == ["other"]


def test_a_folder_of_an_evaluation_gives_answers_and_what_its_judge_took(tmp_path):
    folder = tmp_path / "out"
    evaluation(folder, scores=SCORES["alpaca"])
    row = {"instruction": "q", "output_1": "base", "output_2": "mine", "generator_1": "b", "preference": 2.0}
    (folder / "annotations.json").write_text(json.dumps([row]))
    replies = [
        {"request": str(n), "reply": {"choices": [], "prompt_tokens": 500, "completion_tokens": n}} for n in (1, 2)
    ]
    (folder / "annotations.json.replies.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    report = build_report([], [folder], prices=(10.0, 30.0))
    assert report.samples[0].headings == ("prompt", "b", "model") and report.samples[0].rows == [("q", "base", "mine")]
    (cost,) = report.tables["Cost"]
    assert [cell.value for cell in cost.rows[0]] == [None, 2, 1000, 3, pytest.approx(1000 * 1e-5 + 3 * 3e-5)]


def test_a_run_that_has_not_ended_is_shown_from_its_log_and_said_to_be_so():
    (table,) = run_tables([Run("simpo", {}, [{"step": 3, "loss": 0.5}], None)])
    assert "Not ended" in table.note and [[cell.text for cell in row] for row in table.rows] == [["loss", "0.5"]]


def test_values_that_are_not_finite_are_counted_and_do_not_break_a_chart():
    drawn = draw(Picture("Loss", "nats", [("training", [(1, 2.0), (2, math.nan), (3, math.inf)])]))
    assert "2 values that are not finite are left out" in drawn and "nan" not in drawn and "inf," not in drawn
    assert "<svg" not in draw(Picture("Loss", "nats", [("training", [(1, math.nan)])]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-4, -2, 0, 2, 4, 6, 8]), (1, 1393, [0, 500, 1000, 1500])],
)
def test_ticks_are_round_and_hold_all_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_text_is_escaped_unless_it_was_made_as_markup():
    assert element("p", "<b>", element("b", "x\x00")) == "<p>&lt;b&gt;<b>x\ufffd</b></p>"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to report"),
        (["{}/none"], "expected a run folder"),
        (["{}/simpo", "{}/simpo"], "named twice"),
        (["{}/simpo", "--eval", "{}/odd.json"], "expected the figures"),
        (["{}/simpo", "--eval", "{}/torn.json"], "not JSON"),
        (["{}/simpo", "--eval", "{}/simpo"], "expected scores.json"),
        (["{}/simpo", "--eval", "{}/none.json"], "cannot be read"),
    ],
)
def test_what_cannot_be_reported_is_one_line(tmp_path, words, message, capsys):
    make_run(tmp_path / "simpo")
    (tmp_path / "odd.json").write_text('{"x": 1}')
    (tmp_path / "torn.json").write_text('{"x": ')
    assert main(["report", *(word.format(tmp_path) for word in words), "--output", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "r.html").exists()
    assert main(["report", str(tmp_path / "simpo"), "--output", str(tmp_path / "r.txt")]) == 2
