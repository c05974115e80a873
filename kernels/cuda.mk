# cuda.mk - what concerns GPUs in the Makefile: the fake driver of the tests, the
# kernels where nvcc is found (NVCC= builds without), gpu-check
CUDA_HOME ?= /usr/local/cuda
FAKE_CUDA := $(B)/tests/libfakecuda.so
CUDA_TESTS := $(patsubst %,$(B)/tests/test_%,cuda_api vmm_cuda copy)

$(FAKE_CUDA): $(call obj,$(wildcard tests/rig/cuda/*.c))
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) -shared -o $@ $^
# run time only: tests load it as the daemon loads the real one
$(CUDA_TESTS) $(B)/tests/test_gpu check-built: | $(FAKE_CUDA)

# the toolkit's declarations, where there are any, to compare ours with
$(B)/obj/tests/unit/test_cuda_api.o: ALLC += $(if $(wildcard \
	$(CUDA_HOME)/include/cuda.h),-isystem $(CUDA_HOME)/include)

gpu-check:
	@echo "gpu-check: skipped: there are no CUDA kernels in this tree yet"; \
	exit 77
