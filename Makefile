# kvd: one non-recursive Makefile; out of tree in build/ (build/<san>/ with SAN).
# `make help` lists the targets.
MAKEFLAGS += --no-builtin-rules
CC     ?= gcc
SAN    ?=
V      ?= 0
PREFIX ?= /usr/local
B      := build$(if $(SAN),/$(SAN))
Q      := $(if $(filter 1,$(V)),,@)

PKGS   := liburing inih jansson libmicrohttpd libsodium
CFLAGS ?= -O2 -g
WARN   := -Wall -Wextra -Wshadow -Wconversion -Werror
OPT    := -std=gnu11 -D_GNU_SOURCE -I. -fno-math-errno -ffp-contract=off \
	  -fvisibility=default -fPIC -pthread
SANF_asan  := -fsanitize=address -fno-omit-frame-pointer -DKV_DEBUG
SANF_ubsan := -fsanitize=undefined -fno-sanitize-recover=all -DKV_DEBUG
SANF_tsan  := -fsanitize=thread -DKV_DEBUG
ALLC   := $(CFLAGS) $(WARN) $(OPT) $(SANF_$(SAN))
LIBS   := -luring -lnuma -linih -ljansson -lmicrohttpd -lsodium -lseccomp -lcap \
	  -lm -pthread

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
TESTS   := $(UNIT) $(SWEEP) $(CRASH) $(E2E)
KVCTL   := tools/kvctl.c $(wildcard tools/cmd_*.c)
KVBENCH := tools/kvbench.c $(wildcard tools/bench_*.c)

all: $(B)/kvd $(B)/kvctl $(B)/kvbench $(B)/libkvclient.so $(B)/libkvclient.a

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) $(ISA_$(notdir $*)) -MMD -MP -c -o $@ $<

ISA_cpu_avx2   := -mavx2 -mfma -mf16c -O3
ISA_cpu_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma \
		  -mf16c -O3
ISA_cpu_avx512bf16 := $(ISA_cpu_avx512) -mavx512bf16
ISA_cpu_amx    := $(ISA_cpu_avx512) -mamx-tile -mamx-bf16

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
	$(Q)$(CC) $(ALLC) -o $@ $^ $(LIBS) -ldnnl
$(B)/librig.a: $(call obj,$(RIG))
	@rm -f $@; $(AR) rcs $@ $^
define TEST_RULE
$(B)/tests/%: $(B)/obj/tests/$(1)/%.o $(B)/librig.a $(B)/libcore.a $(B)/libkvclient.a
	@mkdir -p $$(@D)
	$(Q)$(CC) $(ALLC) -o $$@ $$^ -lcheck -lsubunit -lrt $(LIBS)
endef
$(foreach d,unit sweep crash e2e,$(eval $(call TEST_RULE,$(d))))

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:
.PHONY: all
