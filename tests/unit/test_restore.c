/*
 * test_restore.c - a hit on disk computes its first layers before its last are read
 *
 * Pages are read one after the other, and the disk is held: a read ends when the test
 * lets it (else its completion is to be repeated, EAGAIN). So what was computed
 * meanwhile did not need the others.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "io/fault.h"
#include "kvd/base/stat.h"
#include "kvd/mem/stores.h"
#include "kvd/serve/restore.h"
#include "libkvclient/kv_abi.h"
#include "tests/rig/rig_serve.h"

#define N_PROMPT 700u /* 6 page rows of 128 tokens, 4 layers */
#define N_PAGES	 24u
#define N_LAYERS 4u
#define MEMORY	 (8u << 20)
#define N_OTHER	 980u /* 32 pages: all of memory; twice that: 64 */

/* Pages of one layer, 256 KiB: 6 MiB a prompt, two do not fit into memory. */
static struct rig_serve *open_rig(uint32_t slice, uint64_t memory)
{
	struct rig_serve *r = rig_serve_open((struct rig_serve_options){
		.memory_bytes = memory,
		.n_layers = N_LAYERS,
		.n_kv_heads = 4,
		.head_dim = 64,
		.page_tokens = 128,
		.page_layers = 1,
		.prefill_slice = slice,
	});

	r->conf.recompute = 0;
	stores_set_window(r->serve->stores, 1);
	return r;
}

static struct rig_gen *start(struct rig_serve *r, const uint32_t *t, uint32_t n)
{
	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, t, n, 0);
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	return g;
}

static struct rig_gen *run(struct rig_serve *r, const uint32_t *t, uint32_t n)
{
	struct rig_gen *g = start(r, t, n);

	ck_assert(rig_serve_until(r, &g->told));
	return g;
}

static void same(const struct rig_gen *a, const struct rig_gen *b)
{
	ck_assert_int_ge(a->ret, 0);
	ck_assert_int_eq(a->ret, b->ret);
	for (int i = 0; i < a->ret; i++) {
		ck_assert_uint_eq(a->tokens[i].id, b->tokens[i].id);
		ck_assert(!memcmp(&a->tokens[i].logprob, &b->tokens[i].logprob,
				  sizeof(float)));
	}
}

/* Another prompt takes all frames, and gives them back. */
static void push_out(struct rig_serve *r, uint32_t n)
{
	uint32_t *other = rig_ids(n, n);

	struct rig_gen *g = rig_gen_new();

	rig_gen_part(g, other, n, 0);
	g->gen.flags |= SERVE_GEN_NO_REUSE;
	ck_assert_int_eq(rig_gen_start(g, r->session), 0);
	ck_assert(rig_serve_until(r, &g->told));
	ck_assert_int_eq(g->ret, 8);
	free(g);
	free(other);
}

static struct rig_gen *run_and_push_out(struct rig_serve *r, const uint32_t *t)
{
	struct rig_gen *first = run(r, t, N_PROMPT);

	ck_assert_int_gt(first->ret, 0);
	push_out(r, N_OTHER);
	return first;
}

static const struct gen *gen_of(const struct rig_gen *g)
{
	return g->gen.priv;
}

/* Start with the disk held; one read after the other until the engine waits. */
static struct rig_gen *start_held(struct rig_serve *r, const uint32_t *t,
				  uint32_t n_pages)
{
	struct rig_gen *g;

	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EAGAIN);
	g = start(r, t, N_PROMPT);
	for (int i = 0; i < 100;) { /* all stand in line, by urgency */
		rig_serve_turn(r);
		i = stores_n_busy(r->serve->stores, 0) < n_pages ? 0 : i + 1;
	}
	for (uint32_t i = 1;
	     !g->told && (!gen_of(g)->restore || !gen_of(g)->restore->waiting);
	     i++) {
		rig_serve_turn(r);
		if (i % 32 == 0 && !g->told && gen_of(g)->state == GEN_WANT)
			kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 2,
				      EAGAIN);
	}
	ck_assert(!g->told);
	return g;
}

/* Prompt b finds something of prompt a on disk. */
static void layers_come_later(const uint32_t *a, const uint32_t *b,
			      uint32_t n_pages, uint32_t slice)
{
	struct rig_serve *r = open_rig(slice, MEMORY);
	struct rig_gen *first = run_and_push_out(r, a), *back, *cold;

	back = start_held(r, b, n_pages);
	/* two layers or so are computed, and pages are still on disk */
	ck_assert_uint_gt(gen_of(back)->restore->n_ahead, 0);
	ck_assert_uint_lt(gen_of(back)->restore->n_in, N_LAYERS);
	for (int i = 0; i < 50; i++)
		rig_serve_turn(r);
	ck_assert(!back->told && !back->n_out);
	kio_fault_disarm();
	ck_assert(rig_serve_until(r, &back->told));
	ck_assert_uint_gt(back->gen.stats.n_ahead, 0);
	ck_assert_uint_lt(back->gen.stats.n_ahead, N_LAYERS);
	ck_assert_uint_gt(back->gen.stats.n_read_back, 0);
	rig_serve_close(r);
	r = open_rig(slice, MEMORY);
	cold = run(r, b, N_PROMPT);
	ck_assert_uint_eq(cold->gen.stats.n_ahead, 0);
	same(cold, back);
	rig_serve_close(r);
	free(first);
	free(back);
	free(cold);
}

START_TEST(first_layers_before_the_last_pages)
{
	uint32_t *t = rig_ids(N_PROMPT, 5);

	layers_come_later(t, t, N_PAGES, 512);
	free(t);
}
END_TEST

/* Half is found, in 12 pages; of the rest only the first slice goes with them. */
START_TEST(the_rest_is_computed_in_slices)
{
	uint32_t *a = rig_ids(N_PROMPT, 5), *b = rig_ids(N_PROMPT, 12);

	memcpy(b, a, 400 * sizeof(*a));
	layers_come_later(a, b, 12, 64);
	free(a);
	free(b);
}
END_TEST

#define N_CHUNKS 2u
#define CHUNK	 130u /* two page rows */
#define N_LOOK	 2u /* layers that a look needs */

static struct rig_gen *with_chunks(uint32_t *const *chunks, uint32_t repair,
				   uint32_t permille, uint32_t flags)
{
	struct rig_gen *g = rig_gen_new();

	for (uint32_t i = 0; i < N_CHUNKS; i++)
		rig_gen_part(g, chunks[i], CHUNK, SERVE_PART_REUSE);
	rig_gen_part(g, chunks[0], 9, 0);
	g->gen.repair = repair;
	g->gen.repair_permille = permille;
	g->gen.flags |= flags;
	return g;
}

/*
 * Chunks on disk: the look, then the repair, layer by layer as they come. 1: it was seen to
 * wait for a page of a later layer; on a busy machine all may be there before.
 */
static int load_and_repair(uint32_t repair, uint32_t permille, uint32_t flags)
{
	uint32_t *chunks[N_CHUNKS];
	struct rig_serve *r = open_rig(64, MEMORY); /* looks take two steps */
	struct rig_gen *first, *back;
	int waited = 0;

	for (uint32_t i = 0; i < N_CHUNKS; i++)
		chunks[i] = rig_ids(CHUNK, 40 + i);
	first = with_chunks(chunks, repair, permille, flags);
	ck_assert_int_eq(rig_gen_start(first, r->session), 0);
	ck_assert(rig_serve_until(r, &first->told));
	ck_assert_int_gt(first->ret, 0);
	push_out(r, N_OTHER);
	back = with_chunks(chunks, repair, permille, flags);
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EAGAIN);
	ck_assert_int_eq(rig_gen_start(back, r->session), 0);
	for (uint32_t i = 1; !back->told; i++) {
		const struct restore *x;

		rig_serve_turn(r);
		x = back->told ? NULL : gen_of(back)->restore;
		/* the look is over, the step is under way */
		waited = x && x->waiting && x->n_in >= N_LOOK;
		if (waited)
			break;
		if (i % 32 == 0 && !back->told &&
		    (gen_of(back)->state == GEN_WANT || (x && x->waiting)))
			/* one more read */
			kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 2,
				      EAGAIN);
	}
	ck_assert(!waited || !back->n_out);
	kio_fault_disarm();
	ck_assert(rig_serve_until(r, &back->told));
	ck_assert(!waited || back->gen.stats.n_ahead);
	ck_assert_uint_gt(back->gen.stats.n_repaired, 0);
	ck_assert_uint_gt(back->gen.stats.n_read_back, 0);
	same(first, back);
	serve_check(r->serve);
	rig_serve_close(r);
	for (uint32_t i = 0; i < N_CHUNKS; i++)
		free(chunks[i]);
	free(first);
	free(back);
	return waited;
}

static void repaired_while_loading(uint32_t repair, uint32_t permille,
				   uint32_t flags)
{
	int tries = 0;

	while (!load_and_repair(repair, permille, flags))
		ck_assert_int_lt(++tries, 10);
}

START_TEST(chunks_are_repaired_while_they_load)
{
	repaired_while_loading(KV_REPAIR_FIRST, 200, 0);
	repaired_while_loading(KV_REPAIR_BLEND, 200, 0);
	repaired_while_loading(KV_REPAIR_BLEND, 1, 0);
	repaired_while_loading(KV_REPAIR_BLEND, 200, SERVE_GEN_FOCUS);
}
END_TEST

START_TEST(others_go_on_meanwhile)
{
	struct rig_serve *r = open_rig(512, 2 * MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 6), *few = rig_ids(20, 7);
	struct rig_gen *first = run(r, t, N_PROMPT), *back, *small;
	uint32_t had;

	push_out(r, 2 * N_OTHER);
	small = rig_gen_new();
	rig_gen_part(small, few, 20, 0);
	small->gen.max_tokens = 900; /* 32 pages, and what is back has 28 */
	ck_assert_int_eq(rig_gen_start(small, r->session), 0);
	while (!small->n_out)
		rig_serve_turn(r);
	back = start_held(r, t, N_PAGES);
	ck_assert(!small->told);
	had = small->n_out;
	while (small->n_out == had) /* the disk is held, and so is an engine */
		rig_serve_turn(r);
	ck_assert(!back->told && !back->n_out);
	kio_fault_disarm();
	ck_assert(rig_serve_until(r, &small->told));
	ck_assert_int_eq(small->ret, 900);
	ck_assert(rig_serve_until(r, &back->told));
	same(first, back);
	rig_serve_close(r);
	free(first);
	free(back);
	free(small);
	free(few);
	free(t);
}
END_TEST

START_TEST(cancelled_while_the_engine_waits)
{
	struct rig_serve *r = open_rig(512, MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 8);
	struct rig_gen *first = run_and_push_out(r, t), *back, *again;

	back = start_held(r, t, N_PAGES);
	serve_cancel(r->session, &back->gen);
	ck_assert(rig_serve_until(r, &back->told)); /* the disk is held */
	ck_assert_int_eq(back->ret, -ECANCELED);
	kio_fault_disarm();
	again = run(r, t, N_PROMPT);
	same(first, again);
	rig_serve_close(r);
	free(first);
	free(back);
	free(again);
	free(t);
}
END_TEST

/* A page of a late layer cannot be read when the first are computed: all again. */
START_TEST(a_late_page_is_lost)
{
	struct rig_serve *r = open_rig(512, MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 9);
	struct rig_gen *first = run_and_push_out(r, t), *back;

	back = start_held(r, t, N_PAGES);
	kio_fault_arm(KIO_FAULT_FOREVER, "uring.read", 1, EIO);
	while (gen_of(back)->restore)
		rig_serve_turn(r);
	kio_fault_disarm();
	ck_assert(rig_serve_until(r, &back->told));
	ck_assert_uint_lt(back->gen.stats.n_prefix, N_PROMPT / 2);
	same(first, back);
	rig_serve_close(r);
	free(first);
	free(back);
	free(t);
}
END_TEST

/* Any read is the one that fails, for good. */
START_TEST(any_page_is_lost)
{
	struct rig_serve *r = open_rig(512, MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 10);
	struct rig_gen *first, *back;

	for (uint64_t n = 1; n <= 24; n += 5) {
		first = run_and_push_out(r, t);
		kio_fault_arm(KIO_FAULT_ONCE, "uring.read", n, EIO);
		back = run(r, t, N_PROMPT);
		kio_fault_disarm();
		same(first, back);
		free(first);
		free(back);
	}
	rig_serve_close(r);
	free(t);
}
END_TEST

START_TEST(whole_if_told_so)
{
	struct rig_serve *r = open_rig(512, MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 11);
	struct rig_gen *first, *back;

	r->conf.restore_layers = 0;
	first = run_and_push_out(r, t);
	back = run(r, t, N_PROMPT);
	ck_assert_uint_eq(back->gen.stats.n_ahead, 0);
	ck_assert_uint_gt(back->gen.stats.n_read_back, 0);
	same(first, back);
	rig_serve_close(r);
	free(first);
	free(back);
	free(t);
}
END_TEST

static uint64_t counter(const char *name)
{
	return stat_read(stat_get(STAT_COUNTER, name, "", "tenant", "t0", 1));
}

START_TEST(late_answers_are_counted)
{
	struct rig_serve *r = open_rig(512, MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 12);
	struct rig_gen *g[2];

	for (int i = 0; i < 2; i++) {
		g[i] = rig_gen_new();
		rig_gen_part(g[i], t, N_PROMPT, 0);
		g[i]->gen.deadline_ms = i ? 1 : 3600000;
		g[i]->gen.flags |= SERVE_GEN_NO_REUSE;
		ck_assert_int_eq(rig_gen_start(g[i], r->session), 0);
		ck_assert(rig_serve_until(r, &g[i]->told));
		ck_assert_uint_eq(counter("kvd_deadlines_missed_total"),
				  (uint64_t)i);
	}
	same(g[0], g[1]);
	rig_serve_close(r);
	free(g[0]);
	free(g[1]);
	free(t);
}
END_TEST

/* The disk is slow: of what is found nothing is read, unless there is time. */
START_TEST(slow_disks_are_not_waited_for)
{
	struct rig_serve *r = open_rig(512, MEMORY);
	uint32_t *t = rig_ids(N_PROMPT, 13);
	struct rig_gen *first = run_and_push_out(r, t), *back;

	r->conf.recompute = 1;
	r->tenant->serve->models[0].prefill = (struct rate){ 1e9, 1 };
	back = run(r, t, N_PROMPT);
	ck_assert_uint_eq(back->gen.stats.n_prefix, 0);
	ck_assert_uint_eq(back->gen.stats.n_read_back, 0);
	ck_assert_uint_eq(counter("kvd_hits_recomputed_total"), 1);
	ck_assert_uint_eq(counter("kvd_hits_loaded_total"), 0);
	same(first, back);
	rig_serve_close(r);
	free(first);
	free(back);
	free(t);
}
END_TEST

/* Of a model of n layers that has computed nothing yet. */
static double rows_per_s_of(uint32_t n_layers)
{
	struct rig_serve *r = rig_serve_open(
		(struct rig_serve_options){ .n_layers = n_layers });
	const double n = rate_per_s(&r->serve->models[0].prefill, 1e4);

	rig_serve_close(r);
	return n;
}

/*
 * Before the first step it is not known how fast a model computes. One that multiplies ten
 * times as much is not taken to be as fast: after a start its KV would be computed again.
 */
START_TEST(a_large_model_is_not_taken_for_a_small_one)
{
	const double few = rows_per_s_of(2), many = rows_per_s_of(20);

	ck_assert_msg(few > 9.99 * many && few < 10.01 * many,
		      "%g, %g rows a second", few, many);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("restore");
	TCase *t = tcase_create("restore");
	SRunner *sr;
	int failed;

	tcase_add_test(t, first_layers_before_the_last_pages);
	tcase_add_test(t, the_rest_is_computed_in_slices);
	tcase_add_test(t, chunks_are_repaired_while_they_load);
	tcase_add_test(t, others_go_on_meanwhile);
	tcase_add_test(t, cancelled_while_the_engine_waits);
	tcase_add_test(t, a_late_page_is_lost);
	tcase_add_test(t, any_page_is_lost);
	tcase_add_test(t, whole_if_told_so);
	tcase_add_test(t, late_answers_are_counted);
	tcase_add_test(t, slow_disks_are_not_waited_for);
	tcase_add_test(t, a_large_model_is_not_taken_for_a_small_one);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
