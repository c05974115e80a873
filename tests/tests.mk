# tests.mk - how tests and fuzz targets are linked
define TEST_RULE
$(B)/tests/%: $(B)/obj/tests/$(1)/%.o $(B)/librig.a $(B)/libcore.a $(B)/libkvclient.a
	@mkdir -p $$(@D)
	$(Q)$(CC) $(ALLC) -o $$@ $$(filter %.o,$$^) $$(FIRST) $$(filter %.a,$$^) \
	-lcheck -lsubunit -lrt $(LIBS)
endef
# the real serve, not the rig's fake one
$(addprefix $(B)/tests/test_,serve calls calls_gpu steps edit any_end restore share ape relay relay_lists order line preload ratio private zero_copy): FIRST := $(B)/libcore.a
$(foreach d,unit sweep crash e2e,$(eval $(call TEST_RULE,$(d))))

# the kernels that the daemon has uninstrumented (Makefile), instrumented
ifeq ($(SAN),asan)
INST := $(patsubst $(B)/obj/%,$(B)/obj/inst/%,$(ISA_OBJ))
$(B)/obj/inst/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) $(ISA_$(notdir $*)) -MMD -MP -c -o $@ $<
$(addprefix $(B)/tests/test_,kern kern_elem kern_amx attn narrow): $(INST)
endif

# sweeps let what the core allocates fail too: tests/rig/rig_alloc.h
ALLOCS := malloc calloc realloc strdup posix_memalign
$(B)/tests/libcore-alloc.a: $(B)/libcore.a
	@mkdir -p $(@D)
	$(Q)objcopy $(foreach f,$(ALLOCS),--redefine-sym $(f)=rig_$(f)) $< $@
$(SWEEP): $(B)/tests/libcore-alloc.a
$(SWEEP): private FIRST := $(B)/tests/libcore-alloc.a

# kvd with a hook that lets tests fail its system calls and allocations
$(B)/tests/kvd-faulty: $(call obj,kvd/main.c tests/rig/kvd/faulty.c tests/rig/rig_alloc.c) \
		       $(B)/tests/libcore-alloc.a $(B)/libkvclient.a
	$(Q)$(CC) $(ALLC) -o $@ $^ $(LIBS)

$(B)/tests/kvfsck-faulty: $(call obj,tools/kvfsck.c tests/rig/kvd/faulty.c tests/rig/rig_alloc.c) \
			  $(B)/tests/libcore-alloc.a
	$(Q)$(CC) $(ALLC) -o $@ $^ $(LIBS)

# ---- fuzzing: libFuzzer where clang has it; else, and in make check, with a small
# driver of our own (seeded mutations of the corpus)
FUZZ    := $(patsubst tests/fuzz/fuzz_%.c,$(B)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_MAIN := $(if $(filter fuzz,$(SAN)),,$(B)/obj/tests/fuzz/driver.o)
$(B)/fuzz/%: $(B)/obj/tests/fuzz/fuzz_%.o $(FUZZ_MAIN) \
	     $(B)/librig.a $(B)/libcore.a $(B)/libkvclient.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) $(if $(filter fuzz,$(SAN)),-fsanitize=fuzzer) -o $@ $^ \
	$(LIBS) -lcheck -lsubunit -lrt
fuzz-built: $(FUZZ)
fuzz:
	@CLANG="$(CLANG)" MAKE="$(MAKE)" tools/fuzz.sh $(FUZZ_SECONDS)

