/*
 * rig_serve.c - kvd/serve in this process, without sockets
 */
#include "tests/rig/rig_serve.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/base/stat.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_gguf.h"

#define LIMIT_NS 120000000000ull /* then it hangs */

static void write_model(FILE *f, const char *dir, uint32_t i,
			const struct rig_serve_options *o)
{
	const struct rig_model spec = {
		.n_ctx = o->n_ctx ? o->n_ctx : 4096,
		.n_vocab = o->n_vocab[i & 1],
		.n_layers = o->n_layers,
		.n_heads = o->n_kv_heads ? 2 * o->n_kv_heads : 0,
		.n_kv_heads = o->n_kv_heads,
		.head_dim = o->head_dim,
		.seed = 7 + i,
	};
	char path[128];

	snprintf(path, sizeof(path), "%s/m%u.gguf", dir, i);
	rig_model_write(&spec, path);
	fprintf(f, "[model m%u]\npath = %s\nmath = f32\ngate = no\n", i, path);
	if (o->page_tokens)
		fprintf(f, "page_tokens = %u\n", o->page_tokens);
	if (o->page_layers)
		fprintf(f, "page_layers = %u\n", o->page_layers);
}

/* Through a file, so that what is not said is as in the daemon. */
static void set_conf(struct rig_serve *r, const struct rig_serve_options *o)
{
	static const char *const persist[] = { "no", "request", "auto" };
	char path[128], err[256] = "";
	FILE *f;

	snprintf(path, sizeof(path), "%s/kvd.conf", r->dir);
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	fprintf(f,
		"[kvd]\nsocket = %s/s\nstate_dir = %s\nhuge = never\n"
		"threads = 1\nspin_us = 0\norder = %s\n"
		"prefill_slice = %u\nbatch = %u\n",
		r->dir, r->dir, o->order ? o->order : "prefix",
		o->prefill_slice ? o->prefill_slice : 128,
		o->max_batch ? o->max_batch : 64);
	if (o->cuda)
		fprintf(f,
			"device = cuda\ncublas_library = %s\n"
			"cuda_image = %s/kvd.conf\nhost_memory = %llu\n",
			rig_cuda_path(), r->dir, /* it takes any image */
			(unsigned long long)(o->host_bytes ? o->host_bytes
							   : 8u << 20));
	for (uint32_t i = 0; i < (o->n_models ? o->n_models : 1); i++)
		write_model(f, r->dir, i, o);
	fprintf(f,
		"[tenant t0]\nuid = 0\nmemory = %llu\ndisk = %llu\n"
		"sequences = 64\nrequests = %u\nsessions = 8\npersist = %s\n",
		(unsigned long long)(o->memory_bytes ? o->memory_bytes
						     : 16u << 20),
		(unsigned long long)(o->disk_bytes ? o->disk_bytes : 64u << 20),
		o->max_requests ? o->max_requests : 64, persist[o->persist]);
	if (o->cuda)
		fprintf(f, "device_share = yes\n");
	if (o->share[0] && o->share[0][0])
		fprintf(f, "share = %s\n", o->share[0]);
	if (o->share[1])
		fprintf(f,
			"[tenant t1]\nuid = 1\nmemory = %llu\ndisk = %llu\n"
			"sequences = 64\nsessions = 8\npersist = %s\n",
			(unsigned long long)(o->memory_bytes ? o->memory_bytes
							     : 16u << 20),
			(unsigned long long)(o->disk_bytes ? o->disk_bytes
							   : 64u << 20),
			persist[o->persist]);
	if (o->share[1] && o->share[1][0])
		fprintf(f, "share = %s\n", o->share[1]);
	for (int i = 0; o->two_disks && i < 2; i++)
		fprintf(f, "[store s%d]\npath = %s/%d.store\nsize = 64M\n", i,
			r->dir, i);
	ck_assert_int_eq(fclose(f), 0);
	ck_assert_msg(!conf_load(path, &r->conf, err, sizeof(err)), "%s", err);
}

struct rig_serve *rig_serve_open(struct rig_serve_options o)
{
	struct rig_serve *r = calloc(1, sizeof(*r)); /* conf is large */
	char err[256] = "", path[128];

	ck_assert_ptr_nonnull(r);
	strcpy(r->dir, "/var/tmp/kvd-serve-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(r->dir));
	set_conf(r, &o);
	ck_assert_int_eq(loop_new(&r->loop), 0);
	ck_assert_int_eq(loop_start_workers(r->loop, 2), 0);
	ck_assert_msg(!serve_new_on(&r->serve, r->loop, &r->conf, o.cuda, err,
				    sizeof(err)),
		      "%s", err);
	snprintf(path, sizeof(path), "%s/kvd.conf", r->dir);
	(void)unlink(path);
	r->tenant = serve_tenant_find(r->serve, "t0");
	ck_assert_ptr_nonnull(r->tenant);
	r->session = rig_serve_join(r);
	return r;
}

void rig_serve_turn(struct rig_serve *r)
{
	ck_assert_int_eq(loop_turn(r->loop, 1), 0);
	serve_check(r->serve);
}

int rig_serve_until(struct rig_serve *r, const int *flag)
{
	const uint64_t limit_ns = clock_ns() + LIMIT_NS;

	while (!*flag && clock_ns() < limit_ns)
		rig_serve_turn(r);
	return *flag;
}

struct serve_session *rig_serve_join(struct rig_serve *r)
{
	struct serve_session *ss;

	ck_assert_int_eq(serve_session_open(r->tenant, &ss), 0);
	return ss;
}

struct left {
	struct wait wait;
	int told;
};

static void left(struct wait *w, int ret)
{
	(void)ret; /* there is no failure */
	container_of(w, struct left, wait)->told = 1;
}

void rig_serve_leave(struct rig_serve *r, struct serve_session *ss)
{
	struct left l = { .wait.done = left };

	serve_session_close(ss, &l.wait);
	ck_assert(rig_serve_until(r, &l.told));
}

void rig_serve_close(struct rig_serve *r)
{
	struct left l = { .wait.done = left };
	char path[128];

	rig_serve_leave(r, r->session);
	serve_drain(r->serve, &l.wait); /* chunks that nobody waits for */
	ck_assert(rig_serve_until(r, &l.told));
	serve_free(r->serve);
	loop_free(r->loop);
	for (uint32_t i = 0; i < r->conf.n_models; i++)
		(void)unlink(r->conf.models[i].path);
	snprintf(path, sizeof(path), "%s/kvd.store", r->dir);
	(void)unlink(path); /* it may have none */
	for (uint32_t i = 0; i < r->conf.n_stores; i++)
		(void)unlink(r->conf.stores[i].path);
	(void)rmdir(r->dir);
	free(r);
}

uint64_t rig_serve_steps(void)
{
	return stat_read(stat_get(STAT_COUNTER, "kvd_steps_total",
				  "Steps of hosted models", NULL, NULL, 1));
}

uint64_t rig_serve_rows(void)
{
	return stat_read(stat_get(STAT_COUNTER, "kvd_step_rows_total",
				  "Rows (tokens) of these steps", NULL, NULL,
				  1));
}

/* ---- generations ------------------------------------------------------------ */

/* Text and tokens are there whenever this many were announced. */
static void copy_out(struct rig_gen *g)
{
	const struct serve_gen *s = &g->gen;

	ck_assert_uint_le(s->n_out, RIG_GEN_MAX);
	ck_assert_uint_le(s->n_text, sizeof(g->text));
	if (s->n_out)
		memcpy(g->tokens, s->tokens, s->n_out * sizeof(*s->tokens));
	if (s->n_text)
		memcpy(g->text, s->text, s->n_text);
	g->n_out = s->n_out;
	g->n_text = s->n_text;
}

static void show(struct rig_gen *g)
{
	if (g->n_text <= g->n_shown)
		return;
	memcpy(g->shown + g->n_shown, g->text + g->n_shown,
	       g->n_text - g->n_shown);
	g->n_shown = g->n_text;
}

static void progress(struct serve_gen *s)
{
	struct rig_gen *g = container_of(s, struct rig_gen, gen);

	copy_out(g);
	show(g);
}

static void done(struct wait *w, int ret)
{
	struct rig_gen *g = container_of(
		container_of(w, struct serve_gen, wait), struct rig_gen, gen);

	ck_assert(!g->told);
	if (ret >= 0 || ret == -ECANCELED) {
		copy_out(g);
		show(g);
	}
	if (g->gen.used)
		memcpy(g->used, g->gen.used,
		       KV_MIN(g->gen.n_parts, 8u) * sizeof(g->used[0]));
	g->ret = ret;
	g->told = 1;
}

struct rig_gen *rig_gen_new(void)
{
	struct rig_gen *g = calloc(1, sizeof(*g));

	ck_assert_ptr_nonnull(g);
	g->gen.model = "";
	g->gen.wait.done = done;
	g->gen.progress = progress;
	g->gen.flags = SERVE_GEN_IGNORE_EOS;
	g->gen.max_tokens = 8;
	g->gen.parts = g->parts;
	return g;
}

void rig_gen_part(struct rig_gen *g, const uint32_t *tokens, size_t n,
		  uint32_t flags)
{
	ck_assert_uint_lt(g->gen.n_parts, KV_ARRAY_LEN(g->parts));
	g->parts[g->gen.n_parts++] =
		(struct serve_part){ .kind = SERVE_PART_TOKENS,
				     .flags = flags,
				     .tokens = tokens,
				     .n_tokens = n };
}

int rig_gen_start(struct rig_gen *g, struct serve_session *ss)
{
	return serve_generate(ss, &g->gen);
}

uint32_t *rig_ids(size_t n, uint64_t seed)
{
	uint32_t *t = malloc((n + 1) * sizeof(*t));

	ck_assert_ptr_nonnull(t);
	for (size_t i = 0; i < n; i++)
		t[i] = 3 + (uint32_t)(rig_random(&seed) % 300);
	return t;
}

struct rig_gen *rig_score(struct rig_serve *r, const uint32_t *t, size_t n,
			  size_t n_empty, const uint32_t *last, size_t n_last)
{
	struct rig_gen *g = rig_gen_new();

	g->gen.flags = SERVE_GEN_SCORE;
	rig_gen_part(g, t, n, 0);
	for (size_t i = 0; i < n_empty; i++)
		rig_gen_part(g, t, 0, 0);
	rig_gen_part(g, last, n_last, 0);
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	return g;
}
