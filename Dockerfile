# docker build -t alexnet_dist:0.1.0 .
# docker run --rm --init --gpus all --ipc=host -v $PWD/data:/data:ro -v $PWD/runs:/runs alexnet_dist:0.1.0 \
#     launch train --config imagenet_subset --data.root /data --output_dir /runs/imagenet_subset
#
# --ipc=host, or --shm-size=16g: decoding processes hand over batches in /dev/shm, of which a container has 64 MB. The
# program runs as user 1000, who needs to write the run folder. requirements.lock says how it was made.

# The layers that change least come first: the packages are a layer of some gigabytes, the program one of a megabyte.
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY alexnet_dist alexnet_dist
COPY configs configs
COPY launch launch
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# Triton builds its kernels with a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home alexnet
RUN --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    pip install --no-cache-dir --no-compile --no-deps --require-hashes -r /requirements.lock
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl
USER 1000:1000
WORKDIR /home/alexnet
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["alexnet-dist"]
CMD ["--help"]
