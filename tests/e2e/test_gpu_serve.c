/*
 * test_gpu_serve.c - a daemon whose KV lies on a device, against one in host memory
 *
 * On the fake driver: real daemons, sockets, pages that move between the device, its
 * pinned pool and a disk; the kernels' source, run as C.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kernels/kern.h"
#include "tests/rig/daemon.h"
#include "tests/rig/mirror.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_cuda.h"

#define VOCAB	2048u
#define N_PARTS 4u /* system, two chunks, the question */

#define N_QUESTIONS 8
#define N_HOG	    64u /* parts */

static struct rig_question questions[N_QUESTIONS];
static char image[64], lost[80];

/* ---- daemons ------------------------------------------------------------------- */

struct setup {
	int on_device;
	const char *model, *math;
	const char *memory, *host, *disk;
	const char *more; /* lines of [kvd] */
};

static struct rig_daemon *start(struct kvc **c, struct setup s)
{
	char conf[4096], device[2048] = "";
	struct rig_daemon *d;

	if (s.on_device)
		snprintf(device, sizeof(device),
			 "device = cuda\ncuda_library = %s\n"
			 "cublas_library = %s\ncuda_image = %s\n"
			 "host_memory = %s\n%s",
			 rig_cuda_path(), rig_cuda_path(), image,
			 s.host ? s.host : "8M", s.more ? s.more : "");
	snprintf(conf, sizeof(conf),
		 "%s[model m]\npath = %s/models/%s.gguf\nmath = %s\n"
		 "gate = no\npage_tokens = 32\npage_layers = 2\n"
		 "[tenant t]\nuid = %u\nmemory = %s\ndisk = %s\n",
		 device, rig_data_dir(), s.model ? s.model : "rag-draft",
		 s.math ? s.math : "f32", getuid(), s.memory ? s.memory : "8M",
		 s.disk ? s.disk : "64M");
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	*c = rig_join(d->socket);
	return d;
}

static void stop(struct rig_daemon *d, struct kvc *c)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

struct answer {
	char text[128];
	float logits[VOCAB];
	struct kv_gen_stats st;
};

/* Question q with chunks in order a, b. */
static struct kvc_generate request(struct kvc_part p[N_PARTS], int q, int a,
				   int b)
{
	const struct rig_question *x = &questions[q];

	p[0] = x->parts[0];
	p[1] = x->parts[1 + a];
	p[2] = x->parts[1 + b];
	p[3] = x->parts[x->n_parts - 1];
	return (struct kvc_generate){ .parts = p,
				      .n_parts = N_PARTS,
				      .flags = KV_GEN_LOGITS |
					       KV_GEN_IGNORE_EOS,
				      .max_tokens = 4,
				      .sqe_flags = KV_SQE_WAIT };
}

static int ask(struct kvc *c, const struct kvc_generate *r, struct answer *out)
{
	struct kvc_gen *g = NULL;
	const int ret = kvc_generate(c, r, &g);

	if (ret >= 0) {
		snprintf(out->text, sizeof(out->text), "%s", kvc_gen_text(g));
		ck_assert_uint_eq(kvc_gen_n_logits(g), VOCAB);
		memcpy(out->logits, kvc_gen_logits(g), sizeof(out->logits));
		out->st = *kvc_gen_stats(g);
	}
	kvc_generate_free(c, g);
	return ret;
}

/* The same text, and logits off by at most bound of their spread. */
static void same(const struct answer *x, const struct answer *y, double bound)
{
	double sum = 0, sq = 0, most = 0;

	ck_assert_str_eq(x->text, y->text);
	for (uint32_t i = 0; i < VOCAB; i++) {
		const double d =
			fabs((double)x->logits[i] - (double)y->logits[i]);

		sum += (double)x->logits[i];
		sq += (double)x->logits[i] * (double)x->logits[i];
		most = d > most || isnan(d) ? d : most;
	}
	sum /= VOCAB;
	ck_assert_double_lt(most / sqrt(sq / VOCAB - sum * sum), bound);
}

/* ---- hosted models --------------------------------------------------------------- */

/* Chunks at two places, a prefix that is there, blend, nothing reused. */
START_TEST(answers_are_those_of_the_cpu)
{
	struct kvc_part p[N_PARTS];
	struct rig_daemon *d[2];
	struct answer x[2][5];
	struct kvc *c[2];

	for (int i = 0; i < 2; i++) {
		struct kvc_generate r;

		d[i] = start(&c[i], (struct setup){ .on_device = i });
		r = request(p, 0, 0, 1);
		ck_assert_int_eq(ask(c[i], &r, &x[i][0]), 4);
		ck_assert_int_eq(ask(c[i], &r, &x[i][1]), 4);
		r = request(p, 0, 1, 0);
		ck_assert_int_eq(ask(c[i], &r, &x[i][2]), 4);
		r.repair = KV_REPAIR_BLEND;
		r.repair_permille = 300;
		ck_assert_int_eq(ask(c[i], &r, &x[i][3]), 4);
		r.repair = 0;
		r.flags |= KV_GEN_NO_REUSE;
		r.temperature = 0.9f;
		r.top_p = 0.95f;
		r.seed = 11;
		ck_assert_int_eq(ask(c[i], &r, &x[i][4]), 4);
		stop(d[i], c[i]);
	}
	for (int k = 0; k < 5; k++) {
		same(&x[0][k], &x[1][k], 1e-4);
		ck_assert_uint_eq(x[0][k].st.n_prefix, x[1][k].st.n_prefix);
		ck_assert_uint_eq(x[0][k].st.n_chunk, x[1][k].st.n_chunk);
		ck_assert_uint_eq(x[0][k].st.n_repaired, x[1][k].st.n_repaired);
	}
	ck_assert_uint_gt(x[1][1].st.n_chunk, 0);
	ck_assert_uint_gt(x[1][1].st.n_prefix, 0);
	ck_assert_uint_gt(x[1][3].st.n_repaired, 0);
	/* the same request twice: the same bits */
	ck_assert(!memcmp(x[1][0].logits, x[1][1].logits,
			  sizeof(x[1][0].logits)));
}
END_TEST

START_TEST(small_steps)
{
	struct kvc_part p[N_PARTS];
	struct kvc_generate r;
	struct rig_daemon *d;
	static struct answer x[2];
	struct kvc *c;

	d = start(&c,
		  (struct setup){ .on_device = 1,
				  .more = "prefill_slice = 16\nbatch = 1\n" });
	r = request(p, 0, 0, 1);
	ck_assert_int_eq(ask(c, &r, &x[0]), 4);
	r = request(p, 0, 1, 0);
	r.repair = KV_REPAIR_BLEND;
	r.repair_permille = 300;
	ck_assert_int_eq(ask(c, &r, &x[1]), 4);
	stop(d, c);
}
END_TEST

START_TEST(bf16_on_tensor_cores)
{
	struct kvc_part p[N_PARTS];
	struct kvc_generate r;
	struct rig_daemon *d;
	struct answer x[2];
	struct kvc *c;

	for (int i = 0; i < 2; i++) {
		d = start(&c, (struct setup){ .on_device = i,
					      .model = "rag-mini",
					      .math = "bf16" });
		r = request(p, 0, 0, 1);
		ck_assert_int_eq(ask(c, &r, &x[i]), 4);
		stop(d, c);
	}
	same(&x[0], &x[1], 0.1);
}
END_TEST

/* Prompts that begin like others, up to the middle of their part: what is found, in one
 * segment or several, gives the bits of what is computed whole. */
START_TEST(a_found_prefix_changes_nothing)
{
	enum { N = 660 };
	static const char *const math[] = { "f32", "bf16" };
	static const uint32_t shared[] = { 0, 100, 330, 609 };
	static const uint32_t found[] = { 0, 96, 320, 608 };
	static struct answer x[4], whole;
	uint32_t tokens[N];
	struct kvc_part p[2] = {
		{ .kind = KV_PART_TOKENS, .tokens = tokens, .n_tokens = N },
		questions[0].parts[questions[0].n_parts - 1]
	};
	struct kvc_generate r = { .parts = p,
				  .n_parts = 2,
				  .flags = KV_GEN_LOGITS | KV_GEN_IGNORE_EOS,
				  .max_tokens = 4,
				  .sqe_flags = KV_SQE_WAIT };
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){ .on_device = 1, .math = math[_i] });
	for (uint32_t i = 0; i < N; i++)
		tokens[i] = 100 + i * 7919 % 1500;
	for (uint32_t k = 0; k < 4; k++) {
		for (uint32_t i = shared[k]; k && i < N; i++)
			tokens[i] = 100 + (i * 7919 + k) % 1500;
		r.flags = KV_GEN_LOGITS | KV_GEN_IGNORE_EOS;
		ck_assert_int_eq(ask(c, &r, &x[k]), 4);
		ck_assert_uint_eq(x[k].st.n_prefix, found[k]);
		r.flags |= KV_GEN_NO_REUSE;
		ck_assert_int_eq(ask(c, &r, &whole), 4);
		ck_assert_uint_eq(whole.st.n_prefix, 0);
		ck_assert_str_eq(whole.text, x[k].text);
		ck_assert_msg(!memcmp(whole.logits, x[k].logits,
				      sizeof(whole.logits)),
			      "prompt %u", k);
	}
	stop(d, c);
}
END_TEST

static uint64_t metric_of(struct kvc *c, const char *name)
{
	char at_line[64];
	const char *at;
	char *text;
	uint64_t n;

	ck_assert_int_ge(kvc_query(c, "metrics", "", &text), 0);
	snprintf(at_line, sizeof(at_line), "\n%s ", name);
	at = strstr(text, at_line);
	ck_assert_ptr_nonnull(at);
	n = strtoull(at + strlen(at_line), NULL, 10);
	free(text);
	return n;
}

/* Three that decode together, for different times: the bits of kernel by kernel. */
START_TEST(graphs_change_nothing)
{
	float logits[2][3][VOCAB];
	struct kvc_part p[3][N_PARTS];
	struct kvc_gen *g[3];
	struct rig_daemon *d;
	struct kvc *c;

	for (int i = 0; i < 2; i++) {
		d = start(&c, (struct setup){ .on_device = 1,
					      .math = "bf16",
					      .more = i ? "cuda_graphs = no\n"
							: "" });
		for (int k = 0; k < 3; k++) {
			struct kvc_generate r = request(p[k], k, 0, 1);

			r.max_tokens = 6 + 4 * (uint32_t)k;
			ck_assert_int_eq(kvc_generate_start(c, &r, &g[k]), 0);
		}
		for (int k = 0; k < 3; k++) {
			ck_assert_int_eq(kvc_generate_wait(c, g[k], 60000),
					 6 + 4 * k);
			memcpy(logits[i][k], kvc_gen_logits(g[k]),
			       sizeof(logits[i][k]));
			kvc_generate_free(c, g[k]);
		}
		if (i)
			ck_assert_uint_eq(
				metric_of(c, "kvd_device_graph_steps_total"),
				0);
		else
			ck_assert_uint_gt(
				metric_of(c, "kvd_device_graph_steps_total"),
				3);
		stop(d, c);
	}
	ck_assert(!memcmp(logits[0], logits[1], sizeof(logits[0])));
}
END_TEST

/* Prompts by wgmma, where the trial at start says so; by mma: the same bits. */
START_TEST(wgmma_changes_nothing)
{
	static const char *const more[] = { "", "wide_attention = no\n", "" };
	static struct answer x[3];
	struct kvc_part p[N_PARTS];
	struct kvc_generate r = request(p, 1, 0, 1);
	struct rig_daemon *d;
	struct kvc *c;

	for (int i = 0; i < 3; i++) {
		uint64_t n;

		if (i == 2) /* the device's wgmma rounds otherwise */
			ck_assert_int_eq(setenv("FAKE_WGMMA", "other", 1), 0);
		d = start(&c, (struct setup){ .on_device = 1,
					      .math = "bf16",
					      .more = more[i] });
		ck_assert_int_eq(ask(c, &r, &x[i]), 4);
		n = metric_of(c, "kvd_device_wide_launches_total");
		ck_assert_int_eq(n > 0, i == 0);
		stop(d, c);
		ck_assert(
			!memcmp(x[i].logits, x[0].logits, sizeof(x[0].logits)));
	}
	ck_assert_int_eq(unsetenv("FAKE_WGMMA"), 0);
}
END_TEST

/* Frames for less than what is kept: pages go to the pool, to disk, and come back. */
START_TEST(pages_that_move)
{
	struct kvc_part p[N_PARTS];
	static struct answer first[N_QUESTIONS], again;
	struct kvc_generate r;
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){
			      .on_device = 1, .memory = "1M", .host = "1M" });
	for (int turn = 0; turn < 2; turn++)
		for (int i = 0; i < N_QUESTIONS; i++) {
			r = request(p, i, 0, 1);
			r.max_tokens = 1;
			ck_assert_int_eq(ask(c, &r, turn ? &again : &first[i]),
					 1);
			if (!turn)
				continue;
			ck_assert(!memcmp(again.logits, first[i].logits,
					  sizeof(again.logits)));
		}
	ck_assert_uint_gt(rig_counter(c, "pages", NULL, "read_total"), 0);
	ck_assert_uint_eq(rig_counter(c, "pages", NULL, "lost"), 0);
	stop(d, c);
}
END_TEST

/* The same folder again, with or without the device. */
static struct kvc *again(struct rig_daemon *d, const char *device)
{
	char text[8192], *at;
	size_t n;
	FILE *f = fopen(d->conf, "r+");

	ck_assert_ptr_nonnull(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	at = strstr(text, "\ndevice = ");
	ck_assert_ptr_nonnull(at);
	memcpy(at + 10, device, 4);
	rewind(f);
	ck_assert_uint_eq(fwrite(text, 1, n, f), n);
	ck_assert_int_eq(fclose(f), 0);
	ck_assert_int_eq(rig_daemon_restart(d), 0);
	return rig_join(d->socket);
}

/* What lies on disk is found by who computes alike, and by nobody else. */
START_TEST(a_restart_here_and_there)
{
	static const char *const devices[] = { "cuda", "cpu ", "cuda" };
	struct kvc_part p[N_PARTS];
	struct answer first, next;
	struct kvc_generate r;
	struct rig_daemon *d;
	struct kvc *c;

	d = start(&c, (struct setup){ .on_device = 1 });
	r = request(p, 0, 0, 1);
	ck_assert_int_eq(ask(c, &r, &first), 4);
	for (int i = 0; i < 3; i++) {
		kvc_close(c);
		ck_assert_int_eq(rig_daemon_stop(d), 0);
		c = again(d, devices[i]);
		ck_assert_int_eq(ask(c, &r, &next), 4);
		same(&next, &first, 1e-4);
		if (i == 1)
			ck_assert_uint_eq(next.st.n_prefix, 0);
		else
			ck_assert_uint_gt(next.st.n_prefix, 0);
	}
	ck_assert(!memcmp(next.logits, first.logits, sizeof(next.logits)));
	stop(d, c);
}
END_TEST

START_TEST(what_is_not_done_there_is_refused)
{
	static uint32_t many[4000];
	struct kvc_part p[N_PARTS], whole = { .kind = KV_PART_TOKENS,
					      .tokens = many,
					      .n_tokens = 900 };
	const struct kv_geometry odd = {
		.n_layers = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 72
	};
	struct kvc_generate r;
	struct rig_daemon *d;
	struct answer x;
	struct kvc *c;

	d = start(&c, (struct setup){ .on_device = 1,
				      .model = "rag-mini",
				      .memory = "2M" });
	r = request(p, 0, 0, 1);
	r = request(p, 0, 0, 1);
	r.parts = &whole;
	r.n_parts = 1;
	for (uint32_t i = 0; i < 900; i++)
		many[i] = 300 + i;
	ck_assert_int_eq(ask(c, &r, &x), -ENOSPC);
	ck_assert_int_eq(kvc_geometry(c, &odd), -ENOTSUP);
	r = request(p, 0, 0, 1);
	ck_assert_int_eq(ask(c, &r, &x), 4);
	stop(d, c);
}
END_TEST

/* Of many chunks, each at its own distance: there is not as much memory beside the frames. */
static struct kvc_generate hog(struct kvc_part p[N_HOG], uint32_t *t)
{
	for (uint32_t i = 0; i < N_HOG; i++) {
		const int last = i + 1 == N_HOG;

		p[i] = (struct kvc_part){ .kind = KV_PART_TOKENS,
					  .tokens = t + 2 * i,
					  .n_tokens = last ? 120 : 2,
					  .flags = last ? 0 : KV_PART_REUSE };
	}
	for (uint32_t i = 0; i < 2 * N_HOG + 120; i++)
		t[i] = 300 + i;
	return (struct kvc_generate){ .parts = p,
				      .n_parts = N_HOG,
				      .flags = KV_GEN_LOGITS,
				      .max_tokens = 1,
				      .sqe_flags = KV_SQE_WAIT };
}

/* A step has no memory for all: who needs it fails, the others of the step do not. */
START_TEST(too_much_for_one)
{
	static uint32_t tokens[2 * N_HOG + 120];
	struct kvc_part p[N_PARTS], many[N_HOG];
	struct kvc_gen *g[2];
	struct kvc_generate r;
	struct rig_daemon *d;
	struct answer x;
	struct kvc *c;

	ck_assert_int_eq(setenv("FAKE_CUDA", "18,64", 1), 0);
	d = start(&c, (struct setup){ .on_device = 1, .memory = "12M" });
	r = hog(many, tokens);
	ck_assert_int_eq(ask(c, &r, &x),
			 -ENOSPC); /* its chunks are there now */
	for (int i = 0; i < 3; i++) {
		struct kvc_generate small = request(p, i, 0, 1);

		small.max_tokens = 80;
		ck_assert_int_eq(kvc_generate_start(c, &small, &g[0]), 0);
		usleep(20000);
		ck_assert_int_eq(kvc_generate_start(c, &r, &g[1]), 0);
		ck_assert_int_eq(kvc_generate_wait(c, g[1], 60000), -ENOSPC);
		ck_assert_int_eq(kvc_generate_wait(c, g[0], 60000), 80);
		kvc_generate_free(c, g[0]);
		kvc_generate_free(c, g[1]);
	}
	stop(d, c);
	ck_assert_int_eq(unsetenv("FAKE_CUDA"), 0);
}
END_TEST

/* The device goes: its requests get -ENODEV, the daemon answers and stops in order. */
START_TEST(a_lost_device)
{
	struct kvc_part p[N_PARTS];
	struct kvc_generate r;
	struct rig_daemon *d;
	struct answer x;
	struct kvc *c;
	FILE *f;

	ck_assert_int_eq(setenv("FAKE_CUDA_LOST", lost, 1), 0);
	d = start(&c, (struct setup){ .on_device = 1 });
	r = request(p, 0, 0, 1);
	ck_assert_int_eq(ask(c, &r, &x), 4);
	f = fopen(lost, "w");
	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(fclose(f), 0);
	ck_assert_int_eq(ask(c, &r, &x), -ENODEV);
	r = request(p, 1, 0, 1);
	ck_assert_int_eq(ask(c, &r, &x), -ENODEV);
	ck_assert_int_eq(kvc_nop(c), 0);
	stop(d, c);
	ck_assert_int_eq(unlink(lost), 0);
	ck_assert_int_eq(unsetenv("FAKE_CUDA_LOST"), 0);
}
END_TEST

/* ---- the attention service ----------------------------------------------------------- */

struct calls {
	struct kvc *c;
	struct mirror_shape m;
	struct rng r;
	struct kv_attend_item *it;
	char *q, *k, *v, *o, *want;
};

static void put(struct calls *a, struct mirror *s, uint32_t n)
{
	for (uint32_t layer = 0; layer < a->m.g.n_layers; layer++) {
		mirror_fill(&a->m, &a->r, a->k, n * a->m.kv_row / a->m.es);
		mirror_fill(&a->m, &a->r, a->v, n * a->m.kv_row / a->m.es);
		*a->it =
			(struct kv_attend_item){ .seq = (uint32_t)s->seq,
						 .n_tokens = n,
						 .pos = s->n,
						 .q_off = KV_NO_OFF,
						 .o_off = KV_NO_OFF,
						 .k_off = kvc_off(a->c, a->k),
						 .v_off = kvc_off(a->c, a->v) };
		ck_assert_int_eq(kvc_append(a->c, a->it, 1, layer, 0), 0);
		mirror_put(&a->m, s, layer, n, a->k, a->v);
	}
	s->n += n;
}

/* The last n rows at each layer. */
static void see(struct calls *a, struct mirror *s, uint32_t n)
{
	const size_t elems = n * a->m.q_row / a->m.es;

	for (uint32_t layer = 0; layer < a->m.g.n_layers; layer++) {
		mirror_fill(&a->m, &a->r, a->q, elems);
		*a->it = (struct kv_attend_item){ .seq = (uint32_t)s->seq,
						  .n_tokens = n,
						  .pos = s->n - n,
						  .q_off = kvc_off(a->c, a->q),
						  .o_off = kvc_off(a->c, a->o),
						  .k_off = KV_NO_OFF,
						  .v_off = KV_NO_OFF };
		ck_assert_int_eq(kvc_attend(a->c, a->it, 1, layer, 0), 0);
		mirror_attend(&a->m, s, layer, s->n, s->n - n, n, a->q,
			      a->want);
		for (size_t i = 0; i < elems; i++) {
			float x, y;

			kern_to_f32(a->m.g.type, a->o + i * a->m.es, &x, 1);
			kern_to_f32(a->m.g.type, a->want + i * a->m.es, &y, 1);
			ck_assert_float_eq_tol(x, y, 0.02f);
		}
	}
}

static struct mirror fork_of(struct calls *a, const struct mirror *s)
{
	struct mirror f;

	mirror_copy(&a->m, &f, s);
	f.seq = kvc_seq_fork(a->c, s->seq);
	ck_assert_int_gt(f.seq, 0);
	return f;
}

/* Appends, forks inside a tile, hidden tokens, truncation: near the same kernels' answer. */
START_TEST(attention_calls)
{
	struct calls a = { .r = { 7 } };
	struct mirror s, f;
	struct rig_daemon *d;

	d = start(&a.c, (struct setup){ .on_device = 1 });
	a.m.g = (struct kv_geometry){ .n_layers = 2,
				      .n_heads = 4,
				      .n_kv_heads = 2,
				      .head_dim = 64,
				      .type = KERN_BF16,
				      .rotary = KERN_ROPE_HALVES,
				      .theta = 10000 };
	a.m.es = 2;
	a.m.kv_row = 2 * 64 * 2;
	a.m.q_row = 4 * 64 * 2;
	a.m.handle = kvc_geometry(a.c, &a.m.g);
	ck_assert_int_gt(a.m.handle, 0);
	a.it = kvc_alloc(a.c, sizeof(*a.it));
	a.q = kvc_alloc(a.c, 100 * a.m.q_row);
	a.o = kvc_alloc(a.c, 100 * a.m.q_row);
	a.k = kvc_alloc(a.c, 100 * a.m.kv_row);
	a.v = kvc_alloc(a.c, 100 * a.m.kv_row);
	a.want = malloc(100 * a.m.q_row);
	mirror_new(&a.m, &s);
	s.seq = kvc_seq_new(a.c, a.m.handle, MIRROR_TOKENS);
	ck_assert_int_gt(s.seq, 0);
	put(&a, &s, 70);
	see(&a, &s, 30);
	f = fork_of(&a, &s);
	put(&a, &f, 9); /* the head of a tile is copied */
	put(&a, &s, 3);
	see(&a, &f, 9);
	see(&a, &s, 1);
	ck_assert_int_eq(kvc_seq_skip(a.c, f.seq, 10, 45), 0);
	memset(f.skip + 10, 1, 35);
	see(&a, &f, 2);
	ck_assert_int_eq(kvc_seq_truncate(a.c, s.seq, 40), 0);
	s.n = 40;
	put(&a, &s, 1);
	see(&a, &s, 20);
	mirror_free(&s);
	mirror_free(&f);
	free(a.want);
	stop(d, a.c);
}
END_TEST

static void setup(void)
{
	FILE *f;

	snprintf(image, sizeof(image), "/tmp/kvd-gpu-serve-%d", (int)getpid());
	snprintf(lost, sizeof(lost), "%s.lost", image);
	f = fopen(image, "w");
	ck_assert_ptr_nonnull(f);
	fputs("the fake takes any image\n", f);
	ck_assert_int_eq(fclose(f), 0);
	kern_init(KERN_ISA_AMX);
	rig_questions_load(questions, N_QUESTIONS);
}

static void teardown(void)
{
	rig_questions_free(questions, N_QUESTIONS);
	(void)unlink(image);
}

int main(void)
{
	Suite *s = suite_create("gpu_serve");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, answers_are_those_of_the_cpu);
	tcase_add_test(t, small_steps);
	tcase_add_test(t, bf16_on_tensor_cores);
	tcase_add_loop_test(t, a_found_prefix_changes_nothing, 0, 2);
	tcase_add_test(t, graphs_change_nothing);
	tcase_add_test(t, wgmma_changes_nothing);
	tcase_add_test(t, pages_that_move);
	tcase_add_test(t, a_restart_here_and_there);
	tcase_add_test(t, what_is_not_done_there_is_refused);
	tcase_add_test(t, too_much_for_one);
	tcase_add_test(t, a_lost_device);
	tcase_add_test(t, attention_calls);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
