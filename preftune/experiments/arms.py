"""Arms: runs of one experiment, each a few verbs in processes of their own, several at once.

An arm's folder holds `recipe.yaml`, `steps.json` (what is done, and what it printed), `output.log` (all that its
processes said) and `model/`, the run. What is done is not done again, and a training that was stopped goes on from its
last checkpoint. A training that the collapse watch ends makes its arm `collapsed`, which is a result; any other error
makes it `failed`, and the arm is tried again by the next start.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from preftune.errors import CollapseError, Interrupted, RecipeError

log = logging.getLogger(__name__)
State = Literal["done", "collapsed", "failed"]


@dataclass(frozen=True)
class Step:
    """One verb with its words; what it prints is JSON where `prints_json` says so, and kept."""

    name: str
    words: tuple[str, ...]
    prints_json: bool = True


@dataclass(frozen=True)
class Arm:
    """One run: what it has otherwise than the recipe, its seed, its whole recipe as text, and what is done with it."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    recipe: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of an arm. printed: step -> what it printed; said: the last line of one that did not end well."""

    arm: Arm
    state: State
    printed: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    said: str = ""


def run_arms(arms: Sequence[Arm], folder: Path, jobs: int = 1) -> list[Outcome]:
    """Run what is left of the arms, `jobs` at a time; outcomes in the order of the arms.

    With GPUs each job has one of them in turn; without, the cores are shared out.

    Raises:
        RecipeError: another process is at work in this folder.
        Interrupted: stopped; the runs have saved.
    """
    (folder / "arms").mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock:
        _work(arms, folder / "arms", jobs, lock)
    return [_outcome(arm, folder / "arms" / arm.name) for arm in arms]


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """A lock that lives as long as this process or any of its children does."""
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(
                f"{folder}: another process is at work there, or a run that one has left behind. Wait for it or stop "
                "it; or give another --output."
            ) from None
        yield file.fileno()


def _work(arms: Sequence[Arm], folder: Path, jobs: int, lock: int) -> None:
    waiting = deque(arm for arm in arms if _next(arm, folder / arm.name) is not None)
    log.info("%d arms, %d of them done before", len(arms), len(arms) - len(waiting))
    running: dict[int, _Running] = {}
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        while waiting or running:
            for place in range(jobs):
                if waiting and place not in running:
                    running[place] = _Running(waiting.popleft(), folder, _device(place, jobs), lock)
            for place in [place for place, one in running.items() if not one.goes_on()]:
                del running[place]
            time.sleep(0.05)
    except KeyboardInterrupt:  # Ctrl-C, and SIGTERM by `_terminated`
        for one in running.values():
            one.child.send_signal(signal.SIGTERM)  # they save, and end
        for one in running.values():
            one.child.wait()
        raise Interrupted("The runs have saved; the same command goes on from there.") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _device(place: int, jobs: int) -> dict[str, str]:
    """The environment that gives a job its share of the machine."""
    import torch

    if torch.cuda.is_available():
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
        return {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]}
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // jobs, 1))}


class _Running:
    """An arm at work: one step after the other."""

    def __init__(self, arm: Arm, folder: Path, environment: dict[str, str], lock: int) -> None:
        self.arm, self.folder, self.lock = arm, folder / arm.name, lock
        self.environment = {**os.environ, **environment, "PYTHONPATH": _search_path()}
        self.folder.mkdir(exist_ok=True)
        (self.folder / "recipe.yaml").write_text(arm.recipe, encoding="utf-8")
        self._start()

    def _start(self) -> None:
        step = _next(self.arm, self.folder)
        assert step is not None
        self.step, self.started = step, time.monotonic()
        log.info("%s: %s", self.arm.name, step.name)
        with (self.folder / "output.log").open("ab") as said, (self.folder / "printed").open("wb") as printed:
            self.child = self._open(step, printed, said)

    def _open(self, step: Step, printed: IO[bytes], said: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "preftune", *step.words],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=said,
            env=self.environment,
            pass_fds=[self.lock],
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )

    def goes_on(self) -> bool:
        """Whether there is still something to do; takes the next step where one has ended."""
        code = self.child.poll()
        if code is None:
            return True
        self._record(code)
        if code or _next(self.arm, self.folder) is None:
            return False
        self._start()
        return True

    def _record(self, code: int) -> None:
        entry: dict[str, Any] = {"code": code, "seconds": round(time.monotonic() - self.started, 1)}
        text = (self.folder / "printed").read_text("utf-8", errors="replace")
        if code:
            entry["said"] = _last_line(self.folder / "output.log")
            level = logging.INFO if code == CollapseError.exit_code else logging.WARNING
            log.log(level, "%s: %s ended with %d: %s", self.arm.name, self.step.name, code, entry["said"])
        elif self.step.prints_json:
            entry["printed"] = json.loads(text)
        done = {**_done(self.folder), self.step.name: entry}
        part = self.folder / "steps.part"
        part.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.folder / "steps.json")
        (self.folder / "printed").unlink()


def _done(folder: Path) -> dict[str, Any]:
    path = folder / "steps.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _next(arm: Arm, folder: Path) -> Step | None:
    """The first step that is not done; none after a collapse."""
    done = _done(folder)
    for step in arm.steps:
        code = done.get(step.name, {}).get("code")
        if code == CollapseError.exit_code:
            return None
        if code != 0:
            return step
    return None


def _outcome(arm: Arm, folder: Path) -> Outcome:
    done = _done(folder)
    state: State = "done"
    said = ""
    for entry in done.values():
        if entry["code"]:
            state, said = ("collapsed" if entry["code"] == CollapseError.exit_code else "failed"), entry["said"]
    printed = {name: entry["printed"] for name, entry in done.items() if "printed" in entry}
    return Outcome(arm, state, printed, sum(entry["seconds"] for entry in done.values()), said)


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _search_path() -> str:
    here = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{before}" if before else here
