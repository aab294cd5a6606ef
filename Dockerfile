# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -tags grpcnotrace -ldflags "-s -w -X main.version=$VERSION" -o /out/fairlead ./cmd/fairlead

# No shell, no libc: the binary, and the public roots for TLS to outside hosts.
FROM scratch
LABEL org.opencontainers.image.title="fairlead" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/fairlead-mesh/fairlead"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/fairlead /fairlead
USER 1337:1337
# HBONE, metrics, readiness, Prometheus.
EXPOSE 15008 15020 15021 15090
ENTRYPOINT ["/fairlead"]
