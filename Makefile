# kvd: one non-recursive Makefile; out of tree in build/ (build/<san>/ with SAN).
# `make help` lists the targets.
MAKEFLAGS += --no-builtin-rules
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif
CC     ?= gcc
SAN    ?=
V      ?= 0
PREFIX ?= /usr/local
B      := build$(if $(SAN),/$(SAN))
Q      := $(if $(filter 1,$(V)),,@)

VERSION := 1.0.0# here alone
CLANG  ?= clang
CLANG_FORMAT ?= clang-format
FUZZ_SECONDS ?= 60
N_QUESTIONS ?= 300
CFLAGS ?= -O2 -g
WARN   := -Wall -Wextra -Wshadow -Wconversion -Werror
OPT    := -std=gnu11 -D_GNU_SOURCE -I. -fno-math-errno -ffp-contract=off \
	  -fvisibility=default -fPIC -pthread
SANF_asan  := -fsanitize=address -fno-omit-frame-pointer -DKV_DEBUG
SANF_ubsan := -fsanitize=undefined -fno-sanitize-recover=all -DKV_DEBUG
SANF_tsan  := -fsanitize=thread -DKV_DEBUG
# only of make fuzz, which builds with clang, save the kernels
SANF_fuzz  := -fsanitize=fuzzer-no-link,address -fno-omit-frame-pointer -DKV_DEBUG
ALLC   := $(CFLAGS) $(WARN) $(OPT) $(SANF_$(SAN))
LIBS   := -luring -lnuma -linih -ljansson -lmicrohttpd -lsodium -lseccomp -lcap \
	  -lm -pthread

DNNL    = $(shell echo '\#include <oneapi/dnnl/dnnl.h>' | \
	  $(CC) -E - >/dev/null 2>&1 && echo -ldnnl)

src     = $(wildcard $(1)/*.c)
obj     = $(patsubst %.c,$(B)/obj/%.o,$(1))
LEAF    := $(call src,io) $(call src,kernels)
DAEMON  := $(filter-out kvd/main.c,$(call src,kvd) $(foreach d,base mem cache \
	   model serve ipc,$(call src,kvd/$(d))))
CLIENT  := $(call src,libkvclient)
RIG     := $(call src,tests/rig)
UNIT    := $(patsubst tests/unit/%.c,$(B)/tests/%,$(call src,tests/unit))
SWEEP   := $(patsubst tests/sweep/%.c,$(B)/tests/%,$(call src,tests/sweep))
CRASH   := $(patsubst tests/crash/%.c,$(B)/tests/%,$(call src,tests/crash))
E2E     := $(patsubst tests/e2e/%.c,$(B)/tests/%,$(call src,tests/e2e))
# the long ones first
TESTS   := $(E2E) $(CRASH) $(SWEEP) $(UNIT)
KVCTL   := tools/kvctl.c $(wildcard tools/cmd_*.c)
KVSIM   := tools/kvsim.c tools/trace.c $(wildcard tools/sim_*.c)
KVBENCH := tools/kvbench.c $(wildcard tools/bench_*.c)

all: $(B)/kvd $(B)/kvctl $(B)/kvbench $(B)/kvsim $(B)/kvfsck \
     $(B)/libkvclient.so $(B)/libkvclient.a

ifeq ($(SAN),fuzz)
WARN   :=
$(B)/obj/kernels/%.o: override CC := gcc
$(B)/obj/kernels/%.o: ALLC := $(CFLAGS) $(OPT)
endif
# kern.c says what they read and write; the emulator switches stacks by hand
ISA_OBJ := $(patsubst kernels/%.c,$(B)/obj/kernels/%.o,$(wildcard kernels/cpu_*.c) kernels/ref.c)
ifeq ($(SAN),asan)
$(ISA_OBJ): ALLC := $(filter-out -fsanitize=address,$(ALLC))
endif
ifeq ($(SAN),tsan)
export TSAN_OPTIONS ?= suppressions=tests/tsan.supp history_size=4 die_after_fork=0
$(ISA_OBJ) $(call obj,$(addprefix tests/rig/cuda/,gpu_emu.c emu_mma.c emu_hopper.c fake_kernels.c)): \
	ALLC := $(filter-out -fsanitize=thread,$(ALLC))
endif
$(patsubst %,$(B)/obj/%.o,kvd/main kvd/serve/query kvd/ipc/admin libkvclient/client): private ALLC += -DKV_VERSION='"$(VERSION)"'
$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) $(ISA_$(notdir $*)) -MMD -MP -c -o $@ $<

ISA_cpu_avx2   := -mavx2 -mfma -mf16c -O3
ISA_cpu_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma \
		  -mf16c -O3
ISA_cpu_avx512bf16 := $(ISA_cpu_avx512) -mavx512bf16
ISA_cpu_amx    := $(ISA_cpu_avx512) -mavx512bf16 -mamx-tile -mamx-bf16

$(B)/libcore.a: $(call obj,$(LEAF) $(DAEMON))
	@rm -f $@; $(AR) rcs $@ $^
$(B)/libkvclient.a: $(call obj,$(CLIENT))
	@rm -f $@; $(AR) rcs $@ $^
$(B)/libkvclient.so: $(call obj,$(CLIENT)) libkvclient/kvclient.map
	$(Q)$(CC) $(ALLC) -shared -Wl,-soname,libkvclient.so.1 \
	-Wl,--version-script=libkvclient/kvclient.map -o $@ $(filter %.o,$^)
$(B)/kvd: $(call obj,kvd/main.c) $(B)/libcore.a $(B)/libkvclient.a
	$(Q)$(CC) $(ALLC) -o $@ $^ $(LIBS)
$(B)/kvctl: $(call obj,$(KVCTL)) $(B)/libkvclient.a
	$(Q)$(CC) $(ALLC) -o $@ $^ -ljansson -lm -pthread
$(B)/kvbench: $(call obj,$(KVBENCH)) $(B)/libcore.a $(B)/libkvclient.a
	$(Q)$(CC) $(ALLC) -o $@ $^ $(LIBS) $(DNNL)
# the same as on a machine without oneDNN
$(B)/tests/kvbench-plain: $(call obj,$(filter-out tools/bench_dnnl.c,$(KVBENCH))) \
			  $(B)/libcore.a $(B)/libkvclient.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) -DNO_DNNL -o $@ tools/bench_dnnl.c $^ $(LIBS)
$(B)/kvfsck: $(call obj,tools/kvfsck.c) $(B)/libcore.a
	$(Q)$(CC) $(ALLC) -o $@ $^ -luring -ljansson -pthread
$(B)/kvsim: $(call obj,$(KVSIM)) $(B)/libcore.a
	$(Q)$(CC) $(ALLC) -o $@ $^ -ljansson -lm -pthread
$(B)/librig.a: $(call obj,$(RIG))
	@rm -f $@; $(AR) rcs $@ $^
include tests/tests.mk

# ---- what people call
deps:
	@tools/deps.sh
check: deps
	@$(MAKE) --no-print-directory check-built
check-built: all $(TESTS) $(FUZZ) $(B)/tests/kvd-faulty \
	     $(B)/tests/kvfsck-faulty $(B)/tests/kvbench-plain
	@for f in $(FUZZ); do $$f 3 tests/fuzz/corpus/$$(basename $$f) \
	|| exit 1; done
	@tools/run-tests.sh $(B) $(TESTS)
check-long:
	@KVD_LONG=1 $(MAKE) check
$(B)/demo: $(call obj,tools/demo.c) $(B)/libkvclient.a
	$(Q)$(CC) $(ALLC) -o $@ $^ -ljansson -lm -pthread
demo: deps
	@$(MAKE) --no-print-directory $(B)/kvd $(B)/demo
	@$(B)/demo $(B)/kvd tests/data/models/rag-mini.gguf \
	tests/data/eval/rag-zipf.jsonl $(B)/demo-state $(N_QUESTIONS)
bench: all
	@$(B)/kvbench all
lint:
	@tools/lint/lint.sh
format:
	$(CLANG_FORMAT) -i $$(git ls-files '*.c' '*.h' '*.cu*')
include kernels/cuda.mk

D := $(DESTDIR)$(PREFIX)
install: all
	install -d $(D)/bin $(D)/sbin $(D)/include $(D)/lib/pkgconfig \
	$(D)/share/man/man1 $(D)/share/man/man3 $(D)/share/man/man5 \
	$(D)/share/man/man8 $(D)/lib/systemd/system $(D)/lib/sysusers.d $(D)/lib/tmpfiles.d \
	$(D)/share/doc/kvd
	install -m 755 $(B)/kvd $(B)/kvfsck $(D)/sbin/
	install -m 755 $(B)/kvctl $(B)/kvbench $(B)/kvsim $(D)/bin/
	install -m 644 libkvclient/kvclient.h libkvclient/kv_abi.h $(D)/include/
	install -m 644 $(B)/libkvclient.a $(D)/lib/
	install -m 755 $(B)/libkvclient.so $(D)/lib/libkvclient.so.1
	ln -sf libkvclient.so.1 $(D)/lib/libkvclient.so
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' \
	libkvclient/kvclient.pc.in > $(D)/lib/pkgconfig/kvclient.pc
	for m in docs/man/*.[1-8]; do \
	install -m 644 $$m $(D)/share/man/man$${m##*.}/; done
	sed 's|@PREFIX@|$(PREFIX)|' tools/dist/kvd.service \
	> $(D)/lib/systemd/system/kvd.service
	install -m 644 tools/dist/kvd.sysusers $(D)/lib/sysusers.d/kvd.conf
	install -m 644 tools/dist/kvd.tmpfiles $(D)/lib/tmpfiles.d/kvd.conf
	install -m 644 docs/kvd.conf.example README.md LICENSE tools/dist/kvd-gpu.conf \
	tools/dist/kvd-store.conf $(D)/share/doc/kvd/
uninstall:
	rm -f $(D)/sbin/kvd $(D)/sbin/kvfsck $(D)/bin/kvctl $(D)/bin/kvbench $(D)/bin/kvsim \
	$(D)/include/kvclient.h $(D)/include/kv_abi.h $(D)/lib/libkvclient.* \
	$(D)/lib/pkgconfig/kvclient.pc $(D)/lib/systemd/system/kvd.service \
	$(D)/lib/sysusers.d/kvd.conf $(D)/lib/tmpfiles.d/kvd.conf
	for m in docs/man/*.[1-8]; do \
	rm -f $(D)/share/man/man$${m##*.}/$${m##*/}; done
	rm -rf $(D)/share/doc/kvd
clean:
	rm -rf build
help:
	@echo "make            build/kvd, kvctl, kvbench, kvsim, kvfsck, libkvclient.so and .a"
	@echo "make demo       the main job, front to back (installs what is missing)"
	@echo "make check      all tests; check-long: longer versions"
	@echo "make bench      kvbench: figures against this machine's limits"
	@echo "make lint       format, layers, sizes, headers, man pages"
	@echo "make fuzz       FUZZ_SECONDS=60 for each input from outside; CLANG=clang"
	@echo "make install    PREFIX=/usr/local DESTDIR="
	@echo "make gpu-check  what only a GPU can tell (skipped without one); gpu-pack: to carry it to one"
	@echo "SAN=asan|ubsan|tsan builds into build/SAN; V=1 shows commands"

-include $(shell find $(B) -name "*.d" -type f 2>/dev/null)
.SECONDARY:
.PHONY: all fuzz fuzz-built deps check check-built check-long demo bench lint format \
	gpu-check install uninstall clean help
