# cuda.mk - what concerns GPUs in the Makefile: the fake driver of the tests, the
# kernels where nvcc is found (NVCC= builds without), gpu-check
CUDA_HOME ?= /usr/local/cuda
FAKE_CUDA := $(B)/tests/libfakecuda.so
CUDA_TESTS := $(patsubst %,$(B)/tests/test_%,cuda_api cuda_share vmm_cuda copy gpu_kern gpu_same gpu_grid gpu_elem gpu_gemm gpu_sample gpu_plan)
CUDA_TESTS += $(patsubst %,$(B)/tests/test_%,vmm_uvm gds device device_fault gpu_tier)
CUDA_TESTS += $(patsubst %,$(B)/tests/test_%,llama_gpu attn_gpu gpu_keep gpu_serve gpu_chunks)

$(FAKE_CUDA): $(call obj,$(wildcard tests/rig/cuda/*.c))
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) -shared -o $@ $^
FAKE_CUFILE := $(B)/tests/libfakecufile.so
$(FAKE_CUFILE): $(call obj,tests/rig/cufile/fake_cufile.c)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALLC) -shared -o $@ $^
$(B)/tests/test_gds check-built: | $(FAKE_CUFILE)
# run time only: tests load it as the daemon loads the real one
$(CUDA_TESTS) $(B)/tests/test_gpu $(B)/tests/test_export $(B)/tests/test_client_event $(B)/tests/test_kvbench $(B)/tests/test_gpu_check check-built: | $(FAKE_CUDA)
check-built: | $(B)/demo # test_gpu_check with KVD_LONG=1

# the toolkit's declarations, where there are any, to compare ours with
$(B)/obj/tests/unit/test_cuda_api.o $(B)/obj/tests/unit/test_gpu_gemm.o: ALLC += $(if $(wildcard \
	$(CUDA_HOME)/include/cuda.h),-isystem $(CUDA_HOME)/include)

# kernels: an image for the driver, in the binary. NVCC= builds without.
NVCC ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard \
	$(CUDA_HOME)/bin/nvcc))
# the same for every SAN
FATBIN := build/obj/kernels/gpu.fatbin
# what this tree was built with last; written here and now, since .SECONDARY keeps
# files that are missing from being made
GPU_KIND := $(B)/obj/kernels/gpu.kind
$(shell mkdir -p $(dir $(GPU_KIND)) && echo '$(NVCC)' | cmp -s - $(GPU_KIND) \
	|| echo '$(NVCC)' >$(GPU_KIND))
$(B)/obj/kernels/gpu_image.o: $(GPU_KIND) $(if $(NVCC),$(FATBIN))
$(B)/obj/kernels/gpu_image.o: ALLC += $(if $(NVCC),-DKV_FATBIN='"$(FATBIN)"')
$(FATBIN): kernels/gpu.cu $(wildcard kernels/*.cuh) kernels/gpu_args.h
	@mkdir -p $(@D)
	$(Q)$(NVCC) -I. -O3 -fmad=false -fatbin --threads 2 -Xfatbin -compress-all \
	-gencode arch=compute_80,code=sm_80 \
	-gencode arch=compute_80,code=compute_80 \
	$$($(NVCC) --version | grep -Eq 'release (1[2-9]|[2-9][0-9])' && \
	echo -gencode arch=compute_90a,code=sm_90a) -o $@ $<

# without a GPU it says so, which is no failure
gpu-check:
	@NVCC="$(NVCC)" MAKE="$(MAKE)" tools/gpu-check.sh $(B) || [ $$? = 77 ]
# all that it needs, for a machine where nothing can be built: tools/gpu-check.sh --from
GPU_PACK ?= $(B)/gpu-pack
gpu-pack:
	@NVCC="$(NVCC)" MAKE="$(MAKE)" tools/gpu-check.sh --pack $(GPU_PACK) $(B)
.PHONY: gpu-pack
