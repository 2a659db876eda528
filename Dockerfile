# syntax=docker/dockerfile:1
# One binary on a base without shell or package manager. Runs as a user without rights and writes nothing:
# docker run --read-only --cap-drop=ALL -e DATABASE_URL=… pgoutbox run

# The image brings the C compiler that `ring` needs; librdkafka is built with make and a compiler for C++, too.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin pgoutbox \
 && cp target/release/pgoutbox /pgoutbox

# glibc, the system's certificate authorities, a user `nonroot` (65532), and nothing else
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /pgoutbox /usr/local/bin/pgoutbox
USER 65532:65532
# The operator's door stays on the container's loopback unless PGOUTBOX__HTTP__LISTEN and PGOUTBOX__HTTP__TOKEN open it.
EXPOSE 7411
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/pgoutbox"]
CMD ["run"]
