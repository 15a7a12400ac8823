# Thin: each target is the one command that it names.

.PHONY: test lint clean

test: ## All tests.
	cargo test --workspace

lint: ## Format, lints, docs, and the purity of the model.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items
	! cargo tree -p tessera-domain -e normal --prefix none | grep -E '^(tokio|kube|hyper|k8s-openapi|tracing) '

clean: ## What was built.
	cargo clean
