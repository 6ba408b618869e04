# Weft. `make help` lists what there is.
SHELL   := /bin/bash
GO      ?= go
# The release that this tree is or becomes. Only Chart.yaml has it; `make manifest VERSION=v1.2.3` changes it.
RELEASE := $(shell sed -n 's/^appVersion: //p' site/deploy/chart/Chart.yaml)
# VERSION as the user of make has set it, or empty. If empty, programs have the commit's tag, or else the release and the commit.
GIVEN   := $(VERSION)
VERSION ?= $(shell prog/image/version.sh)
FLAGS   := -trimpath -ldflags '-s -w -X weft/prog/cli.Version=$(VERSION)'
# The image's name is the one in site/deploy/weft.yaml, so that the manifest fits each build. An IMAGE without a tag
# gets the release as its tag. REVISION and SOURCE_DATE_EPOCH are the commit and its time.
IMAGE    ?= localhost/weft
TAGGED   := $(IMAGE)$(if $(findstring :,$(lastword $(subst /, ,$(IMAGE)))),,:$(or $(GIVEN),$(RELEASE)))
REVISION ?= $(shell git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.DEFAULT_GOAL := help
.PHONY: help build image manifest demo test test-unit lint race race-lab check soak bench test-kernel fuzz clean kube-build kube-up kube-down test-kube kube-shell conformance density

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## static binaries into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build $(FLAGS) -o bin/ ./cmd/weft ./cmd/weft-cni

image: ## the container image for amd64 and arm64, an OCI archive: bin/weft-image.tar; beside it a list of its parts (SBOM)
	@prog/image/build.sh $(FLAGS) -- -name '$(TAGGED)' -version '$(VERSION)' -revision '$(REVISION)' -created '$(SOURCE_DATE_EPOCH)'

manifest: ## site/deploy/weft.yaml, the chart with its default values, and site/deploy/uninstall.yaml (VERSION=v1.2.3: changes the release)
	$(GO) run ./prog/image/manifest $(if $(GIVEN),-version '$(GIVEN)') site/deploy

demo: build ## three hosts on this machine: what Weft does, in under a minute (KEEP=1 leaves them running)
	@bin/weft lab demo

# A lab runs the built programs, and go test does not notice when they change: -count=1 ignores cached results.
# Lab tests count every packet: -p 1 runs one package at a time. Tests that mostly wait run last, and three at once.
test: build test-unit ## all tests
	$(GO) test -count=1 -p 1 -parallel 3 -timeout=40m ./prog/lab/...
	@prog/lab/uml/test-kernel.sh

# All packages but those with hosts.
UNITS = $(filter-out weft/prog/lab%,$(shell $(GO) list ./...))

test-unit: ## the tests that need no lab: under 2 minutes
	$(GO) test $(UNITS)

# The linters are built from a module of their own: a minute the first time.
LINT = $(GO) tool -modfile=prog/tools/go.mod golangci-lint
lint: ## format, vet, staticcheck and the other linters of .golangci.yml
	$(LINT) fmt --diff
	$(LINT) run

race: ## the tests that need no lab, with the race detector
	@prog/tools/race.sh units

# The agents, too, are built with the race detector, and each race fails the test. Tests of 20 hosts with limits of time
# are left out: on a small machine, such agents are too slow for them.
RACES = Agents|CNI|HundredContainers|PolicyRaces|PolicyComesBack|StopKeepsTunnels|TargetsPersist|Reboot|TestAttach|Garbage|Restored|TestNodes|Secret
race-lab: ## tests of hosts whose agents have the race detector: 7 minutes (RUN=regular expression of other tests)
	LAB_RACE=1 $(GO) test -count=1 -p 1 -timeout=40m -run '$(or $(RUN),$(RACES))' ./prog/lab/e2e ./prog/lab/incluster

check: export STARTS ?= 200
check: lint race ## lint, and all tests with the race detector; the agent starts STARTS times (default 200)
	@prog/tools/race.sh labs

soak: ## 10,000 random histories of whole clusters (SOAK=n histories, SEED=n replays one): no address is handed out twice; then policies on 5 million packets (PACKETS=n)
	SOAK=$(or $(SOAK),10000) $(GO) test -count=1 -timeout=0 -v -run TestSoak ./prog/soak
	SOAK=$(or $(PACKETS),5000000) $(GO) test -count=1 -timeout=0 -v -run TestPolicyEvaluationsAgree ./router/nft

test-kernel: ## the two-host test on the kernel's own WireGuard, in user-mode Linux
	@prog/lab/uml/test-kernel.sh

bench: build ## the benchmarks behind site/docs/benchmarks.md
	$(GO) run ./prog/lab/bench

fuzz: ## every decoder of untrusted bytes, 20 s each
	@prog/tools/fuzz.sh

kube-build: ## build what a Kubernetes on this machine needs, in ~/.cache/weft: 15 minutes the first time
	@prog/lab/kube/build.sh
	@prog/lab/kube/images.sh >/dev/null

kube-up: build image ## start a Kubernetes of NODES nodes on this machine (CNI=weft, none or bridge, PROXY_MODE=nftables or iptables)
	@prog/lab/kube/cluster.sh up

kube-down: ## end that Kubernetes and remove all of it
	@prog/lab/kube/cluster.sh down

test-kube: build image ## Weft on a real Kubernetes of three nodes on this machine (KEEP=1 leaves it up)
	@prog/lab/kube/test.sh

kube-shell: ## a shell with kubectl for that Kubernetes
	@prog/lab/kube/cluster.sh shell

density: build image ## start 100 pods at once on one node, with Weft and with the CNI reference plugins; then replace pods for CHURN seconds (PODS=n)
	@prog/lab/kube/density.sh

conformance: ## run Kubernetes' own e2e specs on that Kubernetes (SET=conformance, netpol or further; or FOCUS, SKIP: regular expressions); log and report: bin/conformance
	@prog/lab/kube/conformance.sh

clean: ## remove what was built
	rm -rf bin
