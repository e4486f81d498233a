# Everything a developer does here. `make` alone lists the targets.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The parts of `make test` come in their order.
.NOTPARALLEL:

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME  ?= 10s
SOAKTIME  ?= 600
BENCHTIME ?= 1s
BENCH     ?= .
PKG       ?= ./...
# Without Google's gRPC modules, which the JSON API does not need: the agent
# starts in half the time.
TAGS      := disable_grpc_modules
RUN       ?=

# The linter and the formatter are used at pinned versions, from a cache folder.
tools = dir=$$(testing/install/tools.sh); export PATH="$$dir:$$PATH"
# Go's files, without those that belong to no package.
gofiles = find . -name '*.go' -not -path './bin/*' -not -path './.git/*' -print0

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: go-present
go-present:
	@command -v go >/dev/null || { echo "Go is needed: install the version named in go.mod" >&2; exit 1; }

.PHONY: build
build: go-present ## Build bin/agent
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/agent ./cmd/agent

.PHONY: demo
demo: build ## Show backup and recovery on a throw-away server
	testing/install/postgres.sh
	testing/demo/demo.sh

.PHONY: install
install: go-present ## Install the servers and tools that the tests need
	testing/install/postgres.sh all
	testing/install/tools.sh >/dev/null
	testing/install/stores.sh

.PHONY: test
test: install fmt-check vet lint ## Check and test everything, with real servers
	go test -tags $(TAGS) -p 2 -timeout 20m -count=1 ./...

.PHONY: test-unit
test-unit: go-present ## Test without servers: the short loop (PKG=./..., RUN=pattern)
	go test -tags $(TAGS) -timeout 5m $(if $(RUN),-run '$(RUN)') $$(go list $(PKG) | grep -v '^agent/testing')

.PHONY: test-race
test-race: go-present ## The unit tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -tags $(TAGS) -race -timeout 20m $$(go list $(PKG) | grep -v '^agent/testing')

.PHONY: vet
vet: go-present
	go vet -tags $(TAGS) ./...

.PHONY: lint
lint: go-present ## Run the linters of .golangci.yml
	@$(tools); golangci-lint run --allow-parallel-runners ./...
	@! grep -rn --include='*.go' '//\s*nolint' . || { echo "the linters are not to be silenced" >&2; exit 1; }

.PHONY: fmt
fmt: go-present ## Format the source
	@$(tools); $(gofiles) | xargs -0 gofumpt -w

.PHONY: fmt-check
fmt-check: go-present
	@$(tools); bad=$$($(gofiles) | xargs -0 gofumpt -l); \
	if [ -n "$$bad" ]; then echo "not formatted, run make fmt:"; echo "$$bad"; exit 1; fi

.PHONY: bench
bench: build ## Measure against the usual tools, side by side (RUN=pattern, BENCH_SCALE=140)
	testing/install/postgres.sh bench
	go test -tags bench,$(TAGS) -count=1 -v -timeout 0 $(if $(RUN),-run '$(RUN)') ./testing/bench

.PHONY: bench-go
bench-go: go-present ## Run the Go benchmarks of the packages (BENCH=pattern, BENCHTIME=1s)
	go test -tags $(TAGS) -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -timeout 0 $(PKG)

.PHONY: fuzz
fuzz: go-present ## Run every fuzz target for FUZZTIME (10s), RUN=pattern for some
	@targets=$$(go test -tags $(TAGS) -list '^Fuzz.*$(RUN)' $(PKG) | \
	awk '/^Fuzz/ { names[++n] = $$1 } $$1 == "ok" { for (i = 1; i <= n; i++) print $$2, names[i]; n = 0 }'); \
	if [ -z "$$targets" ]; then echo "no fuzz target fits" >&2; exit 1; fi; \
	while read -r pkg name; do \
		echo "$$pkg $$name"; \
		go test -tags $(TAGS) -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
	done <<<"$$targets"

.PHONY: fixture
fixture: go-present ## Write a repository of a new format into testing/format/testdata
	testing/install/postgres.sh all
	go test -tags $(TAGS) -count=1 -run '^TestMakeFixture$$' ./testing/format -update

.PHONY: soak
soak: go-present ## Repeat the tests with servers for SOAKTIME seconds (600), until one fails
	testing/install/postgres.sh all
	testing/install/stores.sh
	@round=0; while [ $$SECONDS -lt $(SOAKTIME) ]; do \
		round=$$((round + 1)); echo "round $$round"; \
		go test -tags $(TAGS) -p 2 -timeout 20m -count=1 -shuffle=on $(if $(RUN),-run '$(RUN)') ./testing/...; \
	done

.PHONY: clean
clean: ## Remove what was built; the cache of servers and tools stays
	rm -rf bin
