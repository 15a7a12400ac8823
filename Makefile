# Thin: each target is the few commands that it names. The test cluster needs root.

.PHONY: build demo test bench bench-placement crash chaos lint sizes clean

DURATION ?= 120
SEED ?= 1

build: ## All programs, and what the test cluster needs.
	sh e2e/install.sh
	cargo build --workspace

demo: build ## A real control plane with Tessera and simulated GPUs on this machine, and who has what.
	target/debug/tessera-e2e demo

test: build ## All tests, the scenarios on a real control plane among them. Ends the demo's cluster.
	target/debug/tessera-e2e down
	cargo test --workspace

bench: build ## Time from bind to a running container, memory and processor time of each part. Ends the demo's cluster.
	cargo build --release --workspace
	target/release/tessera-e2e down
	target/release/tessera-e2e bench

bench-placement: ## The rules of placement compared: docs/placement.md.
	cargo bench -p tessera-placement --bench placement
	cargo bench -p tessera-placement --bench planning

crash: ## Kills the agent at every call of NVML and every write of its journal (half an hour on two cores).
	CRASH_STRIDE=1 cargo test -p tessera-nodeagent --test crash -- --nocapture

chaos: build ## Random pods while parts are disturbed at random, by SEED, for DURATION seconds. Ends the demo's cluster.
	target/debug/tessera-e2e down
	target/debug/tessera-e2e chaos --duration $(DURATION) --seed $(SEED)

lint: ## Format, lints, docs, and what the model, the placement engine and the agent may depend on.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items
	! cargo tree -p tessera-domain -e normal --prefix none | grep -E '^(tokio|kube|hyper|k8s-openapi|tracing|rand) '
	! cargo tree -p tessera-placement -e normal --prefix none | grep -E '^(tokio|kube|hyper|k8s-openapi|tracing) '
	! cargo tree -p tessera-nodeagent -e normal --prefix none | grep -E '^(tessera-placement|rand) '

sizes: ## Sizes of files and functions beside their goals; no import circle in any crate.
	cargo test -p tessera-e2e --test structure -- --nocapture

clean: ## The cluster, and what was built.
	-target/debug/tessera-e2e down
	cargo clean
