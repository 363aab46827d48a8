"""Another process that writes a file."""

import subprocess
import sys
from contextlib import contextmanager

PROGRAM = """
import fcntl, sys
file = open(sys.argv[1], "a+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(path):
    """The file is there, empty if it was not, and another process has it."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.communicate()
