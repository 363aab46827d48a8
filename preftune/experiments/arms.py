"""Arms: runs of one experiment, each a few verbs in processes of their own, several at once.

An arm's folder holds `recipe.yaml`, `steps.json` (what is done, with which words, and what it printed), `output.log`
(all that its processes said) and `model/`, the run. What is done is not done again with the same words, and a training
that was stopped goes on from its last checkpoint. A training that the collapse watch ends makes its arm `collapsed`,
which is a result; any other error makes it `failed`, and the arm is tried again by the next start.

Arms that train together (`preftune train --together`) do so in one process, which says what it says in
`together-N.log` beside `arms/`; each arm keeps its own part of what came out, and goes on by itself. Where the process
refuses to train them together, they train one by one.
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

from preftune.errors import CollapseError, Interrupted, PreftuneError, RecipeError

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


def run_arms(arms: Sequence[Arm], folder: Path, jobs: int = 1, groups: Sequence[Sequence[Arm]] = ()) -> list[Outcome]:
    """Run what is left of the arms, `jobs` at a time; outcomes in the order of the arms.

    With GPUs each job has one of them in turn; without, the cores are shared out.

    Args:
        groups: arms that train together; the training of a group is one job.

    Raises:
        RecipeError: another process is at work in this folder.
        Interrupted: stopped; the runs have saved.
    """
    (folder / "arms").mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock:
        _work(arms, folder / "arms", jobs, lock, groups)
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


def _work(arms: Sequence[Arm], folder: Path, jobs: int, lock: int, groups: Sequence[Sequence[Arm]] = ()) -> None:
    left = [arm for arm in arms if _next(arm, folder / arm.name) is not None]
    log.info("%d arms, %d of them done before", len(arms), len(arms) - len(left))
    waiting = _jobs(left, folder, groups)
    running: dict[int, _Running | _RunningTogether] = {}
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        while waiting or running:
            for place in range(jobs):
                if waiting and place not in running:
                    members = waiting.popleft()
                    environment = {**os.environ, **_device(place, jobs), "PYTHONPATH": _search_path()}
                    running[place] = (
                        _Running(members[0], folder, environment, lock)
                        if len(members) == 1
                        else _RunningTogether(members, folder, environment, lock)
                    )
            for place in [place for place, one in running.items() if not one.goes_on()]:
                waiting.extend((arm,) for arm in running.pop(place).left())
            time.sleep(0.05)
    except BaseException as error:
        for one in running.values():
            one.child.send_signal(signal.SIGTERM)  # they save, and end
        for one in running.values():
            one.child.wait()
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C, and SIGTERM by `_terminated`
            raise Interrupted("The runs have saved; the same command goes on from there.") from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _jobs(left: Sequence[Arm], folder: Path, groups: Sequence[Sequence[Arm]]) -> deque[tuple[Arm, ...]]:
    """The groups, as far as their arms have not trained yet, and every other arm by itself."""
    training = {arm.name for arm in left if _next(arm, folder / arm.name) == arm.steps[0]}
    joined = [tuple(arm for arm in group if arm.name in training) for group in groups]
    joined = [group for group in joined if len(group) > 1]
    names = {arm.name for group in joined for arm in group}
    return deque([*joined, *((arm,) for arm in left if arm.name not in names)])


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

    def __init__(self, arm: Arm, folder: Path, environment: Mapping[str, str], lock: int) -> None:
        self.arm, self.folder, self.environment, self.lock = arm, folder / arm.name, environment, lock
        _write_recipe(arm, self.folder)
        self._start()

    def _start(self) -> None:
        step = _next(self.arm, self.folder)
        assert step is not None
        self.step, self.started = step, time.monotonic()
        log.info("%s: %s", self.arm.name, step.name)
        with (self.folder / "output.log").open("ab") as said, (self.folder / "printed").open("wb") as printed:
            self.child = _open(step.words, printed, said, self.environment, self.lock)

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

    def left(self) -> list[Arm]:
        """What is to be gone on with by itself."""
        return []

    def _record(self, code: int) -> None:
        entry: dict[str, Any] = {"code": code, "seconds": round(time.monotonic() - self.started, 1)}
        text = (self.folder / "printed").read_text("utf-8", errors="replace")
        if code:
            entry["said"] = _last_line(self.folder / "output.log")
        elif self.step.prints_json:
            entry["printed"] = json.loads(text)
        _note(self.arm, self.folder, self.step, entry)
        (self.folder / "printed").unlink()


class _RunningTogether:
    """Arms whose training is one process; each has its share of the seconds."""

    def __init__(self, arms: Sequence[Arm], folder: Path, environment: Mapping[str, str], lock: int) -> None:
        self.arms, self.folder, self.started = arms, folder, time.monotonic()
        self.refused = False
        number = 1 + len(list(folder.parent.glob("together-*.log")))
        self.log = folder.parent / f"together-{number}.log"
        for arm in arms:
            _write_recipe(arm, folder / arm.name)
            with (folder / arm.name / "output.log").open("a", encoding="utf-8") as said:
                said.write(f"Trains together with {len(arms) - 1} others: {self.log}\n")
        log.info("%d arms train together: %s", len(arms), ", ".join(arm.name for arm in arms))
        first, *others = [str(folder / arm.name / "recipe.yaml") for arm in arms]
        words = ("train", first, "--together", *others, "--json")
        with self.log.open("ab") as said, self.log.with_suffix(".json").open("wb") as printed:
            self.child = _open(words, printed, said, environment, lock)

    def goes_on(self) -> bool:
        code = self.child.poll()
        if code is not None:
            self._record(code)
        return code is None

    def left(self) -> list[Arm]:
        """Those that have trained, for their further steps; all of them where they were refused."""
        if self.refused:
            return list(self.arms)
        ended = {arm.name: _ended(arm, self.folder / arm.name) for arm in self.arms}
        trained = [arm for arm in self.arms if ended[arm.name][arm.steps[0].name]["code"] == 0]
        return [arm for arm in trained if _next(arm, self.folder / arm.name) is not None]

    def _record(self, code: int) -> None:
        """Of each arm its own end; where the process did not come to say them, what it said last.

        A process that ends as one with bad input does has not trained.
        """
        printed = self.log.with_suffix(".json")
        try:
            ends = json.loads(printed.read_text("utf-8"))
        except ValueError:
            self.refused = code == PreftuneError.exit_code
            if self.refused:
                names = ", ".join(arm.name for arm in self.arms)
                log.warning("Not together, but run by run: %s (%s).", names, _last_line(self.log))
                printed.unlink()
                return
            ends = [{"code": code or 1, "said": _last_line(self.log)}] * len(self.arms)
        seconds = round((time.monotonic() - self.started) / len(self.arms), 1)
        for arm, end in zip(self.arms, ends, strict=True):
            entry = {"code": end["code"], "seconds": seconds}
            entry |= {"said": end["said"]} if end["code"] else {"printed": end["summary"]}
            _note(arm, self.folder / arm.name, arm.steps[0], entry)
        printed.unlink()


def _write_recipe(arm: Arm, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(arm.recipe, encoding="utf-8")


def _open(
    words: Sequence[str], printed: IO[bytes], said: IO[bytes], environment: Mapping[str, str], lock: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "preftune", *words],
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=said,
        env=environment,
        pass_fds=[lock],
        start_new_session=True,  # Ctrl-C is ours to pass on, once
    )


def _note(arm: Arm, folder: Path, step: Step, entry: dict[str, Any]) -> None:
    """Keep how a step of an arm has ended."""
    code = entry["code"]
    if code:
        level = logging.INFO if code == CollapseError.exit_code else logging.WARNING
        log.log(level, "%s: %s ended with %d: %s", arm.name, step.name, code, entry["said"])
    entry = {"words": _words(step, folder), **entry}
    part = folder / "steps.part"
    text = json.dumps({**_done(folder), step.name: entry}, indent=1, ensure_ascii=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(folder / "steps.json")


def _done(folder: Path) -> dict[str, Any]:
    path = folder / "steps.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _words(step: Step, folder: Path) -> list[str]:
    """The words of a step, which stay the same where the experiment's folder is moved."""
    experiment = folder.parents[1]
    return [word.removeprefix(f"{experiment}/") for word in step.words]


def _ended(arm: Arm, folder: Path) -> dict[str, Any]:
    """How the arm's steps have ended, up to the first that has not, or not with the words that it has now."""
    done, ended = _done(folder), {}
    for step in arm.steps:
        entry = done.get(step.name, {})
        if entry.get("words") != _words(step, folder):
            break
        ended[step.name] = entry
        if entry["code"]:
            break
    return ended


def _next(arm: Arm, folder: Path) -> Step | None:
    """The first step that is not done; none after a collapse."""
    ended = _ended(arm, folder)
    for step in arm.steps:
        code = ended.get(step.name, {}).get("code")
        if code == CollapseError.exit_code:
            return None
        if code != 0:
            return step
    return None


def _outcome(arm: Arm, folder: Path) -> Outcome:
    done = _ended(arm, folder)
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
