# The answering wing alone: no torch, no graph library.
#     docker build -t limbeck .
#     docker run --rm -p 8080:8080 -v "$PWD/cora-student:/bundles/cora:ro" -v limbeck:/overlays \
#         -e LIMBECK_TOKEN limbeck /bundles/cora
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve]' \
    && rm -rf /src \
    && useradd --system --create-home limbeck \
    && install -d -o limbeck /overlays

USER limbeck
WORKDIR /home/limbeck
# one thread for each worker: more of them fight for the same cores
ENV OMP_NUM_THREADS=1
EXPOSE 8080
VOLUME /overlays
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=2)"]
ENTRYPOINT ["limbeck", "serve", "--host", "0.0.0.0", "--overlay", "/overlays"]
