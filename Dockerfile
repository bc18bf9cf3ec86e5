# docker build -t beit .
# docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD":/work beit pretrain photos/ --recipe small
# On a CPU leave out `--gpus all`. torch's wheel brings CUDA; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim

# torch.compile builds its kernels with a C++ compiler
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /src/
COPY beitcli /src/beitcli
RUN pip install --no-cache-dir '/src[hub,heic,detect,tensorboard]' && rm -r /src

# any user may write there: downloads, lists of files, compiled kernels
ENV HOME=/home/beit BEIT_CACHE_DIR=/home/beit/cache
RUN mkdir -p /home/beit/cache && chmod -R 777 /home/beit

WORKDIR /work
ENTRYPOINT ["beit"]
CMD ["--help"]
