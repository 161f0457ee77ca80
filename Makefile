# SPDX-License-Identifier: MIT OR Apache-2.0
#
# A thin layer over userspace/toolchain (which brings every tool that is needed) and
# userspace/xtask (which does the work). `make help` lists what there is.

TOOLCHAIN := userspace/toolchain
XTASK := $(TOOLCHAIN)/enter.sh $(TOOLCHAIN)/xtask.sh

# More options for the command behind a target: make test ARGS='--filter fork'.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test debug-test figures compare shell command modules headers_install kernel lint fmt update clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  ARGS='...'     more options for demo, test, debug-test, figures, compare and shell (ARGS=--help lists them)"
	@echo "  BARBUF_CACHE   where toolchain and kernels are kept (now: $${BARBUF_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/barbuf})"
	@echo "  BARBUF_PATIENCE  multiplies the guests' time limits, for a busy machine (default: 1)"
	@echo "  BARBUF_MIRROR  the Debian mirror (default: the one that apt uses on this machine)"

demo: ## boot a stock kernel with an NPU and an NVMe drive and show what the module does
	@$(XTASK) demo $(ARGS)

test: ## run the tests on the host and on the stock kernel
	@$(XTASK) test $(ARGS)

debug-test: ## run all guest tests on the debug kernel, which takes long
	@$(XTASK) test --kernel debug $(ARGS)

figures: ## measure what mapping, exporting and revoking cost, next to vfio-pci
	@$(XTASK) figures $(ARGS)

compare: ## every way to map the memory of a device, measured next to each other on one kernel
	@$(XTASK) compare $(ARGS)

shell: ## an interactive guest with the module at hand
	@$(XTASK) shell $(ARGS)

command: ## build the command barbuf, its manual pages and completions
	@$(XTASK) command

# With KDIR this is plain kbuild, on any machine whose kernel tree has its Rust metadata.
modules: ## build the module: for the stock kernel, or with KDIR=... for the kernel there
ifdef KDIR
	@$(MAKE) -C $(KDIR) M=$(CURDIR) modules
else
	@$(XTASK) modules $(ARGS)
endif

# Where header files go; DESTDIR is for packages.
PREFIX ?= /usr/local

headers_install: ## install linux/barbuf.h for programs in C and C++: PREFIX=/usr/local DESTDIR=
	@install -D -m 644 uapi/linux/barbuf.h $(DESTDIR)$(PREFIX)/include/linux/barbuf.h

kernel: ## make a kernel ready: ARGS='--flavour stock|debug|base'
	@$(XTASK) kernel $(ARGS)

lint: ## rustfmt, clippy, the kernel's lints, checkpatch, shellcheck, header checks
	@$(XTASK) lint $(ARGS)

fmt: ## format the Rust sources
	@$(XTASK) fmt

update: ## look for a newer kernel on the mirror
	@$(XTASK) update

clean: ## remove what was built here
	@rm -rf target

distclean: clean ## remove the cache as well: toolchain, kernels, downloads
	@$(TOOLCHAIN)/distclean.sh
