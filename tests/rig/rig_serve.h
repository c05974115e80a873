/*
 * rig_serve.h - kvd/serve in this process, without sockets: step by step
 *
 * A loop, a folder, one small random model (or several), one tenant. Nothing runs
 * but in rig_serve_turn() and rig_serve_until(), save the engine and the workers.
 */
#ifndef TESTS_RIG_RIG_SERVE_H
#define TESTS_RIG_RIG_SERVE_H

#include "kernels/cuda_api.h"
#include "kvd/base/conf.h"
#include "kvd/serve/serve.h"

struct rig_serve {
	struct loop *loop;
	struct serve *serve;
	struct conf conf; /* rig_serve_open() starts with what set() left */
	struct serve_tenant *tenant;
	struct serve_session *session; /* one that is always there */
	char dir[64];
};

struct rig_serve_options {
	uint64_t memory_bytes; /* 0: 16 MiB */
	uint64_t disk_bytes; /* 0: 64 MiB */
	uint32_t n_models; /* 0: one "m0"; more differ in their seed */
	uint32_t n_vocab[2]; /* 0: 320 */
	uint32_t n_ctx; /* 0: 4096 */
	uint32_t n_layers, n_kv_heads, head_dim; /* 0: as rig_gguf.h says */
	uint32_t page_tokens, page_layers; /* 0: chosen */
	uint32_t max_requests; /* 0: 64 */
	uint32_t prefill_slice, max_batch; /* 0: 128, 64 */
	int two_disks; /* of 64 MiB; 0: the default store */
	enum conf_persist persist;
	const char *order; /* NULL: prefix */
	const struct cuda_api *cuda; /* device = cuda; the fake's; NULL: cpu */
	uint64_t host_bytes; /* of its pool; 0: 8 MiB */
	/* Not NULL: tenants t0 and t1, with these names to share by ("": none). */
	const char *share[2];
};
/* Asserts. */
struct rig_serve *rig_serve_open(struct rig_serve_options o);
/* Closes the session, turns until all is idle, frees. */
void rig_serve_close(struct rig_serve *r);
/* One turn, then serve_check(). */
void rig_serve_turn(struct rig_serve *r);
/* Turn until *flag; 1, or 0 after two minutes. */
int rig_serve_until(struct rig_serve *r, const int *flag);
struct serve_session *rig_serve_join(struct rig_serve *r);
/* Close and wait; asserts that it ends. */
void rig_serve_leave(struct rig_serve *r, struct serve_session *ss);
/* Steps of hosted models so far, in this process. */
uint64_t rig_serve_steps(void);
/* Rows of all these. */
uint64_t rig_serve_rows(void);

#define RIG_GEN_MAX 8192
/* A generation and what became of it. */
struct rig_gen {
	struct serve_gen gen;
	struct serve_part parts[8];
	int told, ret;
	uint32_t n_out, n_text;
	struct serve_token tokens[RIG_GEN_MAX];
	char text[4 * RIG_GEN_MAX];
	char shown[4 * RIG_GEN_MAX]; /* text as it streamed */
	uint32_t n_shown;
	struct serve_used used[8]; /* with variants: of each part */
};
/* Memory is the caller's; fields of gen may be set before rig_gen_start(). */
struct rig_gen *rig_gen_new(void);
void rig_gen_part(struct rig_gen *g, const uint32_t *tokens, size_t n,
		  uint32_t flags);
/* n token ids of any vocabulary, the same for the same seed; the caller's. */
uint32_t *rig_ids(size_t n, uint64_t seed);
/* Begin to score last behind t and some empty parts; asserts. */
struct rig_gen *rig_score(struct rig_serve *r, const uint32_t *t, size_t n,
			  size_t n_empty, const uint32_t *last, size_t n_last);
/* What serve_generate() returned. */
int rig_gen_start(struct rig_gen *g, struct serve_session *ss);

#endif
