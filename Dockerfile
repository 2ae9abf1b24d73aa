# One image for the API, the workers and `everbatch setup`; the command chooses:
#   docker build -t everbatch .

FROM python:3.11-slim-bookworm AS build
RUN pip install --no-cache-dir --root-user-action=ignore uv==0.13.9
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN uv venv /opt/everbatch
WORKDIR /src
# What Everbatch needs at run time, in the versions and with the hashes of the lock; this layer stays while they do.
# Traces too: nothing can be added to a container that cannot write.
COPY pyproject.toml requirements.lock ./
RUN uv pip install --python /opt/everbatch --require-hashes \
    --constraints requirements.lock --requirements pyproject.toml --extra otel
COPY everbatch.py README.md LICENSE ./
COPY workflows ./workflows
COPY activities ./activities
COPY api ./api
RUN uv build --wheel --require-hashes --build-constraints requirements.lock --out-dir /dist \
    && uv pip install --python /opt/everbatch --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
# The upstream's certificate is checked against the system's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin everbatch \
    # A volume that is mounted here belongs to this user from its first use on.
    && install --directory --owner everbatch --group everbatch --mode 0700 /var/lib/everbatch
COPY --from=build /opt/everbatch /opt/everbatch
ENV PATH=/opt/everbatch/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/everbatch
USER 10001:10001
ENTRYPOINT ["everbatch"]
CMD ["--help"]
