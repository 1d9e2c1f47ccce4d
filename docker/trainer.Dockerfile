# Stage 2: torch, TRL and this package; no vLLM. From the root of the repository:
#   docker build -f docker/trainer.Dockerfile -t cpo-trainer .
#   docker run --rm --gpus all -v $PWD/runs:/workspace/runs -w /workspace cpo-trainer python -m trainer.run --config ...
#   several GPUs: torchrun --nproc-per-node 8 -m trainer.run --config ...
FROM python:3.11-slim-bookworm
# A compiler: Triton compiles as it runs. The user is that of stage 1's image: they share a volume.
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 cpo && install -d -o cpo -g cpo /app /workspace
ENV PIP_NO_CACHE_DIR=1
WORKDIR /app
# No sources yet: a change of code must not install torch again.
COPY pyproject.toml docker/constraints-gpu.txt ./
# The versions of stage 1's image for GPUs, and torch's CUDA build, which runs on CPUs too: the same torch as in stage 1,
# whose log-probabilities the trainer continues from. The folders stand for the sources.
RUN mkdir data negatives_gen trainer evaluation && touch README.md cpo_rooms.py \
    && pip install -c constraints-gpu.txt '.[s3]'
COPY --chown=cpo:cpo . .
RUN pip install --no-deps -e .
USER cpo
CMD ["python", "-m", "trainer.run", "--help"]
