/*
 * test_clean.c - sparse zones of one page size make room for another
 *
 * A store is filled with pages of one size, of which a few stay, spread over all zones.
 * Then pages of another size come, as many as fit. Then the same at random: ranges of
 * several sizes come, go, change, become durable while zones are emptied, with a
 * request failing now and then, and restarts. KVD_SEED repeats it.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "io/fault.h"
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/mem/clean.h"
#include "kvd/mem/durable.h"
#include "kvd/mem/op.h"
#include "tests/rig/rig_mem.h"
#include "tests/rig/simdisk.h"

#define MIB	 1048576ull
#define STORE	 (34 * MIB) /* zones of 4 MiB: 8, or 7 with an index */
#define ZONE	 (4 * MIB)
#define SMALL	 65536u
#define BIG	 262144u
#define MEMORY	 (4 * MIB)
#define N_MOST	 1024u
#define N_RANDOM 400u

/* A range of pages of one size; its bytes follow from its number. */
struct one {
	struct range *range;
	uint32_t id, n_pages;
	int durable;
};

static struct rig_mem *r;
static struct cleaner *cleaner;
static struct one small[N_MOST], big[N_MOST];
static uint32_t n_small, n_big, next_id;
static char path[64];
static enum kio_engine_kind kind = KIO_ENGINE_AUTO;
static uint64_t seed;

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(simdisk_random(&seed) % n);
}

static struct page_run run_of(const struct one *o, uint32_t flags)
{
	return (struct page_run){ o->range, 0, o->n_pages, flags };
}

static struct kio_store_info info(void)
{
	struct kio_store_info i;

	kio_store_info(stores_disk(r->stores, 0), &i);
	return i;
}

/* ---- pages ----------------------------------------------------------------- */

static int make(struct one *o, uint32_t page_bytes, uint32_t n_pages)
{
	struct page_run run;
	int ret;

	*o = (struct one){ .id = ++next_id, .n_pages = n_pages };
	ck_assert_int_eq(range_new(r->pager, page_bytes, n_pages, &o->range),
			 0);
	run = run_of(o, PAGE_WRITE);
	ck_assert_int_eq(pager_reserve(r->pager, n_pages * page_bytes), 0);
	ret = rig_mem_want(r, &run, 1);
	if (!ret) {
		rig_mem_fill(&run, o->id);
		page_unpin(r->pager, &run, 1);
	} else {
		range_free(o->range);
		o->range = NULL;
	}
	pager_unreserve(r->pager, n_pages * page_bytes);
	return ret;
}

static int look(const struct one *o)
{
	struct page_run run = run_of(o, 0);
	const uint64_t bytes = o->n_pages * range_page_bytes(o->range);
	int ret;

	ck_assert_int_eq(pager_reserve(r->pager, bytes), 0);
	ret = rig_mem_want(r, &run, 1);
	if (!ret && !rig_mem_holds(&run, o->id))
		ret = -EBADMSG;
	if (ret != 0 && ret != -EBADMSG)
		goto out;
	page_unpin(r->pager, &run, 1);
out:
	pager_unreserve(r->pager, bytes);
	return ret;
}

static void let_go(struct one *o)
{
	range_free(o->range);
	o->range = NULL;
	o->durable = 0;
}

struct saving {
	struct range_persist rp;
	int told, ret;
};

static void on_saved(struct wait *w, int ret)
{
	struct saving *s = container_of(
		container_of(w, struct range_persist, wait), struct saving, rp);

	s->told = 1;
	s->ret = ret;
}

static int save_begin(struct one *o, struct saving *s)
{
	*s = (struct saving){ .rp = { .wait.done = on_saved,
				      .range = o->range,
				      .key = { o->id, ~(uint64_t)o->id },
				      .meta = &o->id,
				      .meta_bytes = sizeof(o->id) } };
	return range_persist(&s->rp);
}

static int save(struct one *o)
{
	struct saving s;
	const int ret = save_begin(o, &s);

	if (ret)
		return ret;
	while (!s.told)
		rig_mem_turn(r);
	return s.ret;
}

/* ---- a store, and its pages at the next start -------------------------------- */

static struct one *found;
static uint32_t n_found;

static int on_record(void *ctx, uint32_t i_disk, const struct kio_record *rec)
{
	struct rig_mem *m = ctx;
	struct one *o = &found[n_found++];

	*o = (struct one){ .n_pages = rec->n_pages };
	ck_assert_uint_eq(rec->meta_bytes, sizeof(o->id));
	memcpy(&o->id, rec->meta, sizeof(o->id));
	ck_assert_uint_eq(rec->key.w[0], o->id);
	ck_assert_int_eq(range_adopt(m->pager, i_disk, rec, &o->range), 0);
	return KIO_RECORD_KEEP;
}

static void begin(const char *store)
{
	r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = MEMORY,
		.disk_bytes = STORE,
		.store_bytes = STORE,
		.kind = kind,
		.store = store,
		.found = on_record,
	});
	ck_assert_int_eq(cleaner_new(&cleaner, r->loop, r->stores, 1u << 30),
			 0);
	cleaner_adopt(r->pager);
}

static void end(void)
{
	cleaner_free(cleaner);
	for (uint32_t i = 0; i < N_MOST; i++) {
		range_free(small[i].range);
		range_free(big[i].range);
		small[i].range = big[i].range = NULL;
	}
	rig_mem_settle(r);
	kio_store_check(stores_disk(r->stores, 0));
	rig_mem_close(r);
}

/* Ranges of n_pages until nothing fits, or n_most. */
static uint32_t fill(struct one *all, uint32_t page_bytes, uint32_t n_pages,
		     uint32_t n_most)
{
	uint32_t n = 0;

	while (n < n_most && !make(&all[n], page_bytes, n_pages)) {
		if (pager_durable(r->pager) && save(&all[n]))
			break;
		n++;
	}
	return n;
}

/* Every so manyth stays. */
static void thin_out(uint32_t n_all, uint32_t stay_every)
{
	for (uint32_t i = 0; i < n_all; i++)
		if (small[i].range && i % stay_every)
			let_go(&small[i]);
	rig_mem_settle(r);
}

static void all_hold(const struct one *all, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (all[i].range)
			ck_assert_int_eq(look(&all[i]), 0);
}

static uint64_t n_cleaned, n_given_up, moved_bytes, n_saved, n_full, n_scrubbed,
	n_spoilt;

static void count(void)
{
	struct cleaner_info c;

	cleaner_info(cleaner, &c);
	n_given_up += c.n_given_up;
	n_cleaned += info().n_zones_cleaned;
	moved_bytes += info().moved_bytes;
	ck_assert_uint_le(info().moved_bytes, info().page_written_bytes);
}

/* All records are there, and nothing else is. */
static void start_again(void)
{
	uint32_t n = 0, k = 0;

	kio_fault_disarm();
	count();
	cleaner_free(cleaner);
	cleaner = NULL;
	rig_mem_settle(r); /* what is scrubbed may be durable no more */
	pager_keep_records(r->pager);
	found = calloc(N_MOST, sizeof(*found));
	n_found = 0;
	for (uint32_t i = 0; i < N_MOST; i++)
		if (small[i].range && range_durable(small[i].range))
			small[n++].id = small[i].id; /* n <= i */
		else
			k++;
	ck_assert_uint_eq(n + k, N_MOST);
	end();
	begin(path);
	ck_assert_uint_eq(n_found, n);
	for (uint32_t i = 0; i < n; i++) {
		for (k = 0; found[k].id != small[i].id; k++)
			ck_assert_uint_lt(k + 1, n_found);
		ck_assert_int_eq(look(&found[k]), 0);
	}
	memset(small, 0, sizeof(small));
	for (uint32_t i = 0; i < n; i++) {
		small[i] = found[i];
		small[i].durable = 1;
	}
	free(found);
}

/* ---- tests ------------------------------------------------------------------- */

/* Pages that nothing names: 7 zones with a page of 64 KiB each, then 256 KiB. */
START_TEST(another_size_finds_room)
{
	struct kio_store_info i;

	begin(NULL);
	n_small = fill(small, SMALL, 1, 500);
	ck_assert_uint_eq(n_small, 500);
	thin_out(n_small, ZONE / SMALL);
	ck_assert_uint_lt(info().free_zone_bytes, 3 * ZONE);
	n_big = fill(big, BIG, 1, 110);
	ck_assert_uint_eq(n_big, 110);
	i = info();
	ck_assert_uint_gt(i.n_zones_cleaned, 4);
	ck_assert_uint_gt(i.moved_bytes, 0);
	/* no page was moved twice, and none for nothing */
	ck_assert_uint_le(i.moved_bytes, 2 * (n_small / 64 + 1) * SMALL);
	all_hold(small, n_small);
	all_hold(big, n_big);
	end();
}
END_TEST

/* The second slot of each zone takes nothing. */
static ssize_t second_is_bad(int fd, const void *buf, size_t n, off_t at)
{
	if (n != SMALL || at % (off_t)ZONE != SMALL)
		return pwrite(fd, buf, n, at);
	errno = EIO;
	return -1;
}

/* That is where pages go first that make room: it stops no more than that zone. */
START_TEST(a_bad_place_does_not_stop_it)
{
	static const struct kio_disk bad = { .pread = pread,
					     .pwrite = second_is_bad,
					     .fdatasync = fdatasync };

	kind = KIO_ENGINE_THREADS; /* reads by io_uring go past kio_sys_disk */
	begin(NULL);
	n_small = fill(small, SMALL, 1, 500);
	ck_assert_uint_eq(n_small, 500);
	thin_out(n_small, ZONE / SMALL);
	kio_sys_disk = &bad;
	n_big = fill(big, BIG, 1, 96);
	ck_assert_uint_eq(n_big, 96);
	ck_assert_uint_gt(info().bad_bytes, 0);
	ck_assert_uint_le(info().bad_bytes, 2 * SMALL);
	all_hold(small, n_small);
	all_hold(big, n_big);
	kio_sys_disk = NULL;
	end();
}
END_TEST

static ssize_t small_is_bad(int fd, const void *buf, size_t n, off_t at)
{
	if (n != SMALL)
		return pwrite(fd, buf, n, at);
	errno = EIO;
	return -1;
}

/* No page can be moved: who lacks room is told, and nothing goes on for ever. */
START_TEST(what_cannot_be_moved_is_not_waited_for)
{
	static const struct kio_disk bad = { .pread = pread,
					     .pwrite = small_is_bad,
					     .fdatasync = fdatasync };
	struct cleaner_info c;
	uint64_t n_failed;

	kind = KIO_ENGINE_THREADS;
	begin(NULL);
	n_small = fill(small, SMALL, 1, 500);
	ck_assert_uint_eq(n_small, 500);
	thin_out(n_small, ZONE / SMALL);
	kio_sys_disk = &bad;
	n_big = fill(big, BIG, 1, 96);
	ck_assert_uint_lt(n_big, 96);
	ck_assert_uint_eq(info().cleaning_bytes, 0);
	cleaner_info(cleaner, &c);
	n_failed = c.n_failed;
	ck_assert_uint_gt(n_failed, 0);
	rig_mem_settle(r);
	cleaner_info(cleaner, &c);
	ck_assert_uint_eq(c.n_failed, n_failed);
	kio_sys_disk = NULL;
	for (uint32_t i = 0; i < n_big; i++)
		let_go(&big[i]);
	rig_mem_settle(r);
	all_hold(small, n_small);
	end();
}
END_TEST

/* The same with records, that are there after a restart. */
START_TEST(records_move_and_stay)
{
	uint32_t n_stay = 0, n_same = 0;

	strcpy(path, "/var/tmp/kvd-clean-XXXXXX");
	close(mkstemp(path));
	unlink(path);
	begin(path);
	n_small = fill(small, SMALL, 4, 110);
	ck_assert_uint_eq(n_small, 110);
	thin_out(n_small, ZONE / SMALL / 4);
	n_big = fill(big, BIG, 2, 45);
	ck_assert_uint_eq(n_big, 45);
	ck_assert_uint_gt(info().n_zones_cleaned, 3);
	all_hold(small, n_small);
	all_hold(big, n_big);
	for (uint32_t i = 0; i < n_small; i++)
		n_stay += !!small[i].range;
	cleaner_free(cleaner);
	cleaner = NULL;
	pager_keep_records(r->pager);
	end();
	found = calloc(N_MOST, sizeof(*found));
	n_found = 0;
	begin(path);
	ck_assert_uint_eq(n_found, n_stay + n_big);
	for (uint32_t i = 0; i < n_found; i++) {
		ck_assert_int_eq(look(&found[i]), 0);
		n_same += range_page_bytes(found[i].range) == SMALL;
		let_go(&found[i]);
	}
	ck_assert_uint_eq(n_same, n_stay);
	end();
	free(found);
	unlink(path);
}
END_TEST

/* One size only: whatever comes and goes, nothing is ever moved. */
START_TEST(one_size_is_never_cleaned)
{
	begin(NULL);
	n_small = fill(small, SMALL, 1, 500);
	for (uint32_t i = 0; i < 1500; i++) {
		struct one *o = &small[rnd(n_small)];

		if (o->range)
			let_go(o);
		if (rnd(3))
			(void)make(o, SMALL, 1);
	}
	ck_assert_uint_eq(info().moved_bytes, 0);
	ck_assert_uint_eq(info().n_zones_cleaned, 0);
	all_hold(small, n_small);
	end();
}
END_TEST

/* Slots of the other size are taken until there is none: a zone is to be emptied. */
static uint32_t take_all(int64_t *at)
{
	uint32_t n = 0;

	while ((at[n] = kio_store_alloc(stores_disk(r->stores, 0), BIG)) >= 0)
		ck_assert_uint_lt(++n, N_MOST);
	return n;
}

static void save_what_moves(struct saving *all)
{
	size_t bytes;

	while (kio_store_victim(stores_disk(r->stores, 0), &bytes)) {
		for (uint32_t i = 0; i < n_small; i++)
			if (small[i].range && !small[i].durable &&
			    small[i].range->n_busy) {
				ck_assert_int_eq(save_begin(&small[i], &all[i]),
						 0);
				small[i].durable = 1;
			}
		rig_mem_turn(r);
	}
	for (uint32_t i = 0; i < n_small; i++)
		while (small[i].durable && !all[i].told)
			rig_mem_turn(r);
}

/* Its record names the places where it lies, not those that it left. */
START_TEST(what_moves_becomes_durable)
{
	static struct saving all[N_MOST];
	static int64_t at[N_MOST];
	uint32_t n, n_durable = 0;

	strcpy(path, "/var/tmp/kvd-clean-XXXXXX");
	close(mkstemp(path));
	unlink(path);
	begin(path);
	for (n_small = 0; n_small < 110; n_small++)
		ck_assert_int_eq(make(&small[n_small], SMALL, 4), 0);
	thin_out(n_small, 4);
	n = take_all(at);
	save_what_moves(all);
	for (uint32_t i = 0; i < n_small; i++) {
		n_durable += (uint32_t)small[i].durable;
		ck_assert(!small[i].durable || !all[i].ret);
	}
	ck_assert_uint_gt(n_durable, 0);
	while (n--)
		kio_store_release(stores_disk(r->stores, 0), (uint64_t)at[n],
				  BIG);
	/* over what is nobody's */
	for (n_big = 0; n_big < 60; n_big++)
		ck_assert_int_eq(make(&big[n_big], BIG, 1), 0);
	all_hold(small, n_small);
	all_hold(big, n_big);
	start_again();
	for (n = 0; small[n].range; n++)
		;
	ck_assert_uint_eq(n, n_durable);
	end();
	unlink(path);
}
END_TEST

static _Atomic int held, n_held; /* flushes wait */

static int held_fdatasync(int fd)
{
	n_held++;
	while (held)
		(void)usleep(1000);
	return fdatasync(fd);
}

static const struct kio_disk slow = { .pread = pread,
				      .pwrite = pwrite,
				      .fdatasync = held_fdatasync };

/* Turn until moves of records wait for the disk; how many of the ranges move. */
static uint32_t spoil_what_moves(void)
{
	uint32_t n = 0;

	for (uint64_t t0 = clock_ns(); !n_held && rig_mem_patient(t0);)
		rig_mem_turn(r);
	ck_assert_int_gt(n_held, 0);
	for (uint32_t i = 0; i < n_small; i++)
		if (small[i].range && small[i].range->n_busy) {
			durable_spoilt(small[i].range);
			n++;
		}
	return n;
}

/* Its record goes while a move of it is on its way: its new places have no name for long. */
START_TEST(what_moves_and_is_spoilt_becomes_durable_again)
{
	static int64_t at[N_MOST];
	uint32_t n;

	strcpy(path, "/var/tmp/kvd-clean-XXXXXX");
	close(mkstemp(path));
	unlink(path);
	begin(path);
	n_small = fill(small, SMALL, 4, 110);
	thin_out(n_small, 4);
	while (info().pending_bytes)
		rig_mem_turn(r);
	kio_sys_disk = &slow;
	held = 1;
	n = take_all(at);
	ck_assert_uint_gt(spoil_what_moves(), 0);
	held = 0;
	rig_mem_settle(r);
	while (n--)
		kio_store_release(stores_disk(r->stores, 0), (uint64_t)at[n],
				  BIG);
	for (uint32_t i = 0; i < n_small; i++) {
		if (!small[i].range)
			continue;
		if (!range_durable(small[i].range))
			ck_assert_int_eq(save(&small[i]), 0);
		small[i].durable = 1;
	}
	kio_sys_disk = NULL;
	start_again();
	end();
	unlink(path);
}
END_TEST

/* ---- at random ----------------------------------------------------------------- */

/* Its bytes are others from now on. */
static void change(struct one *o)
{
	struct page_run run = run_of(o, PAGE_WRITE);
	const uint64_t bytes = o->n_pages * range_page_bytes(o->range);

	ck_assert_int_eq(pager_reserve(r->pager, bytes), 0);
	if (!rig_mem_want(r, &run, 1)) {
		o->id = ++next_id;
		rig_mem_fill(&run, o->id);
		page_unpin(r->pager, &run, 1);
	}
	pager_unreserve(r->pager, bytes);
}

/* No room, or the write that would have made some failed: others go, nothing is lost. */
static void not_now(int ret)
{
	ck_assert(!ret || ret == -ENOSPC || ret == -EIO);
	n_full += ret == -ENOSPC;
	for (int i = 0; ret == -ENOSPC && i < 40; i++)
		let_go(&small[rnd(N_RANDOM)]);
}

struct scrubbing {
	struct page_scrub op;
	int spoilt;
};

static uint32_t n_harmed;

static void scrubbed(struct page_scrub *op, int ret)
{
	struct scrubbing *s = container_of(op, struct scrubbing, op);

	n_scrubbed++;
	n_spoilt += ret == -EBADMSG;
	ck_assert(!ret || (ret == -EBADMSG && s->spoilt));
	free(op->buf);
	free(s);
}

/* One that is in memory, too; NULL. */
static struct page *clean_page(void)
{
	const uint32_t from = rnd(N_RANDOM);

	for (uint32_t i = 0; i < N_RANDOM; i++) {
		const struct one *o = &small[(from + i) % N_RANDOM];
		struct page *pg = o->range ? &o->range->pages[rnd(o->n_pages)]
					   : NULL;

		if (pg && page_can_scrub(pg) && pg->state == PAGE_CLEAN)
			return pg;
	}
	return NULL;
}

/* The scrubber takes a page; perhaps its place went bad. */
static void scrub(void)
{
	struct page *pg = clean_page();
	struct scrubbing *s;

	if (!pg)
		return;
	s = calloc(1, sizeof(*s));
	s->spoilt = n_harmed < 3 && !rnd(20); /* such a zone is not emptied */
	n_harmed += (uint32_t)s->spoilt;
	s->op.n_bytes = range_page_bytes(pg->range);
	s->op.done = scrubbed;
	ck_assert(!posix_memalign(&s->op.buf, 4096, s->op.n_bytes));
	if (s->spoilt) {
		memset(s->op.buf, 0xa5, 4096);
		ck_assert_int_eq(pwrite(kio_store_fd(stores_disk(r->stores, 0)),
					s->op.buf, 4096, pg->slot * 4096),
				 4096);
	}
	ck_assert_int_eq(page_scrub_start(pg, &s->op), 0);
}

static void one_step(uint32_t page_bytes)
{
	struct one *o = &small[rnd(N_RANDOM)];
	const uint32_t what = rnd(100);

	if (o->range)
		o->durable = range_durable(o->range);
	if (!rnd(8))
		scrub();
	if (!rnd(20))
		kio_fault_arm(KIO_FAULT_ONCE,
			      rnd(2) ? "uring.read" : "uring.write",
			      1 + rnd(30), EIO);
	if (!o->range) {
		not_now(make(o, page_bytes, 1 + rnd(5)));
	} else if (what < 25) {
		let_go(o);
	} else if (what < 50) {
		not_now(look(o));
	} else if (o->durable) {
		rig_mem_turn(r);
	} else if (what < 65) {
		change(o);
	} else if (what < 85) {
		o->durable = pager_durable(r->pager) && !save(o);
		n_saved += (uint64_t)o->durable;
	}
}

/* Once what failed before is tried again; -ENOSPC. */
static int look_soon(const struct one *o)
{
	int ret = look(o);

	for (int i = 0; ret == -EIO && i < 1000; i++) {
		usleep(10000);
		rig_mem_settle(r);
		ret = look(o);
	}
	return ret;
}

/*
 * Nothing fails any more. The disk may be full, its room of other sizes, and memory full
 * of dirty pages: then others go until there is room to look. What stays is right.
 */
static void all_hold_with_room(void)
{
	uint32_t n = 0, n_gone = 0, next = N_MOST;

	for (uint32_t i = 0; i < N_MOST; i++) {
		int ret = small[i].range ? look_soon(&small[i]) : 1;

		while (ret == -ENOSPC && next--) {
			if (next == i || !small[next].range)
				continue;
			n_gone++;
			let_go(&small[next]);
			rig_mem_settle(r);
			ret = look_soon(&small[i]);
		}
		ck_assert_int_ge(ret, 0);
		n += !ret;
	}
	printf("%u ranges hold, %u went to make room\n", n, n_gone);
	ck_assert_uint_gt(n, 0);
}

START_TEST(anything_may_happen_meanwhile)
{
	static const uint32_t sizes[] = { 32768, BIG, SMALL, 131072 };
	const char *s = getenv("KVD_SEED");
	const uint32_t n = getenv("KVD_LONG") ? 60 : 6;

	seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);
	printf("seed %llu\n", (unsigned long long)seed);
	strcpy(path, "/var/tmp/kvd-clean-XXXXXX");
	close(mkstemp(path));
	unlink(path);
	begin(_i ? path : NULL);
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t bytes = sizes[rnd(KV_ARRAY_LEN(sizes))];

		for (uint32_t k = 0; k < 300; k++)
			one_step(rnd(10) ? bytes : sizes[rnd(4)]);
		kio_fault_disarm();
		pager_check(r->pager);
		kio_store_check(stores_disk(r->stores, 0));
		if (_i && i % 3 == 2)
			start_again();
	}
	while (!small[0].range) /* something is there */
		not_now(make(&small[0], SMALL, 1));
	all_hold_with_room();
	count();
	printf("%llu zones emptied, %llu given up, %.1f MiB moved, %llu ranges "
	       "saved, %llu times full, %llu scrubbed, %llu bad\n",
	       (unsigned long long)n_cleaned, (unsigned long long)n_given_up,
	       (double)moved_bytes / MIB, (unsigned long long)n_saved,
	       (unsigned long long)n_full, (unsigned long long)n_scrubbed,
	       (unsigned long long)n_spoilt);
	ck_assert_uint_gt(n_scrubbed, 0);
	end();
	(void)unlink(path);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("clean");
	TCase *t = tcase_create("clean");
	SRunner *sr;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(t, 600);
	tcase_add_test(t, another_size_finds_room);
	tcase_add_test(t, a_bad_place_does_not_stop_it);
	tcase_add_test(t, what_cannot_be_moved_is_not_waited_for);
	tcase_add_test(t, records_move_and_stay);
	tcase_add_test(t, one_size_is_never_cleaned);
	tcase_add_test(t, what_moves_becomes_durable);
	tcase_add_test(t, what_moves_and_is_spoilt_becomes_durable_again);
	tcase_add_loop_test(t, anything_may_happen_meanwhile, 0, 2);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
