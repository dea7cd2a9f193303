# Everything a developer or a user of a fresh machine runs.
#
#   make demo         the whole path, from kubectl apply to curl, on a cluster of its own
#   make demo-down    end that cluster
#   make test         all tests: lint, unit, netns, e2e
#   make bench        measure, and print one table
#
# CLUSTER=kind runs demo, e2e and bench on kind instead of the local cluster.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CLUSTER ?= local
export CLUSTER
cluster := e2e/cluster/cluster.sh
# Two for the pods of one gateway, and one that stays when either of them dies.
nodes := 3
host := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
runner := CARGO_TARGET_$(shell echo $(host) | tr a-z- A-Z_)_RUNNER
locked := $(if $(CI),--locked)
# Crates of decisions only: no client of Kubernetes, no asynchronous IO.
pure := lb-svc-core
static := RUSTFLAGS='-C target-feature=+crt-static'
cache := $(or $(LB_SVC_CACHE),$(HOME)/.cache/lb-svc)
deny_version := 0.20.2
deny := $(cache)/cargo-deny-$(deny_version)/bin/cargo-deny

.PHONY: help demo demo-down test unit netns e2e bench images crds lint deps cluster-up cluster-down

help:
	@sed -n '3,9s/^# *//p' Makefile

## The main job.

demo: images
	@e2e/demo.sh

demo-down: cluster-down

## Tests, the fast ones first.

test: deps lint unit netns e2e

lint: $(deny)
	cargo fmt --all --check
	cargo clippy $(locked) --workspace --all-targets --all-features -- $(if $(CI),-D warnings)
	@for crate in $(pure); do \
	  tree=$$(cargo tree $(locked) -p $$crate -e normal --prefix none); \
	  if grep -E '^(kube|k8s-openapi|tokio)' <<< "$$tree"; then echo "$$crate must not depend on these"; exit 1; fi; \
	done
	$(deny) --log-level error check bans licenses sources

unit:
	cargo test $(locked) --workspace --all-features --lib --bins
	cargo test $(locked) -p lb-svc-crds --all-features --test golden --test wire
	cargo test $(locked) -p lb-svc-controller --test conversation --test documented --test faults

netns: deps
	@cargo test $(locked) -p lb-svc-gateway --test netns --test direct --test failover --no-run
	$(runner)='unshare --net --mount' cargo test $(locked) -p lb-svc-gateway --test netns --test direct --test failover
	LB_SVC_NAT_BACKEND=nftables $(runner)='unshare --net --mount' cargo test $(locked) -p lb-svc-gateway --test netns --test direct

# Built here, run as a host outside the cluster: the fresh cluster's first
# address is what the first test is about.
e2e: images
	@$(cluster) down
	@NODES=$(nodes) $(cluster) up
	@e2e/install.sh
	@cargo test $(locked) -p lb-svc-e2e --no-run
	@e2e/run.sh

bench: images
	@NODES=$(nodes) $(cluster) up
	@e2e/install.sh
	@e2e/bench.sh

## What they need.

deps:
	@$(cluster) deps

# Built once, like the cluster; the result appears complete or not at all.
$(deny):
	@echo "building cargo-deny $(deny_version) (about 3 minutes, once)"
	@cargo install -q cargo-deny --version $(deny_version) --locked --root $(dir $(@D)).building
	@rm -rf $(dir $(@D))bin; mv $(dir $(@D)).building/bin $(dir $(@D))bin

cluster-up: deps
	@$(cluster) build
	@$(cluster) up

cluster-down:
	@$(cluster) down

images: deps
	@$(cluster) build
	@$(static) cargo build $(locked) --release --target $(host) --bin lb-svc-controller --bin lb-svc-backend
	@$(static) cargo build $(locked) --profile gateway --target $(host) --bin lb-svc-gateway
	@e2e/images.sh target/$(host)/release target/$(host)/gateway

crds:
	@for kind in subnets ips; do \
	  cargo run -q $(locked) -p lb-svc-crds --features crdgen --bin crdgen $$kind > crds/yaml/$$kind.yaml.tmp; \
	  mv crds/yaml/$$kind.yaml.tmp crds/yaml/$$kind.yaml; \
	done
