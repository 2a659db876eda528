# syntax=docker/dockerfile:1
# One binary on an image without shell or package manager. Runs as an unprivileged user and writes nothing:
# docker run --read-only --cap-drop=ALL -e DATABASE_URL=… pgoutbox run

# The image has the C compiler that `ring` needs; librdkafka also needs make, a C++ compiler and OpenSSL.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libssl-dev make pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin pgoutbox \
 && cp target/release/pgoutbox /pgoutbox

# glibc, OpenSSL, the system's certificate authorities, a user `nonroot` (65532), and nothing else
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /pgoutbox /usr/local/bin/pgoutbox
USER 65532:65532
# HTTP listens only on the container's loopback, unless PGOUTBOX__HTTP__LISTEN and PGOUTBOX__HTTP__TOKEN are set, or, for
# probes alone, PGOUTBOX__HTTP__PROBES=0.0.0.0:7413.
EXPOSE 7411 7413
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/pgoutbox"]
CMD ["run"]
