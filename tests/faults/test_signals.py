"""SIGINT and SIGTERM, a run that is started again, a recipe that has changed, damaged checkpoints."""

from __future__ import annotations

import os
import signal
import time

import pytest
import yaml

from preftune.train.checkpoint import checkpoints, problem
from preftune.train.record import read_log
from tests.faults.child import run
from tests.faults.faults import KillInSave, at_step, skip_plots
from tests.faults.same import assert_resumes_to_the_same
from tests.faults.test_disk import last_line

pytestmark = pytest.mark.slow
TRAIN = ["train", "recipe.yaml"]


def interrupt():
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT))


def terminate():
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))


def terminate_twice():
    def act():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # two that come before Python has seen one are one
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(5, act)


def interrupt_twice():
    def act():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # two that come before Python has seen one are one
        os.kill(os.getpid(), signal.SIGINT)

    at_step(5, act)


@pytest.mark.parametrize(("fault", "expected"), [(interrupt, 130), (terminate, 143)])
@pytest.mark.parametrize("how", [[], ["save_strategy=no"], ["save_only_model=true"]], ids=str)
def test_a_signal_saves_and_leaves(work, fault, expected, how):
    output = f"signal-{expected}-{len(how) and how[0]}"
    code, said = run([*TRAIN, f"output_dir={output}", *how], work, fault)
    assert code == expected, said
    assert last_line(said).startswith("Interrupted: saved; go on with: preftune train ")
    newest = checkpoints(work / output)[0]
    assert newest.name in ("checkpoint-5", "rescue-5")
    assert problem(newest) is None
    assert_resumes_to_the_same(work, output, *how)


@pytest.mark.parametrize(("fault", "expected"), [(interrupt_twice, 130), (terminate_twice, -signal.SIGTERM)])
def test_the_second_signal_ends_it_at_once(work, fault, expected):
    output = f"twice{expected}"
    code, said = run([*TRAIN, f"output_dir={output}"], work, fault)
    assert code == expected, said
    # on a busy machine the save that the first signal asked for may be done before the second is seen
    assert [path.name for path in checkpoints(work / output)] in (["checkpoint-4"], ["checkpoint-5"])
    assert_resumes_to_the_same(work, output)


@pytest.fixture
def stopped(work, request):
    """The name of a run that was killed after checkpoint-4."""
    output = f"stopped-{request.node.name}"
    code, said = run([*TRAIN, f"output_dir={output}"], work, KillInSave(step=6, at=1))
    assert code == -signal.SIGKILL, said
    return output


def test_a_stopped_run_is_not_started_over_by_accident(work, stopped):
    code, said = run([*TRAIN, f"output_dir={stopped}"], work)
    assert code == 2
    assert last_line(said) == (
        f"CheckpointError: '{stopped}' holds a run that was stopped after step 4. Go on with resume_from_checkpoint="
        "true, or start afresh with resume_from_checkpoint=false (its checkpoints are set aside)."
    )
    code, said = run([*TRAIN, f"output_dir={stopped}", "resume_from_checkpoint=false", "max_steps=2"], work, skip_plots)
    assert code == 0, said
    assert (work / stopped / "earlier-1/checkpoint-4").is_dir()
    assert [record["step"] for record in read_log(work / stopped / "log.jsonl") if "loss" in record] == [2]


@pytest.mark.parametrize(
    ("change", "said_of_it"),
    [
        ("learning_rate=1e-4", "learning_rate 0.001 then, 0.0001 now"),
        ("max_steps=9", "max_steps 8 then, 9 now"),
        ("beta=3", "beta 2.0 then, 3.0 now"),
        ("disable_dropout=true", "disable_dropout False then, True now"),
        ("total_batch_size=4", "global_batch 8 then, 4 now"),
        ("max_length=20", "data '"),
        ("weight_decay=0.1", "weight_decay 0.0 then, 0.1 now"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_difference(work, stopped, change, said_of_it):
    before = sorted(path.name for path in (work / stopped).iterdir())
    code, said = run([*TRAIN, f"output_dir={stopped}", "resume_from_checkpoint=true", change], work)
    assert code == 2
    assert said_of_it in last_line(said)
    assert "is of another run" in last_line(said)
    assert sorted(path.name for path in (work / stopped).iterdir()) == before


def test_what_does_not_change_the_result_may_change(work, stopped):
    words = ["save_steps=3", "save_total_limit=5", "rescue_minutes=0", "micro_batch_tokens=100000"]
    assert_resumes_to_the_same(work, stopped, *words)


def test_a_damaged_checkpoint_is_passed_over_and_out_of_the_way(work):
    """It would count as the newest one of the resumed run, and rotation would keep it for the good ones."""
    words = [*TRAIN, "output_dir=flipped", "save_total_limit=5"]
    code, said = run(words, work, KillInSave(step=8, at=1))
    assert code == -signal.SIGKILL, said
    weights = work / "flipped/checkpoint-6/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    said = assert_resumes_to_the_same(work, "flipped")
    assert "Passed over flipped/checkpoint-6: model.safetensors has changed since it was saved." in said
    assert (work / "flipped/earlier-1/checkpoint-6").is_dir()
    assert [path.name for path in checkpoints(work / "flipped")] == ["checkpoint-8"]


def test_rescue_checkpoints_are_two_and_do_not_count(work):
    words = [*TRAIN, "output_dir=rescued", "save_steps=1000000", "rescue_minutes=1e-9", "save_total_limit=1"]
    code, said = run(words, work, KillInSave(step=6, at=1))
    assert code == -signal.SIGKILL, said
    assert [path.name for path in checkpoints(work / "rescued")] == ["rescue-5", "rescue-4"]
    assert_resumes_to_the_same(work, "rescued", "save_steps=1000000", "rescue_minutes=0")
    assert [path.name for path in checkpoints(work / "rescued")] == ["checkpoint-8"]


def test_a_resumed_run_finds_its_place_in_a_stream(work):
    streamed = {**yaml.safe_load((work / "recipe.yaml").read_text()), "streaming": True, "streaming_buffer": 16}
    (work / "stream.yaml").write_text(yaml.safe_dump(streamed))
    words = ["train", "stream.yaml", "save_strategy=no", "rescue_minutes=1e-9"]
    code, said = run([*words, "output_dir=streamed"], work, skip_plots)
    assert code == 0, said
    code, said = run([*words, "output_dir=streamed-killed"], work, KillInSave(step=6, at=1))
    assert code == -signal.SIGKILL, said
    code, said = run([*words, "output_dir=streamed-killed", "resume_from_checkpoint=true"], work, skip_plots)
    assert code == 0, said
    from tests.faults.same import assert_same

    assert_same(work / "streamed", work / "streamed-killed")
