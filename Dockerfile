# A container for training and sampling, by default on a CPU:
#   docker build -t eqm-video .
#   docker run --rm -v "$PWD/runs:/runs" eqm-video demo --out /runs/demo_samples --run /runs/demo --data /runs/demo_data
# For a GPU take a base with CUDA, and start with --gpus all; /dev/shm must have room for batches:
#   docker build --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 -t eqm-video .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" -w /work eqm-video train --config own_videos data.root=FOLDER
ARG BASE=python:3.12-slim
FROM ${BASE}

# Words for pip when it installs PyTorch, such as --index-url URL for builds without CUDA, which are much smaller
ARG TORCH_ARGS=
# Extras, such as [page,evaluate,lora]; the page: docker run -p 7860:7860 eqm-video page demo --host 0.0.0.0
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH

# A base with CUDA has no Python; slim images have one.
# hadolint ignore=DL3008
RUN if ! python3 -c "import venv, ensurepip"; then apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; fi
RUN python3 -m venv "$VIRTUAL_ENV"

WORKDIR /opt/eqm-video
COPY constraints.txt ./
RUN pip install $TORCH_ARGS -c constraints.txt torch
COPY . .
RUN pip install -c constraints.txt ".$EXTRAS"

WORKDIR /work
ENTRYPOINT ["eqm-video"]
CMD ["--help"]
