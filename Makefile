# Miehistö: the few commands that a developer and an operator type. Each target's work lies in scripts/.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
# systemd looks here below /usr/local and below /usr.
UNITDIR ?= $(PREFIX)/lib/systemd/system
PYTHON := .venv/bin/python
PYTEST_ARGS ?=
SUITE ?=

.PHONY: help setup setup-dev install uninstall wheel-mhctl deb lint test test-api audit test-faults test-compose test-deb test-vm fuzz screenshots demo bench bench-peers bench-pages docs lock clean

help:
	@echo "make setup        everything Miehistö needs on this Debian 12 or 13 (as root)"
	@echo "make demo         the walk-through, for real, on this machine"
	@echo "make install      commands into $(BINDIR), systemd's units, /etc/miehisto; make uninstall removes them"
	@echo "make wheel-mhctl  a wheel with mhctl alone, for a laptop, into dist/"
	@echo "make deb          a Debian package for this release, into dist/; make test-deb installs and purges it"
	@echo "make test         linters, types, migrations and all tests (PYTEST_ARGS='-k word' for some)"
	@echo "make test-faults  kill, damage and fill what can be, as often as docs/reliability.md tells (hours)"
	@echo "make fuzz         shape archives, images and states for a minute each (FUZZ_ARGS='--seconds 600')"
	@echo "make test-compose docker-compose.yml on a container engine that it fetches (minutes)"
	@echo "make test-vm      the package in QEMU, with a kernel of its own: a quarter of an hour without KVM"
	@echo "make test-api     2,000 requests made from the API's description; make audit asks for known holes"
	@echo "make bench        measure against bare CRIU; make bench-peers against container engines"
	@echo "make bench-pages  measure the pages: 200,000 jobs in the database, a dump under 200 open pages"
	@echo "make docs         write docs/reference anew from what the code says"
	@echo "make lock         write requirements*.txt anew from requirements*.in"
	@echo "make clean        remove caches and the virtual environment; the database and the images stay"

setup:
	@scripts/setup

setup-dev:
	@scripts/setup --dev

install uninstall:
	@/usr/bin/env python3 -B -m scripts.install $@ --destdir "$(DESTDIR)/" --bindir $(BINDIR) --unitdir $(UNITDIR)

# mhctl alone, for a laptop; needs what `make setup` makes.
wheel-mhctl:
	@cd packaging/mhctl && $(CURDIR)/$(PYTHON) -m hatchling build --target wheel --directory $(CURDIR)/dist

# For the Debian release that this host runs.
deb: setup
	@$(PYTHON) -B -m scripts.deb

lint:
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy .
	DATABASE_URL=sqlite:///:memory: $(PYTHON) manage.py makemigrations --check --dry-run

# pytest runs last, so that its closing line closes the output.
test: setup-dev
	@$(MAKE) --no-print-directory lint
	$(PYTHON) -m pytest $(PYTEST_ARGS)

# Goes on to the page when a fault was found: that is what the page is for.
test-faults: setup-dev
	@mkdir -p build && rm -f build/faults.jsonl
	$(PYTHON) -m pytest tests/faults -s --long --results build/faults.jsonl $(PYTEST_ARGS); \
	status=$$?; $(PYTHON) -m tests.faults.page build/faults.jsonl && exit $$status

test-compose: setup-dev
	$(PYTHON) -m pytest tests/compose

# For another release than this host's: `make test-deb SUITE=trixie`, which also builds the package in one.
test-deb: setup-dev
	DEBIAN_SUITE=$(SUITE) $(PYTHON) -m pytest tests/deb $(PYTEST_ARGS)

# With a kernel of its own, in QEMU: no part of CI.
test-vm: setup-dev
	$(PYTHON) -m pytest tests/vm $(PYTEST_ARGS)

# Many more requests than in `make test`, other ones each time.
test-api: setup-dev
	API_EXAMPLES=2000 $(PYTHON) -m pytest tests/test_schema.py $(PYTEST_ARGS)

# It needs the network, so it is no part of `make test`.
audit: setup-dev
	@scripts/audit

screenshots: setup-dev
	$(PYTHON) scripts/screenshots.py

demo: setup
	@scripts/demo

fuzz: setup-dev
	$(PYTHON) -m pytest -q --hypothesis-profile=search tests/test_input_properties.py tests/test_mhctl_words.py
	$(PYTHON) -m tests.fuzz.run $(FUZZ_ARGS)

bench: setup-dev
	$(PYTHON) benchmarks/run.py $(BENCH_ARGS)

bench-peers: setup-dev
	$(PYTHON) benchmarks/run.py --peers $(BENCH_ARGS)

docs:
	@$(PYTHON) -m scripts.reference

bench-pages: setup-dev
	$(PYTHON) benchmarks/pages.py $(BENCH_ARGS)

lock:
	@scripts/lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist static_root test-artifacts *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
