"""The command line starts fast, and says what it can do."""

import subprocess
import sys
import time

import pytest

from preftune.cli.main import VERBS, main

HEAVY = ("torch", "transformers", "datasets", "numpy", "rich", "yaml")


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["train", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = f"""if True:
        import sys
        from preftune.cli.main import main
        assert main({words!r}) == 0
        assert not [name for name in {HEAVY!r} if name in sys.modules]
    """
    python("-c", code)


def test_help_answers_in_under_0_3_seconds():
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        python("-m", "preftune", "--help")
        best = min(best, time.perf_counter() - start)
        if best < 0.3:
            break
    assert best < 0.3


def test_help_lists_every_verb_with_a_line(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb}" in out and line in out for verb, line in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"  preftune {verb}" in capsys.readouterr().out.split("examples:")[1]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "preftune 0.1.0\n"


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["trian", "x.yaml"]) == 2
    assert capsys.readouterr().err == "preftune: 'trian' is not a verb; did you mean 'train'?\n"


def test_an_unknown_verb_like_no_other_lists_them(capsys):
    assert main(["xyzzy"]) == 2
    assert f"the verbs are {', '.join(VERBS)}." in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["sample", "m", "p.jsonl"], ["annotate", "s.jsonl"], ["score", "m", "d.jsonl"], ["infer", "m"]]
)
def test_a_file_that_is_written_unpacked_has_no_name_of_a_packed_one(words, capsys):
    assert main([*words, "--output", "out.jsonl.gz"]) == 2
    assert "written unpacked, found 'out.jsonl.gz'" in capsys.readouterr().err
