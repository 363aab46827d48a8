"""`preftune push` and push_to_hub, against a hub on this machine."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from preftune.cli.main import main
from preftune.errors import ModelError
from preftune.model.load import load_model
from preftune.train.push import published_files, push_folder
from preftune.train.run import train
from tests.export.conftest import save_adapter
from tests.export.hub import TOKEN, serving_models


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving_models() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        yield server


def fetched(hub, name, folder):
    for path, content in hub.repos[name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_an_adapter_is_what_was_sent(hub, adapter, tmp_path, capsys):
    assert main(["push", str(adapter), "me/first", "--private", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{hub.address}/me/first/commit/1\n"
    assert hub.private == {"me/first"}
    one, two = (load_model(str(place)).state_dict() for place in (adapter, fetched(hub, "me/first", tmp_path / "x")))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert hub.repos["me/first"]["README.md"].startswith(b"---\nlibrary_name: peft\n")


def test_a_repository_that_exists_is_touched_only_when_that_is_said(hub, small, capsys):
    assert main(["push", str(small), "me/first"]) == 0
    assert main(["push", str(small), "me/first"]) == 2
    line = "ModelError: 'me/first': it exists already. Add --update to put a commit on it, or give another name.\n"
    assert capsys.readouterr().err.endswith(line)
    assert main(["push", str(small), "me/first", "--update", "--message", "again"]) == 0
    assert [summary for *_, summary in hub.commits] == ["Upload with preftune", "again"]


def test_states_pickles_checkpoints_and_what_links_point_to_stay(small, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small, run)
    (tmp_path / "secret.json").write_text("{}")
    (run / "linked.json").symlink_to(tmp_path / "secret.json")
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "checkpoint-3/config.json", ".env"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    for name in ("plots/loss.png", "samples/step-3.md", "recipe.yaml"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    names = {str(path.relative_to(run)) for path in published_files(run)}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "plots/loss.png", "samples/step-3.md", "recipe.yaml"),
    }


class TestRefused:
    def test_without_a_token(self, hub, small, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(ModelError, match="needs an access token: run `hf auth login`, or set HF_TOKEN"):
            push_folder(small, "me/first")
        assert hub.repos == {}

    def test_with_a_wrong_token(self, hub, small, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(ModelError, match="the hub does not take the access token"):
            push_folder(small, "me/first")

    def test_where_others_write(self, hub, small):
        with pytest.raises(ModelError, match=r"'others/first': the access token may not write there"):
            push_folder(small, "others/first")

    def test_a_commit_that_is_not_taken_says_what_is_there(self, hub, small):
        hub.refuses_commits = True
        with pytest.raises(
            ModelError, match=r"may not write there.*has been made and is empty: try again with --update"
        ):
            push_folder(small, "me/first")

    def test_a_name_that_is_none(self, hub, small, capsys):
        for name in ("a/b/c", "me/x y", "../me"):
            assert main(["push", str(small), name]) == 2
            assert capsys.readouterr().err.count("\n") == 1

    def test_no_hub(self, small, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="the hub cannot be written to"):
            push_folder(small, "me/first")

    def test_a_folder_without_a_model(self, hub, tmp_path):
        with pytest.raises(ModelError, match="There is no model in"):
            push_folder(tmp_path, "me/first")

    def test_weights_that_are_pickles_alone(self, hub, small, tmp_path):
        shutil.copytree(small, tmp_path / "old")
        (tmp_path / "old" / "model.safetensors").rename(tmp_path / "old" / "pytorch_model.bin")
        with pytest.raises(ModelError, match="no weights in safetensors"):
            push_folder(tmp_path / "old", "me/first")

    def test_a_file_with_an_access_token(self, hub, small, tmp_path):
        shutil.copytree(small, tmp_path / "run")
        (tmp_path / "run" / "recipe.yaml").write_text(f"hub_token: hf_{'x1' * 17}\n")
        with pytest.raises(ModelError, match=r"recipe\.yaml' holds what looks like an access token"):
            push_folder(tmp_path / "run", "me/first")
        assert hub.repos == {}

    def test_a_long_file_with_an_access_token_at_its_end(self, hub, small, tmp_path):
        shutil.copytree(small, tmp_path / "run")
        (tmp_path / "run" / "watch.jsonl").write_text("{}\n" * 400_000 + f'"hf_{"x1" * 17}"\n')
        with pytest.raises(ModelError, match=r"watch\.jsonl' holds what looks like an access token"):
            push_folder(tmp_path / "run", "me/first")
        assert hub.repos == {}

    def test_a_checkpoint_whose_card_would_show_an_access_token(self, hub, small, tmp_path):
        shutil.copytree(small, tmp_path / "run" / "checkpoint-1")
        (tmp_path / "run" / "recipe.yaml").write_text(f"dataset: https://me:hf_{'x1' * 17}@example.org/rows.jsonl\n")
        with pytest.raises(ModelError, match=r"The card of '.*checkpoint-1', made of what '.*run' has, holds"):
            push_folder(tmp_path / "run" / "checkpoint-1", "me/first")
        assert hub.repos == {}


PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No."} for n in range(8)]


@pytest.fixture
def work(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return {
        "model_name_or_path": str(small),
        "dataset": "pairs.jsonl",
        "objective": "simpo",
        "max_length": 64,
        "total_batch_size": 4,
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "output_dir": "run",
        "push_to_hub": True,
        "hub_model_id": "me/run",
    }


class TestDuringTraining:
    def test_the_finished_run_is_on_the_hub_with_its_card(self, hub, work, tmp_path):
        train(None, **work)
        sent = hub.repos["me/run"]
        assert sent["README.md"] == Path("run/README.md").read_bytes()
        assert sent["model.safetensors"] == Path("run/model.safetensors").read_bytes()
        assert {"recipe.yaml", "summary.json", "log.jsonl", "plots/loss.png", "chat_template.jinja"} <= sent.keys()
        assert not any(name.endswith((".bin", ".pt", ".pth")) for name in sent)
        summaries = [summary for *_, summary in hub.commits]
        assert summaries[-1] == "End of training"
        assert set(summaries[:-1]) <= {"Training in progress, step 1", "Training in progress, step 2"}

    def test_the_card_says_what_was_done(self, hub, work):
        train(None, **work)
        card = Path("run/README.md").read_text()
        for part in (
            *("pipeline_tag: text-generation", "simpo: -log σ(", "In general: `", "arXiv:2405.14734", "`pairs.jsonl`"),
            *("rewards/accuracies", "![loss](plots/loss.png)", "```yaml", "beta:"),
        ):
            assert part in card, part

    def test_a_token_in_the_recipe_goes_into_no_file(self, hub, work, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        train(None, **work, hub_token=TOKEN)
        assert hub.commits[-1][2] == "End of training"
        assert os.environ["HF_TOKEN"] == TOKEN
        written = [path for path in Path("run").rglob("*") if path.is_file()]
        assert not [path for path in written if TOKEN.encode() in path.read_bytes()]

    @pytest.mark.parametrize(
        ("strategy", "place"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-1")]
    )
    def test_whole_checkpoints_where_that_is_asked(self, hub, work, strategy, place):
        train(None, **work, hub_strategy=strategy, hub_always_push=True)
        assert f"{place}/optimizer.pt" in hub.repos["me/run"]

    def test_an_adapter_is_sent_as_it_is_saved(self, hub, work, tmp_path):
        train(None, **work, use_peft=True, lora_init="pissa")
        sent = fetched(hub, "me/run", tmp_path / "sent")
        one, two = (load_model(str(place)).state_dict() for place in ("run", sent))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_samples_of_a_run_stand_in_its_card(tmp_path):
    from preftune.train.card import short_card

    (tmp_path / "recipe.yaml").write_text("objective: simpo\n")
    (tmp_path / "samples").mkdir()
    for step in (9, 10):
        (tmp_path / "samples" / f"step-{step}.md").write_text(f"# Responses after step {step}\n\n| a |\n")
    card = short_card(tmp_path, tmp_path)
    assert "## Samples\n\n### Responses after step 10" in card and "step 9" not in card


def test_watched_answers_stand_in_the_card_as_text(tmp_path):
    from preftune.train.card import short_card

    (tmp_path / "recipe.yaml").write_text("objective: simpo\n")
    lines = [(0, "old | <b>"), (5, "middle"), (9, "new")]
    records = [{"step": step, "answers": [{"prompt": "Why?", "answer": text, "ended": True}]} for step, text in lines]
    (tmp_path / "watch.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    card = short_card(tmp_path, tmp_path)
    assert "| prompt | after step 0 | after step 9 |" in card
    assert r"| Why? | old \| \<b\> | new |" in card


def test_the_card_of_a_run_goes_into_its_export(small, tmp_path):
    from preftune.export.write import export_model

    run = save_adapter(small, tmp_path / "run")
    (run / "recipe.yaml").write_text("objective: simpo\n")
    (run / "README.md").write_text("---\nlibrary_name: peft\ntags: [preftune, simpo]\n---\n# run\n\nTrained so.\n")
    export_model(str(run), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- preftune\n- simpo\n")
    assert "Trained so." in card and "its adapter merged into `small`" in card
