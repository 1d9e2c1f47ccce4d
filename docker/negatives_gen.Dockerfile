# Stage 1, and stage 3 (the evaluation samples with vLLM too). From the root of the repository:
#   docker build -f docker/negatives_gen.Dockerfile -t cpo-negatives-gen:gpu .
#   docker build -f docker/negatives_gen.Dockerfile -t cpo-negatives-gen:cpu --build-arg VARIANT=cpu .
#   docker run --rm cpo-negatives-gen:cpu make quickstart
ARG VARIANT=gpu

FROM python:3.11-slim-bookworm AS base
# A compiler: Triton and vLLM compile as they run. libnuma: vLLM on CPUs. wget: KubeRay's probes call it. make: the
# quickstart. The user owns /app, where that writes, and /workspace: a new volume takes its owner from here.
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev libnuma1 make wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 cpo && install -d -o cpo -g cpo /app /workspace
# The Makefile's own environment is the image's.
ENV VENV=/usr/local PIP_NO_CACHE_DIR=1
WORKDIR /app
# No sources yet: a change of code must not install torch and vLLM again.
COPY pyproject.toml docker/requirements-cpu.txt docker/constraints-gpu.txt ./

FROM base AS cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --extra-index-url "$TORCH_CPU_INDEX" -r requirements-cpu.txt

FROM base AS gpu
# The folders stand for the sources.
RUN mkdir data negatives_gen trainer evaluation && touch README.md cpo_rooms.py \
    && pip install -c constraints-gpu.txt '.[gpu,s3]'
# FlashInfer's sampler is compiled by nvcc at its first use, and there is no CUDA toolkit here: vLLM's own sampler then.
ENV VLLM_USE_FLASHINFER_SAMPLER=0

FROM ${VARIANT} AS final
COPY --chown=cpo:cpo . .
# Editable, so that jobs and workers find the code from any directory, and `make` in /app finds it installed.
RUN pip install --no-deps -e . && touch "$VENV/.installed"
USER cpo
CMD ["python", "-m", "negatives_gen", "--help"]
