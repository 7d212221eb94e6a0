# Control plane, runner and workers. Small, not root; the hot paths are compiled, and the compiler stays behind. The workbench (ops/local, ops/bench: embedded
# servers, sample data, measurements) is not in it: .dockerignore does not send it, and crm-replay does without.
FROM python:3.11-slim AS build
WORKDIR /build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/crm-replay
COPY requirements.runtime.lock ./
RUN /opt/crm-replay/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.runtime.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY schemas schemas
COPY producer producer
COPY processors processors
COPY sink sink
COPY ops ops
RUN /opt/crm-replay/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
 && cd / && /opt/crm-replay/bin/python -c 'from schemas import compiled; assert compiled.hot_paths() == compiled.COMPILED, compiled.hot_paths()' \
 && /opt/crm-replay/bin/python -m compileall -q /opt/crm-replay/lib

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/crm-replay --create-home crm-replay
COPY --from=build /opt/crm-replay /opt/crm-replay
ENV PATH=/opt/crm-replay/bin:$PATH \
    CRM_REPLAY_HOME=/var/lib/crm-replay \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/crm-replay
VOLUME /var/lib/crm-replay
ENTRYPOINT ["crm-replay"]
CMD ["--help"]
