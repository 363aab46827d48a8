"""A run on a stream: the rows, the order and the weights are what they are said to be, and a resume goes on exactly."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune import train
from preftune.data.plan import Cut
from preftune.demo.corpus import corpus_texts
from preftune.demo.model import build_model
from preftune.demo.settings import ModelSettings
from preftune.demo.tokenizer import train_tokenizer
from preftune.errors import CheckpointError, DataError, ModelError, RecipeError
from preftune.recipe import load_recipe
from preftune.train import stream as streaming
from preftune.train.check import check
from preftune.train.data import load_groups
from preftune.train.stream import GroupStream, Mark, StreamSource

SIZES = ModelSettings(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
PAIRS = [
    {"prompt": f"What is {a} plus {b}?", "chosen": f"{a} plus {b} is {a + b}.", "rejected": f"It is {a * b + 1}, no."}
    for a in range(4)
    for b in range(5)
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(corpus_texts())
    build_model(tokenizer, seed=0, sizes=SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path, model_folder, monkeypatch):
    """The values of a short run on two files of 13 and 7 rows, read in chunks of 5, in windows of 8, in steps of 4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streaming, "CHUNK", 5)
    Path("pairs").mkdir()
    write_rows("pairs/a.jsonl", PAIRS[:13])
    write_rows("pairs/b.jsonl", PAIRS[13:])
    return {
        "model_name_or_path": str(model_folder),
        "dataset": "pairs",
        "streaming": True,
        "streaming_buffer": 6,
        "total_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "output_dir": "run",
    }


def write_rows(path, rows) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same_weights(one, two):
    one, two = weights(one), weights(two)
    return all(torch.equal(one[name], two[name]) for name in one)


def build_stream(work, **more):
    recipe = load_recipe(None, {**work, **more})
    return GroupStream(recipe, AutoTokenizer.from_pretrained(work["model_name_or_path"]))


def places(groups):
    return [(Path(group.origin.dataset).name, group.origin.row) for group in groups]


ALL = [("a.jsonl", n) for n in range(1, 14)] + [("b.jsonl", n) for n in range(1, 8)]


def test_a_stream_of_one_window_trains_as_the_run_in_memory_bit_for_bit(work):
    streamed = train(None, **{**work, "streaming_buffer": 4096, "max_steps": 8})
    memory = {key: value for key, value in work.items() if not key.startswith("streaming")}
    train(None, **{**memory, "max_steps": 8, "output_dir": "memory"})
    assert same_weights("run", "memory")
    assert streamed["steps"] == 8
    assert streamed["data"]["passes"] >= 1


def test_each_window_holds_its_rows_and_each_pass_all_of_them(work):
    stream = build_stream(work)
    steps = [places(groups) for _, groups in islice(stream.steps(Mark(), 4, 42), 10)]
    for of_pass in (steps[:5], steps[5:]):
        assert [sorted(of_pass[0] + of_pass[1]), sorted(of_pass[2] + of_pass[3])] == [ALL[:8], ALL[8:16]]
        assert sorted(of_pass[4]) == ALL[16:]
    assert steps[0] + steps[1] != ALL[:8]
    assert steps[:5] != steps[5:]


def test_groups_are_those_of_the_run_in_memory(work):
    stream = build_stream(work)
    found = [group for _, groups in islice(stream.steps(Mark(), 4, 42), 5) for group in groups]
    recipe = load_recipe(None, {key: value for key, value in work.items() if not key.startswith("streaming")})
    expected, _ = load_groups(recipe, AutoTokenizer.from_pretrained(recipe.model_name_or_path), "pairs", "train")
    assert sorted(found, key=lambda group: places([group])) == expected


def test_the_rows_of_a_step_depend_on_seed_and_step_alone(work):
    source = StreamSource(build_stream(work), 4, Cut(), 42, 20)
    forward = [places(source.groups_of(step)) for step in range(12)]
    assert [places(source.groups_of(step)) for step in (7, 3, 11, 0, 5)] == [forward[n] for n in (7, 3, 11, 0, 5)]
    other = StreamSource(build_stream(work), 4, Cut(), 43, 20)
    assert [places(other.groups_of(step)) for step in range(12)] != forward


def test_ranks_share_the_rows_of_a_step(work):
    whole = StreamSource(build_stream(work), 4, Cut(max_groups=1), 42, 6)
    ranks = [StreamSource(build_stream(work), 4, Cut(max_groups=1), 42, 6, rank=r, ranks=2) for r in range(2)]
    for step in range(6):
        found = [str(o) for source in ranks for batch in source[0, step].micro_batches for o in batch.origins]
        assert sorted(found) == sorted(str(group.origin) for group in whole.groups_of(step))


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_ends_with_the_same_weights_and_reads_only_from_its_window(work, stop, monkeypatch):
    saving = {**work, "max_steps": 2 * stop, "save_strategy": "steps", "save_steps": stop}
    train(None, **saving)
    shutil.copytree(f"run/checkpoint-{stop}", f"again/checkpoint-{stop}")
    read = []
    chunks = GroupStream._to_groups
    monkeypatch.setattr(
        GroupStream, "_to_groups", lambda self, rows, file: read.extend(rows) or chunks(self, rows, file)
    )
    train(None, **{**saving, "output_dir": "again", "resume_from_checkpoint": True})
    assert same_weights("run", "again")
    first = (Path(read[0].origin.dataset).name, read[0].origin.row)
    assert (
        first == {3: ("a.jsonl", 6), 5: ("b.jsonl", 1)}[stop]
    )  # the chunks in which the windows of the last steps begin


def test_a_resume_on_other_files_or_settings_is_refused(work):
    saving = {**work, "save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": True}
    train(None, **{**saving, "resume_from_checkpoint": None})
    with pytest.raises(CheckpointError, match="is of another run: data"):
        train(None, **{**saving, "streaming_buffer": 100})
    write_rows("pairs/b.jsonl", PAIRS[14:])
    with pytest.raises(CheckpointError, match="is of another run: data"):
        train(None, **saving)


def test_a_bad_row_far_down_stops_the_run_with_its_place_or_is_counted(work, monkeypatch):
    monkeypatch.setattr(streaming, "LOOKED_AT", 5)
    write_rows("pairs/b.jsonl", [*PAIRS[13:16], {**PAIRS[16], "chosen": ""}, *PAIRS[17:]])
    with pytest.raises(DataError, match=r"b.jsonl\[train\] row 4: "):
        train(None, **work)
    summary = train(None, **{**work, "on_bad_row": "skip", "max_steps": 5})
    assert summary["data"]["bad_rows"]["skipped"] == 1
    assert "b.jsonl[train] row 4" in str(summary["data"]["bad_rows"])


def test_a_bad_row_at_the_start_stops_the_run_before_anything_is_written(work):
    write_rows("pairs/a.jsonl", [{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, *PAIRS])
    with pytest.raises(DataError, match="row 1"):
        train(None, **work)
    assert not Path("run").exists()


def test_rows_that_all_drop_out_after_the_first_are_no_endless_loop(work, monkeypatch):
    monkeypatch.setattr(GroupStream, "_to_groups", lambda self, rows, file: [])
    with pytest.raises(DataError, match="all rows of the stream are left out"):
        next(build_stream(work).steps(Mark(), 4, 42))


REFUSED = {
    "needs max_steps": {"max_steps": -1},
    "'test_split_size' 0.5 takes all rows": {"test_split_size": 0.5},
    "'dedupe' true takes all rows": {"dedupe": True},
    "'precompute_reference' true takes all rows": {"objective": "dpo", "precompute_reference": True},
    "'tokens_cache' 'x' takes all rows": {"tokens_cache": "x"},
    "'dataset_num_proc' 2 takes all rows": {"dataset_num_proc": 2},
    "'streaming' true is not for kto": {"objective": "kto"},
    "'dataloader_num_workers' 1": {"dataloader_num_workers": 1},
    "'streaming_buffer' 6 has no effect": {"streaming": False},
    "'streaming_buffer' must be at least 1": {"streaming_buffer": 0},
    "asks for a part": {"dataset": "pairs/a.jsonl#3"},
}


@pytest.mark.parametrize("expected", REFUSED)
def test_what_a_stream_cannot_do_is_one_line_and_leaves_nothing(work, expected):
    with pytest.raises(RecipeError) as refused:
        train(None, **{**work, **REFUSED[expected]})
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "values",
    [{"objective": "dpo"}, {"objective": "bco_pair"}, {"objective": "sft"}, {"eval_dataset": "pairs/b.jsonl"}],
    ids=str,
)
def test_other_objectives_and_evaluation_run_on_a_stream(work, values):
    summary = train(None, **{**work, **values})
    assert summary["steps"] == 6
    assert ("eval_loss" in summary["metrics"]) == ("eval_dataset" in values)


def test_questions_of_a_benchmark_are_left_out_of_a_stream(work):
    Path("asked.txt").write_text("What is 3 plus 4?\n")
    summary = train(None, **{**work, "decontaminate": "asked.txt", "max_steps": 5})
    assert sum(left["rows"] for left in summary["data"]["dropped"].values()) >= 1


def test_a_stream_longer_than_learned_positions_is_refused(work, tmp_path):
    import transformers

    tokenizer = AutoTokenizer.from_pretrained(work["model_name_or_path"])
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="Set max_length: 256 or less"):
        train(None, **{**work, "model_name_or_path": str(tmp_path / "gpt2")})


def test_check_looks_at_the_first_rows_of_a_stream(work, monkeypatch):
    monkeypatch.setattr(streaming, "LOOKED_AT", 7)
    report = check(None, **work)
    assert (report.tokens.rows, report.steps) == (7, 6)
