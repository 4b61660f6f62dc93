# mlm-serve in a container; docs/serving.md shows how to run it.

# The tag gets security updates. For the same image each time: --build-arg PYTHON=3.13-slim-trixie@sha256:...
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /source
COPY . .
# Only the environment gets into the image below: no sources, no wheel, no cache, no pip of its own.
RUN python -m venv --without-pip /opt/mlm-infer \
    && pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
    && pip --python /opt/mlm-infer/bin/python install --no-cache-dir --constraint constraints-optimum.txt \
        "$(echo /wheel/*.whl)[cpu,serve]"

FROM python:${PYTHON}
COPY --from=build /opt/mlm-infer /opt/mlm-infer
ENV PATH=/opt/mlm-infer/bin:$PATH
# nobody, as a number: Kubernetes cannot tell from a name that it is not root.
USER 65534:65534
EXPOSE 8000
HEALTHCHECK --start-period=60s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Not through a shell, which would keep SIGTERM from the server.
ENTRYPOINT ["mlm-serve", "--host", "0.0.0.0", "--port", "8000"]
