/*
 * batch_stage.h - layers of a device's step from which on less is computed: chunks out of focus
 *
 * Thread: engine thread.
 */
#ifndef KVD_SERVE_BATCH_STAGE_H
#define KVD_SERVE_BATCH_STAGE_H

#include "kvd/serve/batch_priv.h"

/* What a step's stages point to. */
struct batch_stages {
	struct gpu_step_stage *list;
	struct attn_item *items; /* [n][n_runs] */
	uint32_t *rows; /* [n][n_rows] */
	uint32_t *logit_rows; /* as they are at the end */
};

/* Who takes part at the layer, as the device's lists want it, into items [n_runs]. */
void batch_items(const struct batch *b, uint32_t layer,
		 struct attn_item *items);
/*
 * Where entries of the lists stop (focus.h), into s, with its logit_rows. Rows that stop end
 * there, unless s keeps queries. -ENOMEM; then, too, it is freed.
 */
int batch_stages(const struct batch *b, struct gpu_step *s,
		 struct batch_stages *out);
void batch_stages_free(struct batch_stages *x); /* zeroes are fine */

#endif
