# make demo    a shop, receivers that fail now and then, and a relay, on a private PostgreSQL; make demo ARGS=--once checks itself and ends
# make test    install what is missing, then everything continuous integration checks
# make check   the same without installing
# make bench   measure, each figure beside its floor

CARGO ?= cargo
ARGS ?=

.PHONY: demo test check bench install install-deny

demo: install
	$(CARGO) run --release --locked -- demo $(ARGS)

test: install install-deny
	$(MAKE) check

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	$(CARGO) test --locked --all-features
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --all-features
	$(CARGO) deny --locked check bans licenses sources
	@if $(CARGO) deny --locked fetch db >/dev/null 2>&1; then \
		echo "$(CARGO) deny check advisories"; \
		$(CARGO) deny --locked check --disable-fetch advisories; \
	else \
		echo "advisories: NOT CHECKED, their database could not be fetched"; \
	fi

bench: install
	$(CARGO) run --release --locked -- bench $(ARGS)

# A PostgreSQL server (initdb and postgres, of which demo and tests start their own, private copies), a C compiler for one
# dependency, setpriv to start PostgreSQL as somebody else than root. Does nothing, and needs no network, when they are there.
install:
	@missing=""; \
	have_postgres() { \
		for bin in "$$(dirname "$$(readlink -f "$$(command -v postgres)")" 2>/dev/null)" "$$(pg_config --bindir 2>/dev/null)" /usr/lib/postgresql/*/bin; do \
			if [ -x "$$bin/initdb" ] && [ -x "$$bin/postgres" ]; then return 0; fi; \
		done; \
		return 1; \
	}; \
	have_postgres || missing="$$missing postgresql"; \
	command -v cc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v setpriv >/dev/null || missing="$$missing util-linux"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "missing:$$missing; these are the names of Debian packages, install their like with your package manager" >&2; exit 1; \
	fi; \
	sudo=""; \
	if [ "$$(id -u)" != 0 ]; then \
		command -v sudo >/dev/null || { echo "missing:$$missing; install as root: apt-get install$$missing" >&2; exit 1; }; \
		sudo="sudo"; \
	fi; \
	echo "installing Debian packages:$$missing"; \
	case "$$missing" in *postgresql*) echo "(Debian also creates and starts a server on port 5432 with it; pgoutbox does not use or touch that one)";; esac; \
	$$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing

install-deny:
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
		echo "installing cargo-deny (cargo install --locked cargo-deny)"; \
		$(CARGO) install --locked cargo-deny; \
	fi
