#!/usr/bin/env bash
# Creates .bench-env/, where the peers that the benchmarks measure against live, and records what was installed.
#
#   benchmarks/install_peers.sh                 torch, TRL, Liger and what they need
#   WITH_LIGER=0 benchmarks/install_peers.sh    without liger-kernel, which brings a large triton
#
# An environment of its own, because peers and preftune do not always agree on versions. torch and transformers are
# pinned to what preftune is measured with, so that a difference in speed is one of design and not of release.
# pip's own settings apply (PIP_INDEX_URL, PIP_FIND_LINKS ...), PIP_ARGS goes to every install; PYTHON chooses the
# interpreter, TORCH another torch (a build for CUDA), BENCH_ENV another place.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
env_dir="${BENCH_ENV:-$root/.bench-env}"

"${PYTHON:-python3}" -m venv "$env_dir"
python="$env_dir/bin/python"
torch="${TORCH:-torch==2.13.0}"

# torch first and alone: the resolver may otherwise swap the wheel that is at hand for a larger build.
# shellcheck disable=SC2086 # PIP_ARGS is several words
"$python" -m pip install --quiet ${PIP_ARGS:-} "$torch"
# shellcheck disable=SC2086
"$python" -m pip install --quiet ${PIP_ARGS:-} \
    "$torch" "trl==1.16.*" "transformers==5.23.*" "accelerate>=1.15" "peft>=0.21" "datasets>=5" safetensors
if [[ "${WITH_LIGER:-1}" == "1" ]]; then
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet ${PIP_ARGS:-} "$torch" "transformers==5.23.*" liger-kernel
fi

"$python" - "$env_dir/versions.json" <<'PY'
import importlib.metadata as metadata
import json
import platform
import sys

names = ("torch", "trl", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "liger-kernel")
versions = {"python": platform.python_version()}
for name in names:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass  # liger-kernel is optional
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(versions, file, indent=2)
    file.write("\n")
print(json.dumps(versions, indent=2))
PY
