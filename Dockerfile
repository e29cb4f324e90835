# One image for all machines of a cluster: Ray's head, CPU workers, GPU workers, and whoever submits jobs.
#
#   docker build --tag conservator:cuda .
#   docker build --tag conservator:cpu --build-arg TORCH_INDEX=ADDRESS .     ADDRESS: PyTorch's index of CPU wheels
#
# Weights of the shipped model and the text encoder are inside: a cluster needs no internet.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ARG EXTRAS="s3,iceberg,delta,submit"
RUN python -m venv /opt/conservator
ENV PATH=/opt/conservator/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# torch first: the build that is wanted then satisfies whatever else asks for torch
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
# libgomp1 for torch and scikit-image; wget for the probes of KubeRay; procps for Ray's own look at its processes
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 wget procps \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray
COPY --from=build /opt/conservator /opt/conservator
ENV PATH=/opt/conservator/bin:$PATH PYTHONUNBUFFERED=1
USER ray
WORKDIR /home/ray
CMD ["conservator", "--help"]
