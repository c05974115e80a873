/* cpu_avx2.c - cpu_body.h on AVX2 and FMA */
#include "kernels/vec_avx2.h"
#include "kernels/cpu_body.h"
