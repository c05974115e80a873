/*
 * test_attn.c - attn_layer() on its own: wide rows on small stacks, one item that
 * fails among others
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/serve/attn.h"
#include "tests/rig/rig_mem.h"

#ifdef __SANITIZE_THREAD__ /* its frames are larger */
#define STACK_BYTES (4096u << 10)
#else
#define STACK_BYTES (512u << 10)
#endif

static struct rig_mem *mem;
static struct segment_pool *pool;

static void setup(void)
{
	kern_init(KERN_ISA_AMX);
	mem = rig_mem_open((struct rig_mem_options){ .memory_bytes = 64 << 20,
						     .disk_bytes = 64 << 20 });
	ck_assert_int_eq(segment_pool_new(&pool, mem->pager, 64 << 20), 0);
}

static void teardown(void)
{
	segment_pool_free(pool);
	rig_mem_close(mem);
}

/* A sequence of n tokens of this shape, one layer, pinned whole. */
static void grown(struct seq *q, const struct attn_shape *g, uint32_t n,
		  struct page_run *run)
{
	struct kv_layout l = { .n_layers = 1,
			       .n_kv_heads = g->n_kv_heads,
			       .head_dim = g->head_dim,
			       .elem_bytes =
				       (uint32_t)kern_type_bytes(g->type) };
	struct seq_copy copy;

	ck_assert_int_eq(kv_layout_init(&l), 0);
	seq_init(q, pool, &l, 1024);
	ck_assert_int_eq(seq_grow(q, n, 0, &copy), 0);
	ck_assert_uint_eq(seq_runs(q, 0, n, UINT32_MAX, run, 1), 1);
	run->flags = PAGE_WRITE;
	ck_assert_int_eq(pager_reserve(mem->pager, run->n * l.page_bytes), 0);
	ck_assert_int_eq(rig_mem_want(mem, run, 1), 0);
}

static void done(struct seq *q, struct page_run *run)
{
	page_unpin(mem->pager, run, 1);
	pager_unreserve(mem->pager, run->n * q->layout.page_bytes);
	seq_fini(q);
}

static float value(uint32_t i)
{
	return (float)(i * 2654435761u >> 12) * 0x1p-20f - 0.5f;
}

static float *values(size_t n)
{
	float *f = malloc(n * sizeof(*f));

	ck_assert_ptr_nonnull(f);
	for (size_t i = 0; i < n; i++)
		f[i] = value((uint32_t)i);
	return f;
}

struct job {
	struct attn_item *items;
	uint32_t n;
	int ret;
};

static void *run_job(void *arg)
{
	struct job *j = arg;
	struct attn_scratch s;

	attn_scratch_init(&s);
	j->ret = attn_layer(NULL, NULL, &s, j->items, j->n, 0);
	attn_scratch_fini(&s);
	return NULL;
}

static int run_small(struct attn_item *items, uint32_t n)
{
	struct job j = { .items = items, .n = n };
	pthread_attr_t a;
	pthread_t t;

	ck_assert_int_eq(pthread_attr_init(&a), 0);
	ck_assert_int_eq(pthread_attr_setstacksize(&a, STACK_BYTES), 0);
	ck_assert_int_eq(pthread_create(&t, &a, run_job, &j), 0);
	ck_assert_int_eq(pthread_join(t, NULL), 0);
	(void)pthread_attr_destroy(&a); /* cannot fail */
	return j.ret;
}

/* The widest geometry there may be; the first token attends to itself only. */
START_TEST(rows_of_any_width_fit_the_stack)
{
	const struct attn_shape g = { .type = KERN_F32,
				      .n_heads = 256,
				      .n_kv_heads = 256,
				      .head_dim = 256,
				      .scale = 0.1f,
				      .rope = { .kind = KERN_ROPE_HALVES,
						.n_rot = 256,
						.theta = 10000,
						.scale = 1 } };
	const size_t row = 256 * 256;
	float *k = values(4 * row), *v = values(4 * row), *o = values(4 * row);
	struct page_run run;
	struct seq q;

	grown(&q, &g, 4, &run);
	for (size_t i = 0; i < 4 * row; i++)
		v[i] = -v[i];
	struct attn_item it = { .shape = &g,
				.seq = &q,
				.n_rows = 4,
				.in = KERN_F32,
				.q = k,
				.k = k,
				.v = v,
				.o = o };

	ck_assert_int_eq(run_small(&it, 1), 0);
	ck_assert(!memcmp(o, v, row * sizeof(*o)));
	done(&q, &run);
	free(k);
	free(v);
	free(o);
}
END_TEST

START_TEST(one_that_fails_takes_no_other_with_it)
{
	const struct attn_shape g = { .type = KERN_F32,
				      .n_heads = 2,
				      .n_kv_heads = 1,
				      .head_dim = 32,
				      .scale = 0.1f };
	float *x = values(64 * 64), *o = values(64 * 64);
	struct page_run run[3];
	struct attn_item it[3];
	struct seq q[3];

	for (int i = 0; i < 3; i++) {
		grown(&q[i], &g, 64, &run[i]);
		it[i] = (struct attn_item){ .shape = &g,
					    .seq = &q[i],
					    .pos = 0,
					    .n_rows = 64,
					    .in = KERN_F32,
					    .q = x,
					    .k = x,
					    .v = x,
					    .o = o };
	}
	/* no window can be brought in */
	it[1].pos = 32;
	it[1].n_rows = 32;
	it[1].resident_from = 32;
	ck_assert_int_eq(run_small(it, 3), -ENOSPC);
	ck_assert_int_eq(it[0].ret, 0);
	ck_assert_int_eq(it[1].ret, -ENOSPC);
	ck_assert_int_eq(it[2].ret, 0);
	for (int i = 0; i < 3; i++)
		done(&q[i], &run[i]);
	free(x);
	free(o);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("attn");
	TCase *t = tcase_create("attn");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, rows_of_any_width_fit_the_stack);
	tcase_add_test(t, one_that_fails_takes_no_other_with_it);
	tcase_set_timeout(t, 60);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
