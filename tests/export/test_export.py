"""`preftune export`: the folder answers as the model did, and nothing is lost on the way."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from preftune.cli.main import main
from preftune.data.chat import read_chat_format
from preftune.errors import ModelError
from preftune.export.write import ExportOptions, export_model
from preftune.model.load import load_model, load_tokenizer
from preftune.types import Message
from tests.data.conftest import find_data_folder
from tests.export.conftest import save_adapter, save_small
from tests.export.hub import pickled, put_in_cache

IDS = torch.tensor([[256, 5, 77, 130, 9, 42, 201, 33, 12, 60]])


def logits(folder, ids=IDS):
    with torch.inference_mode():
        return load_model(str(folder)).eval()(input_ids=ids).logits


def assert_same_answers(one, two, ids=IDS):
    assert (logits(one, ids) - logits(two, ids)).abs().max() < 1e-5


KINDS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "modules to save": {"modules_to_save": ["lm_head", "model.norm"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "new tokens": {"new_tokens": ["<|new|>", "<|newer|>"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_gives_the_same_logits(kind, small, tmp_path):
    run = save_adapter(small, tmp_path / "run", **KINDS[kind])
    facts = export_model(str(run), tmp_path / "out")
    ids = torch.cat([IDS, torch.tensor([[260, 7, 261, 8]])], dim=1) if kind == "new tokens" else IDS
    assert_same_answers(run, tmp_path / "out", ids)
    assert facts["merged_into"] == "small"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    if kind == "new tokens":
        assert load_tokenizer(str(tmp_path / "out"))("<|newer|>")["input_ids"][-1] == 261


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma2", "gpt2", "mistral-window"])
def test_of_other_architectures_too(name, tmp_path):
    base = save_small(tmp_path / "base", name)
    run = save_adapter(base, tmp_path / "run")
    export_model(str(run), tmp_path / "out")
    assert_same_answers(run, tmp_path / "out")


def test_embeddings_that_were_trained_apart_are_not_tied_again(tmp_path):
    base = save_small(tmp_path / "base", "llama-tied")
    run = save_adapter(base, tmp_path / "run", modules_to_save=["embed_tokens", "lm_head"])
    export_model(str(run), tmp_path / "out")
    assert_same_answers(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_sixteen_bit_weights_are_merged_in_float32_and_rounded_once(tmp_path):
    base = save_small(tmp_path / "base", dtype=torch.bfloat16)
    run = save_adapter(base, tmp_path / "run")
    export_model(str(run), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    before, adapter = load_file(base / "model.safetensors"), load_file(run / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    wanted = before[f"{name}.weight"].float() + 32 / 4 * b @ a
    assert found[f"{name}.weight"].dtype is torch.bfloat16
    assert torch.equal(found[f"{name}.weight"], wanted.bfloat16())


def test_a_whole_model_is_carried_bit_by_bit(small, tmp_path):
    facts = export_model(str(small), tmp_path / "out")
    one, two = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "out"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert facts["kind"] == "language model" and facts["merged_into"] is None


def test_a_run_that_has_checkpoints_alone_gives_its_newest(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "run" / "checkpoint-7")
    (tmp_path / "run" / "recipe.yaml").write_text("objective: simpo\n")
    export_model(str(tmp_path / "run"), tmp_path / "out")
    assert_same_answers(adapter, tmp_path / "out")
    assert (tmp_path / "out" / "recipe.yaml").is_file()


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_precision_is_the_one_asked_for(dtype, kind, small, tmp_path):
    export_model(str(small), tmp_path / "out", ExportOptions(dtype=dtype))
    before, after = (load_file(folder / "model.safetensors") for folder in (small, tmp_path / "out"))
    assert all(torch.equal(after[key], before[key].to(kind)) for key in before)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_numbers_too_large_for_float16_are_refused(small, tmp_path):
    shutil.copytree(small, tmp_path / "large")
    weights = load_file(small / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    save_file(weights, tmp_path / "large" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*not finite.*take bfloat16"):
        export_model(str(tmp_path / "large"), tmp_path / "out", ExportOptions(dtype="float16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]


def test_weights_are_cut_into_files_of_the_size_asked_for(adapter, tmp_path):
    facts = export_model(str(adapter), tmp_path / "out", ExportOptions(max_shard_size="50KB"))
    shards = {name: size for name, size in facts["files"].items() if name.endswith(".safetensors")}
    assert len(shards) > 2 and max(shards.values()) < 60_000
    assert_same_answers(adapter, tmp_path / "out")


def test_tokenizer_template_and_stop_tokens_come_along(adapter, tmp_path):
    export_model(str(adapter), tmp_path / "out")
    before, after = (read_chat_format(load_tokenizer(str(folder))) for folder in (adapter, tmp_path / "out"))
    talk = (Message("system", "Be brief."), Message("user", "Why?"))
    assert before.prompt_ids([talk]) == after.prompt_ids([talk])
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert before.end_id in ends


def test_a_reward_model_keeps_its_head(reward, tmp_path):
    from preftune.model.heads import load_reward_model
    from preftune.model.value_head import load_value_head

    facts = export_model(str(reward), tmp_path / "out", ExportOptions(dtype="bfloat16"))
    assert facts["kind"] == "reward model"
    one, two = (load_reward_model(str(folder), new_head=False) for folder in (reward, tmp_path / "out"))
    assert torch.equal(one.score.weight.bfloat16(), two.score.weight.bfloat16())
    assert torch.equal(load_value_head(tmp_path / "out").weight, one.score.weight.bfloat16())


def test_a_value_head_beside_a_language_model_stays_beside_it(small, reward, tmp_path):
    shutil.copytree(small, tmp_path / "model")
    shutil.copy(reward / "value_head.safetensors", tmp_path / "model")
    assert export_model(str(tmp_path / "model"), tmp_path / "out")["kind"] == "language model"
    one, two = (load_file(folder / "value_head.safetensors") for folder in (reward, tmp_path / "out"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_small_real_model_goes_through(tmp_path):
    model = find_data_folder() / "models" / "stories260K-llama"
    run = save_adapter(model, tmp_path / "run")
    export_model(str(run), tmp_path / "out")
    assert_same_answers(run, tmp_path / "out", IDS % 500)


class TestRefused:
    def test_a_folder_that_holds_something_else(self, small, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        assert main(["export", str(small), "--out", str(tmp_path / "out"), "--overwrite"]) == 2
        assert "the folder holds files that are no export" in capsys.readouterr().err
        assert (tmp_path / "out" / "thesis.tex").exists()

    def test_an_earlier_export_unless_that_is_said(self, small, adapter, tmp_path, capsys):
        out = tmp_path / "out"
        assert main(["export", str(small), "--out", str(out)]) == 0
        assert main(["export", str(adapter), "--out", str(out)]) == 2
        assert "add --overwrite" in capsys.readouterr().err
        assert main(["export", str(adapter), "--out", str(out), "--overwrite"]) == 0
        assert_same_answers(adapter, out)

    @pytest.mark.parametrize("out", [".", "..", "run"])
    def test_the_folder_of_the_model_itself(self, adapter, tmp_path, monkeypatch, out):
        shutil.copytree(adapter, tmp_path / "run")
        monkeypatch.chdir(tmp_path / "run" if out != "run" else tmp_path)
        place = str(tmp_path / "run")
        with pytest.raises(ModelError, match="it holds what is exported"):
            export_model(place, out, ExportOptions(overwrite=True))

    def test_a_link(self, small, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ModelError, match="is no folder"):
            export_model(str(small), tmp_path / "out")

    def test_a_disk_that_is_too_small(self, small, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        with pytest.raises(ModelError, match=r"0\.03 GiB are needed, 0\.00 are free"):
            export_model(str(small), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_a_disk_that_is_full_halfway_leaves_nothing(self, small, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
        with pytest.raises(ModelError, match="No space left on device"):
            export_model(str(small), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_weights_that_are_not_what_was_meant(self, small, tmp_path, monkeypatch):
        from transformers import PreTrainedModel

        plain = PreTrainedModel.save_pretrained

        def spoil(self, folder, **more):
            plain(self, folder, **more)
            weights = load_file(folder / "model.safetensors")
            weights["model.norm.weight"][3] += 1e-6
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoil)
        with pytest.raises(ModelError, match=r"model\.norm\.weight is not what was to be written"):
            export_model(str(small), tmp_path / "out")

    def test_pickled_weights_unless_that_is_said(self, small, tmp_path):
        shutil.copytree(small, tmp_path / "old")
        torch.save(load_file(small / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin")
        (tmp_path / "old" / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"pytorch_model\.bin' is a pickle.*--allow-pickle"):
            export_model(str(tmp_path / "old"), tmp_path / "out")
        export_model(str(tmp_path / "old"), tmp_path / "out", ExportOptions(allow_pickle=True))
        assert_same_answers(small, tmp_path / "out")

    def test_a_pickled_adapter_or_base_of_one(self, small, adapter, tmp_path):
        shutil.copytree(adapter, tmp_path / "run")
        weights = tmp_path / "run" / "adapter_model.safetensors"
        torch.save(load_file(weights), tmp_path / "run" / "adapter_model.bin")
        weights.unlink()
        with pytest.raises(ModelError, match=r"adapter_model\.bin' is a pickle"):
            export_model(str(tmp_path / "run"), tmp_path / "out")

    @pytest.mark.parametrize("kind", ["small", "reward", "adapter"])
    def test_pickled_weights_of_a_hub_name(self, kind, cache, request, tmp_path, monkeypatch):
        """Nothing is read by torch.load before somebody says so."""
        snapshot = pickled(put_in_cache(cache, "me/model", request.getfixturevalue(kind)))
        read, plain = [], torch.load
        monkeypatch.setattr(torch, "load", lambda file, *rest, **more: read.append(file) or plain(file, *rest, **more))
        with pytest.raises(ModelError, match=r"me/model.*safetensors"):
            export_model("me/model", tmp_path / "out")
        assert read == [] and list(snapshot.glob("*.bin"))
        export_model("me/model", tmp_path / "out", ExportOptions(allow_pickle=True))
        assert read

    def test_a_base_on_the_hub_that_is_a_pickled_adapter_itself(self, cache, adapter, tmp_path):
        pickled(put_in_cache(cache, "me/first", adapter))
        second = put_in_cache(cache, "me/second", adapter)
        config = json.loads((second / "adapter_config.json").read_text())
        (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "me/first"}))
        with pytest.raises(ModelError, match=r"'me/first' is an adapter without adapter_model\.safetensors"):
            export_model("me/second", tmp_path / "out")

    @pytest.mark.parametrize("words", [["--dtype", "int8"], ["--max-shard-size", "5"], ["--max-shard-size", "0GB"]])
    def test_a_wrong_option(self, words, capsys):
        assert main(["export", "x", "--out", "y", *words]) == 2
        assert "usage: preftune export" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["none", "../none", "/none"])
    def test_a_model_that_is_not_there(self, name, tmp_path, capsys):
        assert main(["export", name, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
