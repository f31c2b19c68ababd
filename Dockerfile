# The service as an image, for processors without a GPU:  docker build -t cifar-nb:serve .
# With --build-arg VARIANT=full it can also train, track and export.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS libraries
ARG VARIANT=serve
# PyTorch without CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What the command line needs for training, but never the service
ARG UNUSED="torchvision torchmetrics matplotlib fonttools kiwisolver sympy mpmath networkx"
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /src
# Only what names the libraries, so that a change of our own code does not install them again
COPY settings.ini setup.py pyproject.toml README.md LICENSE ./
# hadolint ignore=DL3013
RUN case "$VARIANT" in serve) more= ;; full) more="[export,mlops,trust,heif]" ;; *) exit 2 ;; esac \
 && pip install --extra-index-url "$TORCH_INDEX" ".$more" ${more:+"psycopg[binary]>=3.2,<4"} \
 && pip uninstall --yes cifar_nb
# 190 MB are PyTorch's own tests, and its headers; 90 MB are names for debuggers
# hadolint ignore=DL3008,DL3009
RUN if [ "$VARIANT" = serve ]; then \
      apt-get update && apt-get install --yes --no-install-recommends binutils \
   && pip uninstall --yes $UNUSED && torch=$(echo /opt/venv/lib/python3*/site-packages/torch) \
   && rm -r "$torch/include" "$torch/test" "$torch"/bin/test_* "$torch"/bin/protoc* \
   && strip --strip-unneeded "$torch/lib/libtorch_cpu.so"; fi

FROM libraries AS package
COPY cifar_nb cifar_nb
RUN pip install --no-deps --prefix /opt/package .

FROM python:${PYTHON}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="cifar_nb" \
      org.opencontainers.image.description="Small image classifiers as a service" \
      org.opencontainers.image.source="https://github.com/cifar-nb/cifar_nb" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin cifar_nb \
 && mkdir /cache /models && chown cifar_nb /cache
COPY --from=libraries /opt/venv /opt/venv
COPY --from=package /opt/package /opt/venv
# Only /cache and /tmp are written to: the root file system may be read-only
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 \
    CIFAR_NB_HOST=0.0.0.0 CIFAR_NB_PORT=8000 CIFAR_NB_DATA_DIR=/cache CIFAR_NB_MODELS_DIR=/models
USER 10001:10001
WORKDIR /tmp
# The libraries that are left are enough
RUN cifar-nb samples check && cifar-nb predict check/frog.jpg && rm -r check
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", \
  "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["cifar-nb", "serve"]
