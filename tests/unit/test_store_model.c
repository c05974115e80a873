/*
 * test_store_model.c - random operations on a store, against a trivial model
 *
 * The model knows who owns each block and what was put, moved and deleted. After every step
 * what the store says must be what the model says: no slot is given out twice, bytes
 * read are those written, counters agree, and after each restart exactly the records
 * are there that were put and not deleted, and all their slots.
 *
 * 10^5 operations, KVD_LONG=1: 10^6. The seed is printed; KVD_SEED repeats it.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "io/store_priv.h"
#include "tests/rig/rig_store.h"
#include "tests/rig/simdisk.h"

#define BYTES	(68ull << 20)
#define N_ITEMS 3000u

enum state { NONE, VOLATILE, PUTTING, DURABLE, DELETED };

struct item {
	struct rig_record rec;
	enum state state;
	int written;
	int is_bad; /* its first slot: SPOILT since an earlier life */
	/* pages of it on their way to other slots */
	int moving; /* 2: and the record was deleted meanwhile */
	struct rig_record to;
	uint64_t was[RIG_PAGES_MAX];
	uint32_t first; /* of its places */
};
enum { BAD_NOW = 1, SPOILT };

static struct rig_store r;
static struct item items[N_ITEMS];
static uint8_t owner[BYTES / KIO_BLOCK_BYTES]; /* 1: owned or bad */
static uint64_t seed, next_id, used_bytes, bad_bytes, n_bad, n_durable;
static uint64_t n_done[10];

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(simdisk_random(&seed) % n);
}

static void own(const struct rig_record *x, uint8_t now)
{
	const uint64_t n = x->page_bytes / KIO_BLOCK_BYTES;

	for (uint32_t i = 0; i < x->n_pages; i++)
		for (uint64_t b = x->places[i].block;
		     b < x->places[i].block + n; b++) {
			if (owner[b] == now)
				ck_abort_msg("block %llu is given out twice",
					     (unsigned long long)b);
			owner[b] = now;
		}
	if (now)
		used_bytes += (uint64_t)x->n_pages * x->page_bytes;
	else
		used_bytes -= (uint64_t)x->n_pages * x->page_bytes;
}

static struct item *any(enum state s)
{
	const uint32_t from = rnd(N_ITEMS);

	for (uint32_t i = 0; i < N_ITEMS; i++)
		if (items[(from + i) % N_ITEMS].state == s)
			return &items[(from + i) % N_ITEMS];
	return NULL;
}

/* ---- operations ------------------------------------------------------------- */

static void op_alloc(void)
{
	static const uint32_t sizes[] = { 4096, 4096, 8192, 12288, 65536 };
	struct item *it = any(NONE);
	int ret;

	if (!it)
		return;
	ret = rig_store_take(&r, &it->rec, ++next_id,
			     sizes[rnd(KV_ARRAY_LEN(sizes))], 1 + rnd(6),
			     rnd(400));
	if (ret) {
		ck_assert_int_eq(ret, -ENOSPC);
		n_done[0]++;
		return;
	}
	own(&it->rec, 1);
	it->state = VOLATILE;
	it->written = rnd(4) > 0;
	if (it->written)
		ck_assert_int_eq(rig_store_write(&r, &it->rec), 0);
	n_done[1]++;
}

static void op_release(void)
{
	struct item *it = any(VOLATILE);

	if (!it)
		return;
	rig_store_release(&r, &it->rec);
	own(&it->rec, 0);
	it->state = NONE;
	n_done[2]++;
}

static void op_put(void)
{
	struct item *it = any(VOLATILE);

	if (!it || !it->written)
		return;
	rig_store_put(&r, &it->rec);
	it->state = PUTTING;
	n_done[3]++;
}

static void on_moved(struct kio_commit *c)
{
	struct rig_record *to = container_of(c, struct rig_record, commit);

	to->told = 1;
}

/* Some pages of a record go elsewhere. */
static void op_move(void)
{
	struct item *it = any(DURABLE);
	struct rig_record *to;
	int ret;

	if (!it || it->moving || it->is_bad)
		return;
	to = &it->to;
	it->first = rnd(it->rec.n_pages);
	ret = rig_store_take(&r, to, it->rec.id, it->rec.page_bytes,
			     1 + rnd(it->rec.n_pages - it->first), 0);
	if (ret)
		return;
	own(to, 1);
	for (uint32_t i = 0; i < to->n_pages; i++)
		it->was[i] = it->rec.places[it->first + i].block;
	ck_assert_int_eq(rig_store_copy(&r, to, &it->rec, it->first), 0);
	to->commit = (struct kio_commit){ .page_bytes = to->page_bytes,
					  .n_pages = to->n_pages,
					  .places = to->places,
					  .was = it->was,
					  .handle = it->rec.handle,
					  .done = on_moved };
	it->moving = 1;
	kio_store_move(r.store, &to->commit);
	n_done[7]++;
}

static void take_move(struct item *it)
{
	struct rig_record was;

	if (!it->moving || !it->to.told)
		return; /* the journal's thread has it */
	was = it->to;
	if (it->moving == 2) { /* the old places went with the record */
		ck_assert(!it->to.commit.ret || it->to.commit.ret == -ENOENT);
		n_done[8] += !it->to.commit.ret;
		n_done[9] += !!it->to.commit.ret;
		rig_store_release(&r, &it->to);
		own(&it->to, 0);
	} else {
		ck_assert_int_eq(it->to.commit.ret, 0);
		for (uint32_t i = 0; i < was.n_pages; i++) {
			was.places[i].block = it->was[i];
			it->rec.places[it->first + i] = it->to.places[i];
		}
		rig_store_release(&r, &was);
		own(&was, 0);
	}
	it->moving = 0;
	if (it->state == DELETED)
		it->state = NONE;
}

static void take_commits(void)
{
	for (uint32_t i = 0; i < N_ITEMS; i++) {
		struct item *it = &items[i];

		take_move(it);
		if (it->state != PUTTING || !it->rec.told)
			continue;
		ck_assert_int_eq(it->rec.commit.ret, 0);
		it->state = DURABLE;
		n_durable++;
	}
}

static void count_bad(const struct item *it)
{
	used_bytes -= it->rec.page_bytes;
	bad_bytes += it->rec.page_bytes;
}

/* Its first slot goes bad, its record stays for now. */
static void op_bad(void)
{
	struct item *it = any(DURABLE);

	if (!it || it->is_bad == BAD_NOW || it->moving)
		return;
	if (!it->is_bad)
		n_bad++;
	it->is_bad = BAD_NOW;
	count_bad(it);
	kio_store_quarantine(r.store, it->rec.places[0].block,
			     it->rec.page_bytes);
}

/* Its slots may be given out again: to others, when the deletion is durable. */
static void op_del(void)
{
	struct item *it = any(DURABLE);

	if (!it)
		return;
	kio_store_del(r.store, it->rec.handle);
	own(&it->rec, 0);
	for (uint32_t i = it->is_bad == BAD_NOW; i < it->rec.n_pages; i++)
		kio_store_release(r.store, it->rec.places[i].block,
				  it->rec.page_bytes);
	if (it->is_bad) {
		struct rig_record one = it->rec;

		one.n_pages = 1;
		own(&one, 1); /* for ever */
		if (it->is_bad == SPOILT)
			count_bad(it);
	}
	it->is_bad = 0;
	it->state = it->moving ? DELETED : NONE;
	it->moving *= 2;
	n_durable--;
	n_done[4]++;
}

static void op_read(void)
{
	struct item *it = any(rnd(2) ? DURABLE : VOLATILE);

	if (!it || !it->written)
		return;
	ck_assert_int_eq(rig_store_read(&r, &it->rec), 0);
	n_done[5]++;
}

static void drain(void)
{
	for (uint32_t i = 0; i < N_ITEMS; i++) {
		while ((items[i].state == PUTTING && !items[i].rec.told) ||
		       (items[i].moving && !items[i].to.told))
			rig_store_turn(&r);
	}
	take_commits();
}

static void check(void)
{
	struct kio_store_info i;

	take_commits();
	kio_store_check(r.store);
	kio_store_info(r.store, &i);
	ck_assert_uint_eq(i.slot_bytes, used_bytes + i.pending_bytes);
	ck_assert_uint_le(i.bad_bytes, bad_bytes);
	ck_assert_uint_ge(i.bad_bytes + i.pending_bytes, bad_bytes);
	ck_assert_uint_eq(i.n_lost_records, 0);
}

/* Volatile pages are gone; all else is there. */
static void op_restart(void)
{
	drain();
	check();
	rig_store_close(&r);
	ck_assert_int_eq(rig_store_open(&r, BYTES, 0), 0);
	ck_assert_uint_eq(r.n_found, n_durable);
	ck_assert_uint_eq(r.report.n_refused, 0);
	ck_assert_uint_eq(r.report.n_bad_slots, n_bad);
	for (uint32_t i = 0, k = 0; i < N_ITEMS; i++) {
		struct item *it = &items[i];
		const struct rig_record *f;

		if (it->state == VOLATILE) {
			own(&it->rec, 0);
			it->state = NONE;
		}
		if (it->state != DURABLE)
			continue;
		f = rig_store_find(&r, it->rec.id);
		ck_assert_ptr_nonnull(f);
		if (memcmp(f->places, it->rec.places,
			   it->rec.n_pages * sizeof(f->places[0])) ||
		    f->meta_bytes != it->rec.meta_bytes)
			ck_abort_msg("record %llu is another",
				     (unsigned long long)it->rec.id);
		it->rec.handle = f->handle;
		if (it->is_bad == BAD_NOW) { /* in use again, till it goes */
			it->is_bad = SPOILT;
			used_bytes += it->rec.page_bytes;
			bad_bytes -= it->rec.page_bytes;
		}
		if (k++ % 16 == 0)
			ck_assert_int_eq(rig_store_read(&r, f), 0);
	}
	check();
	n_done[6]++;
}

static void step(void)
{
	const uint32_t what = rnd(100);

	if (what < 34)
		op_alloc();
	else if (what < 38)
		op_release();
	else if (what < 62)
		op_put();
	else if (what < 74)
		op_del();
	else if (what < 78)
		op_read();
	else if (what < 82 && rnd(40))
		op_move();
	else if (what < 82)
		op_bad();
	else if (what < 99)
		rig_store_poll(&r);
	else
		check();
}

START_TEST(a_store_does_what_a_model_does)
{
	const char *s = getenv("KVD_SEED");
	const uint32_t n = getenv("KVD_LONG") ? 1000000 : 100000;

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("seed %llu\n", (unsigned long long)seed);
	rig_store_init(&r, KIO_ENGINE_AUTO, "/dev/shm");
	r.verdict = KIO_RECORD_KEEP;
	ck_assert_int_eq(rig_store_open(&r, BYTES, 0), 0);
	for (uint32_t i = 0; i < n; i++) {
		step();
		if (i % (n / 20) == n / 20 - 1)
			op_restart();
	}
	printf("full %llu, taken %llu, released %llu, put %llu, deleted %llu, "
	       "read %llu, restarts %llu, moved %llu (deleted first %llu, "
	       "meanwhile %llu), bad %llu; %llu records at the end\n",
	       (unsigned long long)n_done[0], (unsigned long long)n_done[1],
	       (unsigned long long)n_done[2], (unsigned long long)n_done[3],
	       (unsigned long long)n_done[4], (unsigned long long)n_done[5],
	       (unsigned long long)n_done[6], (unsigned long long)n_done[7],
	       (unsigned long long)n_done[9], (unsigned long long)n_done[8],
	       (unsigned long long)n_bad, (unsigned long long)n_durable);
	ck_assert_uint_gt(n_done[7], n / 100);
	ck_assert_uint_gt(n_done[8] + n_done[9], 0);
	ck_assert_uint_gt(n_done[0], 0);
	ck_assert_uint_gt(n_done[4], n / 20);
	ck_assert_uint_gt(n_durable, 0);
	rig_store_fini(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("store_model");
	TCase *tc = tcase_create("store_model");
	SRunner *sr;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 3000);
	tcase_add_test(tc, a_store_does_what_a_model_does);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
