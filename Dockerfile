# The command wsram with all extras, on a CPU or on NVIDIA GPUs.
#
#   docker build -t wsram .
#   docker run --rm -v "$PWD":/workspace wsram train digits --out runs/a
#
#   docker build -t wsram:cuda --build-arg TORCH=cu130 .
#   docker run --rm --gpus all -v "$PWD":/workspace wsram:cuda train digits --device cuda --out runs/a
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# A folder of https://download.pytorch.org/whl: cpu, or a version of CUDA that the driver supports.
ARG TORCH=cpu
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/${TORCH}

# A compiler for training.compile.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/wsram_ppl
RUN pip install --no-cache-dir '/opt/wsram_ppl[cli,captions,mnist]'

WORKDIR /workspace
ENTRYPOINT ["wsram"]
CMD ["--help"]
