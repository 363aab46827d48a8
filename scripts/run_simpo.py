"""The launcher of the SimPO repository, over preftune: its recipes start as published.

    ACCELERATE_LOG_LEVEL=info accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml \
        scripts/run_simpo.py training_configs/mistral-7b-base-simpo.yaml [--key=value ...]
"""

import sys

from preftune.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("run_simpo", sys.argv[1:]))
