/* cpu_avx512.c - cpu_body.h on AVX-512 */
#include "kernels/vec_avx512.h"
#include "kernels/cpu_body.h"
