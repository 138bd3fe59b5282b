# gptbench for CPUs and for NVIDIA GPUs; how to build and run it: docs/docker.md. It holds no weights but the demo model's.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt pip hatchling
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY gptbench gptbench
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS cpu
# TorchInductor compiles C++; Python's headers are in this image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /opt/constraints.txt
RUN python -m venv /opt/gptbench
ENV PATH=/opt/gptbench/bin:$PATH
# The pinned torch, in its build for CPUs, which is a tenth of the size.
RUN pip install --no-cache-dir --constraint /opt/constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' /opt/constraints.txt)+cpu"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /opt/constraints.txt "$(ls /wheels/*.whl)[hf]"
ARG COMMIT=""
ENV GPTBENCH_COMMIT=$COMMIT
ARG UID=1000
RUN useradd --create-home --uid "$UID" gptbench && install --directory --owner gptbench /data /data/outputs
USER gptbench
WORKDIR /data
VOLUME /data/outputs
ENTRYPOINT ["gptbench"]

FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS cuda
# Triton compiles C against Python's headers. Torch brings CUDA's libraries along.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /opt/constraints.txt
RUN python3 -m venv /opt/gptbench
ENV PATH=/opt/gptbench/bin:$PATH
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /opt/constraints.txt "$(ls /wheels/*.whl)[hf]"
ARG COMMIT=""
ENV GPTBENCH_COMMIT=$COMMIT
ARG UID=1000
# This image comes with a user of that number.
RUN userdel --remove ubuntu \
    && useradd --create-home --uid "$UID" gptbench && install --directory --owner gptbench /data /data/outputs
USER gptbench
WORKDIR /data
VOLUME /data/outputs
ENTRYPOINT ["gptbench"]
