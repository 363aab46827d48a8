"""kill -9 at every operation of a save and at random moments: the resumed run is the run that was not killed."""

from __future__ import annotations

import random
import signal
import time

import pytest

from preftune.train.checkpoint import checkpoints, problem
from tests.faults.child import run, start
from tests.faults.faults import KillInSave, skip_plots
from tests.faults.same import assert_resumes_to_the_same

pytestmark = pytest.mark.slow
TRAIN = ["train", "recipe.yaml"]


def test_a_run_that_is_stopped_and_resumed_inside_a_window_logs_the_same(work):
    """Steps 1 to 4, then the rest, with a log line every three steps."""
    code, said = run([*TRAIN, "output_dir=short"], work, KillInSave(step=6, at=1))
    assert code == -signal.SIGKILL, said
    assert [path.name for path in checkpoints(work / "short")] == ["checkpoint-4"]
    assert_resumes_to_the_same(work, "short")


@pytest.mark.parametrize("kind", ["checkpoint", "rescue"])
def test_a_kill_at_every_operation_of_a_save(work, kind, record_property):
    """The save at step 4, with the deletion of what it replaces. The file being written is cut to half."""
    how = [] if kind == "checkpoint" else ["save_strategy=no", "rescue_minutes=1e-9"]
    code, said = run([*TRAIN, "output_dir=counted", *how, "resume_from_checkpoint=false"], work, KillInSave(step=4))
    assert code == 0, said
    operations = (work / "operations.txt").read_text().splitlines()
    assert {"open", "fsync", "os.rename", "os.remove", "os.mkdir", "save", "safe_save_file"} <= set(operations)
    steps = set()
    for at in range(1, len(operations) + 1):
        output = f"{kind}-{at}"
        code, said = run([*TRAIN, f"output_dir={output}", *how], work, KillInSave(step=4, at=at))
        assert code == -signal.SIGKILL, said
        whole = [path for path in checkpoints(work / output) if problem(path) is None]
        assert whole, f"nothing to go on from after operation {at}, {operations[at - 1]}"
        steps.add(whole[0].name)
        assert_resumes_to_the_same(work, output, *how)
    print(f"{kind}: {len(operations)} operations of a save, a kill at each, resumed from {sorted(steps)}")
    assert steps == ({"checkpoint-2", "checkpoint-4"} if kind == "checkpoint" else {"rescue-3", "rescue-4"})


def test_twenty_kills_at_random_moments(work):
    """Runs that are killed up to four times and gone on with: reading, training, saving, writing the final model."""
    draw = random.Random(0)
    began = time.perf_counter()
    run([*TRAIN, "output_dir=timed"], work, skip_plots)
    length = time.perf_counter() - began
    kills = runs = 0
    while kills < 20:
        output = f"random-{runs}"
        for _ in range(4):
            process = start([*TRAIN, f"output_dir={output}", "resume_from_checkpoint=auto"], work, skip_plots)
            process.join(draw.uniform(0.2, 0.9) * length)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        assert_resumes_to_the_same(work, output)
        runs += 1
        assert runs < 20, "hardly any kill comes in time"
    print(f"{kills} kills in {runs} runs of {length:.1f} s")
