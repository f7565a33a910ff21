# A served ranker on the CPU: docker build -t r1ranker . && docker run -p 8000:8000 -v $PWD/checkpoints:/models r1ranker /models/.../actor
# On GPUs: docker build --build-arg EXTRA=gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 ., and docker run --gpus all
FROM python:3.11-slim
ARG EXTRA=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# vLLM compiles kernels as it starts
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY r1ranker r1ranker
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --no-cache-dir ".[$EXTRA,serve,replicas]" \
    && if [ "$EXTRA" = cpu ]; then pip uninstall --yes torchvision torchaudio torchcodec; fi
RUN useradd --create-home ranker
USER ranker
EXPOSE 8000
HEALTHCHECK --start-period=180s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"
ENTRYPOINT ["r1ranker", "serve", "--host", "0.0.0.0", "--port", "8000"]
