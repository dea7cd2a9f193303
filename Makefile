# Everything that a developer, or a user of a fresh machine, runs.
#
#   make demo                 from kubectl apply to curl, on a cluster of its own
#   make demo-down            end that cluster, and leave nothing behind
#   make test                 all rings of tests, with a table of their times
#   make lint                 one ring: formatting, clippy, shellcheck, licences
#   make unit [TEST=name]     one ring: unit tests, recorded conversations, the chart
#   make netns [SUITE=endpoints] [TEST=name]
#                             one ring: the gateway in network namespaces
#   make e2e                  one ring: end to end, on a cluster made anew
#   make e2e SUITE=failover [TEST=name]
#                             one suite or test, on the cluster that is up
#   make kind-image           make a node image for kind where no registry has one
#   make kind-test            e2e and demo on kind
#   make cluster-up           bring a cluster for the end-to-end tests up
#   make images               the two images, as archives in target/images
#   make plugin               kubectl lb-svc, as a static program and an archive
#                             for krew in target/
#   make crds                 write crds/yaml, and the chart's copy, from the types in crds/
#   make chart [TEST=name]    of unit: the Helm chart, its alerts and its dashboard
#   make monitoring           write manifests/monitoring from the chart
#   make fuzz TARGET=name [SECONDS=60]
#                             look for input that breaks a reader; without TARGET
#                             all of them in turn
#   make bench                measure, and print one table (about two hours)
#
# TEST selects the tests whose names contain it, SUITE a file of tests. All but
# lint, unit, plugin, chart, fuzz, crds and monitoring take root.
# CLUSTER=kind runs demo, e2e and bench on kind instead of the local cluster.
# docs/dev/testing.md has more.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CLUSTER ?= local
SUITE ?=
TEST ?=
export CLUSTER
cluster := e2e/cluster/cluster.sh
on_kind := CLUSTER=kind $(cluster)
# Two for the pods of one gateway, and one that stays when either of them dies.
nodes := 3
host := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
runner := CARGO_TARGET_$(shell echo $(host) | tr a-z- A-Z_)_RUNNER
arch := $(subst aarch64,arm64,$(subst x86_64,amd64,$(firstword $(subst -, ,$(host)))))
archive := kubectl-lb_svc-linux-$(arch).tar.gz
locked := $(if $(CI),--locked)
# Crates of decisions only: no client of Kubernetes, no asynchronous IO.
pure := lb-svc-core lb-svc-election
# Whatever is tested, all crates are built with the features that all of them ask for: with
# those of one alone its dependencies would be built once more. So each file of tests has a
# name of its own in the workspace.
tests := cargo test $(locked) --workspace --all-features
unit_suites := conversation decisions documented earlier_releases golden hostile inputs known_faults screens sim \
  two_controllers wire
static := RUSTFLAGS='-C target-feature=+crt-static'
cache := $(or $(LB_SVC_CACHE),$(HOME)/.cache/lb-svc)
deny_version := 0.20.2
deny := $(cache)/cargo-deny-$(deny_version)/bin/cargo-deny
scripts = .ci/run $(shell find . -path ./target -prune -o -name '*.sh' -print)

.PHONY: help demo demo-down test lint unit netns e2e kind kind-image kind-test fuzz bench images plugin crds chart \
  monitoring deps cluster-up cluster-down

help:
	@sed -n '3,/^$$/s/^# \{0,1\}//p' Makefile

## The main job.

demo: images
	@e2e/demo.sh

demo-down: cluster-down

## Tests, the fast rings first.

test: deps
	@e2e/rings.sh lint unit netns e2e $$(! $(on_kind) has-node-image || echo kind)

# Warnings are errors under CI only. Root is needed only where shellcheck is
# not installed yet.
lint: $(deny)
	cargo fmt --all --check
	@type -P shellcheck >/dev/null || $(cluster) deps
	shellcheck $(scripts)
	cargo clippy $(locked) --workspace --all-targets --all-features -- $(if $(CI),-D warnings)
	@twice=$$(find . -path ./target -prune -o -path '*/tests/*.rs' ! -path '*/tests/*/*' -printf '%f\n' | sort | uniq -d); \
	  [ -z "$$twice" ] || { echo "two crates have a file of tests of this name: $$twice"; exit 1; }
	@for crate in $(pure); do \
	  tree=$$(cargo tree $(locked) -p $$crate -e normal --prefix none); \
	  if grep -E '^(kube|k8s-openapi|tokio)' <<< "$$tree"; then echo "$$crate must not depend on these"; exit 1; fi; \
	done
	$(if $(CI),RUSTDOCFLAGS='-D warnings' cargo doc $(locked) --workspace --all-features --no-deps --document-private-items)
	$(deny) --log-level error check bans licenses sources

unit:
	$(tests) --lib --bins $(TEST)
	$(tests) $(addprefix --test ,$(unit_suites)) $(TEST)
	@$(MAKE) --no-print-directory chart

# Helm, kustomize and promtool come from the cache; Helm is built once.
chart:
	@helm=$$($(cluster) helm); prometheus=$$($(cluster) prometheus); \
	  PATH=$$helm:$$prometheus:$$PATH $(tests) --test manifests $(TEST)

# All suites of this ring, and of them those in which the NAT back end matters:
# they run once with each.
netns_suites := $(or $(SUITE),netns endpoints takeover connections limits proxy push)
nat_suites := $(filter netns endpoints proxy,$(netns_suites))
in_namespaces := $(runner)='unshare --net --mount'

netns: deps
	@$(tests) $(addprefix --test ,$(netns_suites)) --no-run
	$(in_namespaces) $(tests) $(addprefix --test ,$(netns_suites)) $(TEST)
	$(if $(nat_suites),LB_SVC_NAT_BACKEND=nftables $(in_namespaces) $(tests) $(addprefix --test ,$(nat_suites)) $(TEST))

# Built here, run as a host outside the cluster. The first suite is about a
# cluster's first address, so all suites begin with a fresh cluster; one suite
# or test takes the cluster that is up.
e2e: images plugin
ifeq ($(SUITE)$(TEST),)
	@$(cluster) down
endif
	@NODES=$(nodes) $(cluster) up
	@e2e/install.sh
	@$(tests) $(patsubst e2e/tests/%.rs,--test %,$(wildcard e2e/tests/*.rs)) --no-run
	@SUITE='$(SUITE)' e2e/run.sh $(TEST)

# From Debian packages and Go modules, into the cache; a Docker engine too, where
# none runs.
kind-image:
	@$(on_kind) deps
	@$(on_kind) node-image

kind-test:
	@CLUSTER=kind e2e/rings.sh cluster-down e2e demo cluster-down

# The part of it that `make test` runs where the image is: what differs most from
# the local cluster, in five minutes.
kind:
	@$(MAKE) --no-print-directory kind-test SUITE='document serving lifecycle healing network'

# The readers of what others write, under libFuzzer, with the coverage that a stable
# compiler has. What it finds is written to target/fuzz, as is what it learnt.
TARGET ?= $(shell sed -n 's/.*Target { name: "\([a-z-]*\)".*/\1/p' e2e/fuzz/src/lib.rs)
SECONDS ?= 60
coverage := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions
fuzzer = target/fuzz/$(host)/release/lb-svc-fuzz

fuzz:
	RUSTFLAGS='$(coverage)' cargo build --release -p lb-svc-fuzz --target $(host) --target-dir target/fuzz
	@for target in $(TARGET); do \
	  corpus=target/fuzz/corpus/$$target; mkdir -p $$corpus; \
	  echo "== $$target, $(SECONDS) s"; \
	  FUZZ_TARGET=$$target FUZZ_CORPUS=$$corpus $(fuzzer) -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024 \
	    -max_len=65536 -print_final_stats=1 -verbosity=0 -print_funcs=0 -artifact_prefix=target/fuzz/$$target- $$corpus; \
	done

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
	@NODES=$(nodes) $(cluster) up

cluster-down:
	@$(cluster) down

images: deps
	@$(cluster) build
	@$(static) cargo build $(locked) --release --target $(host) --bin lb-svc-controller --bin lb-svc-backend
	@$(static) cargo build $(locked) --profile gateway --target $(host) --bin lb-svc-gateway
	@e2e/images.sh target/$(host)/release target/$(host)/gateway

# For krew: the archive, and the manifest with its digest.
plugin:
	@$(static) cargo build $(locked) --release --target $(host) --bin kubectl-lb_svc
	@cp target/$(host)/release/kubectl-lb_svc target/
	@tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -czf target/$(archive) -C target kubectl-lb_svc -C .. LICENSE
	@digest=$$(sha256sum target/$(archive) | cut -d' ' -f1); \
	  sed "/$(archive)/{n;s/\"0*\"/\"$$digest\"/}" controller/kubectl-lb-svc/krew.yaml > target/krew.yaml
	@echo "target/kubectl-lb_svc; for krew: target/$(archive) and target/krew.yaml"

crds:
	@for kind in subnets ips; do \
	  cargo run -q $(locked) -p lb-svc-crds --features crdgen --bin crdgen $$kind > crds/yaml/$$kind.yaml.tmp; \
	  mv crds/yaml/$$kind.yaml.tmp crds/yaml/$$kind.yaml; \
	  cp crds/yaml/$$kind.yaml charts/lb-svc/files/crds/$$kind.yaml; \
	done

monitoring:
	@helm=$$($(cluster) helm); \
	  $$helm/helm template lb-svc charts/lb-svc --namespace lb-svc-system --show-only templates/monitoring.yaml \
	    --set monitoring.monitors=true,monitoring.rules=true,monitoring.dashboard=true > manifests/monitoring/monitoring.yaml.tmp
	@mv manifests/monitoring/monitoring.yaml.tmp manifests/monitoring/monitoring.yaml
