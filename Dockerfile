# step-cli's core for CI: verify-nm, prune and export of safetensors and ONNX files.
# torch is not in it. docs/ci.md shows how to use it.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY sample_models sample_models
COPY step_cli step_cli
RUN python -m venv /opt/step-cli \
    && /opt/step-cli/bin/pip install --no-cache-dir --constraint constraints.txt . \
    && /opt/step-cli/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim
COPY --from=build /opt/step-cli /opt/step-cli
ENV PATH=/opt/step-cli/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /models
ENTRYPOINT ["step-cli"]
CMD ["--help"]
