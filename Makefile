# Weft. `make help` lists what there is.
SHELL   := /bin/bash
GO      ?= go
# The release that this tree is, or becomes: it is written there only, and `make manifest VERSION=v1.2.3` writes it anew.
RELEASE := $(shell sed -n 's/^appVersion: //p' site/deploy/chart/Chart.yaml)
# What somebody has set, if anybody has. Else programs say which commit they are of, unless that one is tagged.
GIVEN   := $(VERSION)
VERSION ?= $(shell prog/image/version.sh)
FLAGS   := -trimpath -ldflags '-s -w -X weft/prog/cli.Version=$(VERSION)'
# The image: its name, which is the one in site/deploy/weft.yaml, and does not change with each commit; without a tag it gets
# that one's. The commit and the time of the sources.
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

image: ## the container image, bin/weft-image.tar: an OCI archive for amd64 and arm64, beside it what it is made of
	@prog/image/build.sh $(FLAGS) -- -name '$(TAGGED)' -version '$(VERSION)' -revision '$(REVISION)' -created '$(SOURCE_DATE_EPOCH)'

manifest: ## site/deploy/weft.yaml, the chart with its default values, and site/deploy/uninstall.yaml (VERSION=v1.2.3: of that release, from now on)
	$(GO) run ./prog/image/manifest $(if $(GIVEN),-version '$(GIVEN)') site/deploy

demo: build ## three hosts on this machine: what Weft does, in under a minute (KEEP=1 leaves them running)
	@bin/weft lab demo

# go test does not see that the programs which a lab runs have changed: no cached result counts there.
# Those tests count every packet, so each package has the machine to itself.
test: build test-unit ## all tests
	$(GO) test -count=1 -p 1 -timeout=40m ./prog/lab/...
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

# The programs themselves have it, also as agents that nobody watches: each race fails its test. Some tests of 20 hosts
# have limits of time that such programs do not keep on a small machine: they are not among these.
RACES = Agents|CNI|HundredContainers|PolicyRaces|PolicyComesBack|StopAndReset|TargetsAndPartition|Reboot|TestAttach|Garbage|Restored|TestNodes|Secret
race-lab: ## hosts whose programs have the race detector: 7 minutes (RUN=regular expression of other tests)
	LAB_RACE=1 $(GO) test -count=1 -p 1 -timeout=40m -run '$(or $(RUN),$(RACES))' ./prog/lab/e2e ./prog/lab/incluster

check: export STARTS ?= 200
check: lint race ## lint, and all tests with the race detector; the agent starts STARTS times (default 200)
	@prog/tools/race.sh labs

soak: ## 10,000 random histories of whole clusters: no address is handed out twice (SOAK=n for as many, SEED=n replays one); then policies on 5 million packets (PACKETS=n)
	SOAK=$(or $(SOAK),10000) $(GO) test -count=1 -timeout=0 -v -run TestSoak ./prog/soak
	SOAK=$(or $(PACKETS),5000000) $(GO) test -count=1 -timeout=0 -v -run TestPolicyEvaluationsAgree ./router/nft

test-kernel: ## the two-host test on the kernel's own WireGuard, in user-mode Linux
	@prog/lab/uml/test-kernel.sh

bench: build ## the benchmarks behind site/docs/benchmarks.md
	$(GO) run ./prog/lab/bench

fuzz: ## every decoder of untrusted bytes, 20 s each
	@prog/tools/fuzz.sh

kube-build: ## what a real Kubernetes on this machine needs, kept in ~/.cache/weft: 15 minutes the first time
	@prog/lab/kube/build.sh
	@prog/lab/kube/images.sh >/dev/null

kube-up: build image ## a Kubernetes of NODES nodes on this machine (CNI=weft, none or bridge, PROXY_MODE=nftables or iptables)
	@prog/lab/kube/cluster.sh up

kube-down: ## end it; nothing is left of it
	@prog/lab/kube/cluster.sh down

test-kube: build image ## Weft on a real Kubernetes of three nodes on this machine (KEEP=1 leaves it up)
	@prog/lab/kube/test.sh

kube-shell: ## a shell with kubectl for it
	@prog/lab/kube/cluster.sh shell

density: build image ## 100 pods at once on one node, next to the reference plugins; then pods that come and go (PODS, CHURN=seconds)
	@prog/lab/kube/density.sh

conformance: ## upstream's specs on it (SET=conformance, netpol or further; or FOCUS, SKIP: regular expressions); log and report stay in bin/conformance
	@prog/lab/kube/conformance.sh

clean: ## remove what was built
	rm -rf bin
