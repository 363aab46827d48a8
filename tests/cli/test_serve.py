"""`preftune serve`: what it refuses before it serves."""

import socket

import pytest

from preftune.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "Add --api-key-env"),
        (["--api-key-env", "PREFTUNE_TEST_NO_KEY"], "holds no key"),
        (["--api-key-file", "no-such-file"], "cannot be read"),
        (["--api-key-env", "A", "--api-key-file", "b"], "not allowed with"),
        (["--adapter", "runs/terse"], "expected NAME=PATH"),
        (["--adapter", "a=b", "--adapter", "a=c"], "twice"),
        (["--port", "70000"], "between 0 and 65535"),
        (["--slots", "0"], "at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_explained(words, said, capsys):
    assert main(["serve", "model", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["deploy", "no-such-model", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened at: Address already in use. Give another --port" in capsys.readouterr().err


def test_a_model_that_does_not_exist_is_one_line(capsys):
    assert main(["serve", "./no-such-model", "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("ModelError: The folder 'no-such-model' does not exist.")
