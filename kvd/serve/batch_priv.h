/*
 * batch_priv.h - a step in the making, between batch.c and batch_gpu.c
 *
 * Thread: built on the loop thread, then the engine's until it is done.
 */
#ifndef KVD_SERVE_BATCH_PRIV_H
#define KVD_SERVE_BATCH_PRIV_H

#include "kvd/serve/batch.h"
#include "kvd/serve/gen.h"

struct row_run { /* contiguous rows of one gen */
	struct gen *g;
	uint32_t row, n, pos;
	uint32_t at; /* row of the layer: others may have ended */
	int wanted; /* logits of a row of it are */
	const struct gen_part
		*patched; /* its rows lie apart, from pos in this part on */
};

struct batch {
	struct engine_job job;
	struct serve *serve;
	struct lane *lane;
	struct list ready;
	struct loop_call call;
	int queued, running;
	struct serve_model *model; /* of the step in flight */
	struct llama_scratch *scratch[CONF_MAX_MODELS];
	uint32_t max_rows, max_logits;
	uint32_t *tokens, *logit_rows;
	uint32_t *rows_at; /* [max_rows] position of each row */
	float *logits;
	char *sample_scratch;
	struct gpu_sampler
		*how; /* [max_logits], as the next two: of a device */
	uint32_t *chosen;
	float *chosen_logprob;
	int chose; /* the step did, not the host */
	struct row_run *runs;
	uint32_t n_runs, n_rows, n_logits;
	struct attn_item *items;
	struct gen **gens;
	uint32_t n_gens;
	struct pool *pool;
	int ret;
	int probed; /* the last step was a probe: others come first */
	/* steps to come of one request each: one of several had too little memory */
	uint32_t n_alone;
	struct gen *probe; /* this step only looks at its next part */
	struct repair_group *probe_group;
	struct restore *restore; /* of the only one in the step */
	uint64_t start_ns;
	struct stat *st_steps, *st_rows;
};

/* How the next token of g is chosen. */
struct kern_sample batch_sampler(const struct gen *g);
/* The step on the device of the lane. As llama_step(). Engine thread. */
int batch_on_device(struct batch *b);

#endif
