# preftune on a CPU, from a checkout:
#   docker build -t preftune --build-arg TORCH_ARGS="--extra-index-url INDEX-OF-CPU-BUILDS" .
#   docker run --rm -it -v "$PWD":/work preftune train my.yaml
#
# On GPUs, a CUDA base (a devel one: Triton and DeepSpeed compile kernels):
#   docker build -t preftune:cuda --build-arg BASE=nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04 \
#       --build-arg EXTRAS=lora,quant,deepspeed,serve,web .
#   docker run --rm -it --gpus all --ipc host -v "$PWD":/work preftune:cuda train my.yaml --nproc 4
#
# TORCH_ARGS goes to the install of torch alone: without it the usual index gives the build for CUDA, some gigabytes larger.
# PIP_ARGS goes to every install, for an index of one's own. A run as a user with the checkout's ids: --user "$(id -u):$(id -g)".

ARG BASE=debian:bookworm-slim
FROM ${BASE}

ARG TORCH_ARGS=""
ARG PIP_ARGS=""
ARG EXTRAS=lora,serve,web
ENV PATH=/opt/preftune/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1

# The compiler and Python's headers are for torch_compile, Triton and DeepSpeed.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc g++ ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/preftune

WORKDIR /opt/source
COPY constraints.txt ./
RUN pip install ${PIP_ARGS} ${TORCH_ARGS} -c constraints.txt torch

COPY pyproject.toml README.md LICENSE ./
COPY training_configs ./training_configs
COPY preftune ./preftune
RUN pip install ${PIP_ARGS} -c constraints.txt ".[${EXTRAS}]" && preftune --version

RUN useradd --create-home preftune && mkdir /work && chown preftune /work
USER preftune
WORKDIR /work
ENTRYPOINT ["preftune"]
CMD ["--help"]
