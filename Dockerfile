# The serving image: the base package, without torch, pandas and evidently.
#
#     docker build -t perennial .
#     docker run -p 3000:3000 -v perennial:/var/lib/perennial perennial
#
# Past one machine: --build-arg EXTRAS='[postgres,s3]', then PERENNIAL_DATABASE_URL and PERENNIAL_STORAGE_URL.
FROM python:3.11-slim AS build
ARG EXTRAS=""
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY perennial/ perennial/
COPY service/ service/
COPY commands/ commands/
RUN python -m venv /opt/perennial \
    && /opt/perennial/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"

FROM python:3.11-slim
RUN useradd --system --create-home --home-dir /var/lib/perennial --shell /usr/sbin/nologin perennial
COPY --from=build /opt/perennial /opt/perennial
# BENTOML_CONTAINERIZED stays unset: with it, BentoML does not start a worker again that died.
ENV PATH=/opt/perennial/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PERENNIAL_HOME=/var/lib/perennial \
    PERENNIAL_SERVE__HOST=0.0.0.0 \
    PERENNIAL_SERVE__PORT=3000 \
    BENTOML_HOME=/var/lib/perennial/bentoml \
    BENTOML_DO_NOT_TRACK=True
USER perennial
WORKDIR /var/lib/perennial
VOLUME /var/lib/perennial
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PERENNIAL_SERVE__PORT'] + '/livez', timeout=4)"]
CMD ["perennial", "serve"]
