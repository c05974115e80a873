/*
 * llama_gpu_priv.h - the weights on the device, between llama_gpu.c and llama_gpu_load.c
 *
 * Immutable after open; any thread.
 */
#ifndef KVD_MODEL_LLAMA_GPU_PRIV_H
#define KVD_MODEL_LLAMA_GPU_PRIV_H

#include "kvd/model/llama_gpu.h"

#define LLAMA_GPU_ROWS_MAX (1u << 20)

struct llama_gpu_matrix {
	cuda_ptr at; /* [n_out][n_in] */
	uint32_t n_out, n_in;
};

struct llama_gpu_layer {
	cuda_ptr attn_norm, ffn_norm; /* f32 [d_model] */
	struct llama_gpu_matrix q, k, v, o, gate, up, down;
};

#define LLAMA_GPU_WORKSPACE (4u << 20)

/* By shape: what has the same shape shares one. */
enum llama_gpu_role {
	PLAN_Q,
	PLAN_KV,
	PLAN_O,
	PLAN_FF,
	PLAN_DOWN,
	PLAN_OUT,
	N_PLANS
};
struct llama_gpu_plans {
	struct cublas_plan *p[N_PLANS]; /* NULL: by kern_gpu_gemm() */
};
/* For steps of m. Errors of cublas_plan_new(), then free it all the same. */
int llama_gpu_plans_new(struct llama_gpu_plans *p, const struct llama_gpu *m);
void llama_gpu_plans_free(struct llama_gpu_plans *p);

/* Graphs of a scratch: the most recent keys. */
#define GPU_GRAPHS 16u
struct gpu_graphs {
	const struct cuda_api *api;
	struct gpu_graph {
		struct llama_gpu_key key;
		cuda_handle exec; /* NULL: seen once */
		uint64_t turn; /* 0: unused */
	} list[GPU_GRAPHS];
	uint64_t turn, n_launched;
	int off;
};
/* queue(arg) on st, or the graph of what it queued before. 0, queue's error, the driver's. */
int gpu_graphs_run(struct gpu_graphs *g, const struct llama_gpu_key *key,
		   cuda_stream st, int (*queue)(void *arg), void *arg);
void gpu_graphs_fini(struct gpu_graphs *g);

struct llama_gpu {
	const struct cuda_api *api;
	struct cublas *blas;
	uint32_t max_rows;
	uint64_t id[2];
	struct llama_shape sh;
	struct llama_gpu_matrix embd; /* of embd_type */
	enum kern_type embd_type; /* F32, F16, BF16 */
	struct llama_gpu_matrix output;
	struct llama_gpu_layer *layers; /* [n_layers] */
	cuda_ptr norm;
	cuda_ptr *allocs; /* [n_allocs] all of the above */
	uint32_t n_allocs, n_room;
	size_t n_bytes;
};

#endif
