# Two images. The serving one, the last stage, has the base package: no torch, pandas or evidently.
#
#     docker build -t perennial .
#     docker run -p 3000:3000 -v perennial:/var/lib/perennial perennial
#
# And the watcher's, which checks, retrains and trains, on processors:
#
#     docker build --target watcher -t perennial-watcher .
#     docker run -v perennial:/var/lib/perennial -v /my/images:/data:ro perennial-watcher perennial train /data
#     docker run -v perennial:/var/lib/perennial -v /my/images:/data:ro perennial-watcher
#
# Past one machine: --build-arg EXTRAS='[postgres,s3]' and --build-arg WATCHER_EXTRAS='[monitor,train,postgres,s3]', then
# PERENNIAL_DATABASE_URL and PERENNIAL_STORAGE_URL. compose.yaml has both, with PostgreSQL, Prometheus and Grafana.
FROM python:3.11-slim AS source
WORKDIR /source
RUN python -m venv /opt/perennial
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY perennial/ perennial/
COPY service/ service/
COPY commands/ commands/

FROM source AS build
ARG EXTRAS=""
RUN /opt/perennial/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"

FROM source AS build-watcher
ARG WATCHER_EXTRAS="[monitor,train]"
# torch for processors alone: the one of PyPI brings gigabytes for NVIDIA GPUs. Empty takes that one.
ARG TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"
COPY training/ training/
COPY monitoring/ monitoring/
RUN /opt/perennial/bin/pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX} ".${WATCHER_EXTRAS}"

# Both run as the same user, so that they can share a volume.
FROM python:3.11-slim AS runtime
RUN useradd --system --create-home --home-dir /var/lib/perennial --shell /usr/sbin/nologin perennial
# BENTOML_CONTAINERIZED stays unset: with it, BentoML does not start a worker again that died.
ENV PATH=/opt/perennial/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PERENNIAL_HOME=/var/lib/perennial \
    BENTOML_HOME=/var/lib/perennial/bentoml \
    BENTOML_DO_NOT_TRACK=True
WORKDIR /var/lib/perennial
VOLUME /var/lib/perennial

FROM runtime AS watcher
COPY --from=build-watcher /opt/perennial /opt/perennial
ENV PERENNIAL_MONITOR__HOST=0.0.0.0 \
    PERENNIAL_MONITOR__PORT=3001
USER perennial
EXPOSE 3001
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PERENNIAL_MONITOR__PORT'] + '/metrics', timeout=9)"]
CMD ["perennial", "watch"]

FROM runtime
COPY --from=build /opt/perennial /opt/perennial
ENV PERENNIAL_SERVE__HOST=0.0.0.0 \
    PERENNIAL_SERVE__PORT=3000
USER perennial
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PERENNIAL_SERVE__PORT'] + '/livez', timeout=4)"]
CMD ["perennial", "serve"]
