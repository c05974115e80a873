/*
 * test_store_crash.c - the power fails at any moment, thousands of times
 *
 * One store on a simulated disk lives through many lives. In each it is opened, used
 * at random (pages written, records put, moved and deleted, slots released and used
 * again) and loses power. After each crash:
 *
 *  (1) every record that was acknowledged and not deleted is found, with its blob,
 *      where it was put or acknowledged to have moved;
 *  (2) nothing is found that was never put;
 *  (3) all pages of whatever is found have the bytes that their record promises;
 *      so nobody was given a slot of theirs that went bad meanwhile;
 *  (4) kvfsck finds nothing wrong (now and then).
 *
 * KVD_LONG=1 runs ten times as many. The seed is printed; KVD_SEED repeats it.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "io/base.h"
#include "io/crc.h"
#include "io/fault.h"
#include "io/store.h"
#include "io/sys.h"
#include "tests/rig/simdisk.h"

#define STORE_BYTES (34ull << 20)
#define MAX_RECORDS 256
#define MAX_PAGES   4
#define MAX_META    12000
#define N_WRITES    8
#define FSCK_EVERY  40u
#define MAX_BAD	    64

enum state { NONE, WRITING, PUTTING, ACKED, DELETED };

struct record {
	struct kio_commit commit;
	struct kio_place places[MAX_PAGES];
	unsigned char meta[MAX_META];
	enum state state;
	uint64_t id; /* key.w[0]; never used twice */
	uint32_t n_pages, page_bytes;
	uint32_t meta_crc;
	uint64_t handle;
	int found;
	int is_bad; /* its first slot went bad in this life */
	struct { /* some of its pages are on their way to other places */
		struct kio_commit commit;
		struct kio_place all[MAX_PAGES]; /* as it will be */
		uint64_t was[MAX_PAGES];
		int busy;
	} move;
};

static struct {
	struct kio_store *store;
	struct kio_engine *engine;
	char path[64];
	struct record records[MAX_RECORDS];
	uint64_t next_id, seed, n_acks, n_crashes, n_maybe, n_bad;
	uint64_t n_moves, n_cut, n_fscks;
	int dead;
} t;

static const uint32_t sizes[] = { 4096, 16384, 65536 };

static uint32_t rnd(uint32_t n)
{
	return (uint32_t)(simdisk_random(&t.seed) % n);
}

/* The bytes of page i of record id. */
static void fill(unsigned char *p, uint32_t n, uint64_t id, uint32_t i)
{
	uint64_t s = id * 1000 + i;

	for (uint32_t k = 0; k < n; k += 8) {
		const uint64_t v = simdisk_random(&s);

		memcpy(p + k, &v, 8);
	}
}

/* ---- one step ---------------------------------------------------------------- */

static int written;

static void on_written(struct kio_req *r)
{
	written++;
	if (r->ret)
		t.dead = 1;
}

static void turn(void)
{
	kio_engine_submit(t.engine);
	(void)kio_engine_reap(t.engine);
	(void)kio_store_reap(t.store);
}

/* Until n requests of pages have ended. */
static void wait_written(int n)
{
	struct pollfd bell = { .fd = kio_engine_event_fd(t.engine),
			       .events = POLLIN };

	kio_engine_submit(t.engine);
	while (written < n) {
		(void)poll(&bell, 1, 100);
		turn();
	}
}

static void on_commit(struct kio_commit *c)
{
	struct record *r = container_of(c, struct record, commit);

	if (c->ret) { /* the index is full, or the disk is gone */
		ck_assert(c->ret == -ENOSPC || c->ret == -EIO);
		if (c->ret == -EIO) {
			t.dead = 1;
			return; /* it may or may not be there */
		}
		for (uint32_t i = 0; i < r->n_pages; i++)
			kio_store_release(t.store, r->places[i].block,
					  r->page_bytes);
		r->state = NONE;
		return;
	}
	r->handle = c->handle;
	r->state = ACKED;
	t.n_acks++;
}

static struct record *pick(enum state s)
{
	const uint32_t from = rnd(MAX_RECORDS);

	for (uint32_t i = 0; i < MAX_RECORDS; i++) {
		struct record *r = &t.records[(from + i) % MAX_RECORDS];

		if (r->state == s)
			return r;
	}
	return NULL;
}

static int write_pages(struct record *r)
{
	struct kio_req reqs[MAX_PAGES] = { 0 };
	unsigned char *buf;
	uint32_t n = 0;
	int ret = 0;

	ck_assert(!posix_memalign((void **)&buf, 4096,
				  MAX_PAGES * (size_t)r->page_bytes));
	written = 0;
	for (; n < r->n_pages; n++) {
		const int64_t at = kio_store_alloc(t.store, r->page_bytes);

		if (at < 0) {
			ck_assert_int_eq((int)at, -ENOSPC);
			ret = (int)at;
			break;
		}
		r->places[n] = (struct kio_place){ .block = (uint64_t)at };
		reqs[n].buf = buf + (size_t)n * r->page_bytes;
		fill(reqs[n].buf, r->page_bytes, r->id, n);
		r->places[n].crc = kio_crc32c(0, reqs[n].buf, r->page_bytes);
		reqs[n].block = (uint64_t)at;
		reqs[n].n_bytes = r->page_bytes;
		reqs[n].done = on_written;
		kio_store_write(t.store, &reqs[n]);
	}
	wait_written((int)n);
	for (uint32_t i = 0; ret && i < n; i++)
		kio_store_release(t.store, r->places[i].block, r->page_bytes);
	free(buf);
	return t.dead ? -EIO : ret;
}

static void put_one(void)
{
	struct record *r = pick(NONE);
	uint32_t n_meta;

	if (!r)
		return;
	memset(r, 0, sizeof(*r));
	r->id = ++t.next_id;
	r->n_pages = 1 + rnd(MAX_PAGES);
	r->page_bytes = sizes[rnd(KV_ARRAY_LEN(sizes))];
	if (write_pages(r))
		return;
	n_meta = rnd(MAX_META);
	for (uint32_t i = 0; i < n_meta; i++)
		r->meta[i] = (unsigned char)rnd(256);
	r->meta_crc = kio_crc32c(0, r->meta, n_meta);
	r->commit = (struct kio_commit){ .key = { { r->id, ~r->id } },
					 .page_bytes = r->page_bytes,
					 .n_pages = r->n_pages,
					 .places = r->places,
					 .meta = r->meta,
					 .meta_bytes = n_meta,
					 .done = on_commit };
	r->state = PUTTING;
	kio_store_put(t.store, &r->commit);
}

static void on_moved(struct kio_commit *c)
{
	struct record *r = container_of(c, struct record, move.commit);

	if (c->ret == -EIO || c->ret == -EBADMSG) {
		t.dead = 1;
		return; /* it may or may not have moved */
	}
	/* -ENOSPC: it could not be compacted, as the power is gone */
	ck_assert(!c->ret || c->ret == -ENOSPC ||
		  (c->ret == -ENOENT && r->state == DELETED));
	r->move.busy = 0;
	t.n_moves += !c->ret;
	for (uint32_t i = 0; i < c->n_pages; i++)
		kio_store_release(t.store,
				  !c->ret && r->state == ACKED
					  ? r->move.was[i]
					  : c->places[i].block,
				  r->page_bytes);
	if (!c->ret) /* also of one that is deleted by now: it may be found */
		memcpy(r->places, r->move.all, sizeof(r->places));
}

/* Pages from i on, each to a new place, with the bytes that it has. */
static uint32_t write_moved(struct record *r, uint32_t i, unsigned char *buf)
{
	struct kio_req reqs[MAX_PAGES] = { 0 };
	uint32_t n = 0;

	written = 0;
	for (; i + n < r->n_pages; n++) {
		const int64_t at = kio_store_alloc_kept(t.store, r->page_bytes);

		if (at < 0)
			break;
		r->move.was[n] = r->places[i + n].block;
		r->move.all[i + n].block = (uint64_t)at;
		reqs[n].buf = buf + (size_t)n * r->page_bytes;
		fill(reqs[n].buf, r->page_bytes, r->id, i + n);
		reqs[n].block = (uint64_t)at;
		reqs[n].n_bytes = r->page_bytes;
		reqs[n].done = on_written;
		kio_store_write(t.store, &reqs[n]);
	}
	wait_written((int)n);
	return n;
}

static void move_one(void)
{
	struct record *r = pick(ACKED);
	const uint32_t first = r ? rnd(r->n_pages) : 0;
	unsigned char *buf;
	uint32_t n;

	if (!r || r->move.busy || r->is_bad)
		return;
	ck_assert(!posix_memalign((void **)&buf, 4096,
				  MAX_PAGES * (size_t)r->page_bytes));
	memcpy(r->move.all, r->places, sizeof(r->places));
	n = write_moved(r, first, buf);
	free(buf);
	if (!n || t.dead)
		return;
	r->move.busy = 1;
	r->move.commit = (struct kio_commit){ .page_bytes = r->page_bytes,
					      .n_pages = n,
					      .places = r->move.all + first,
					      .was = r->move.was,
					      .handle = r->handle,
					      .done = on_moved };
	kio_store_move(t.store, &r->move.commit);
}

static void delete_one(void)
{
	struct record *r = pick(ACKED);

	if (!r)
		return;
	kio_store_del(t.store, r->handle);
	for (uint32_t i = !!r->is_bad; i < r->n_pages; i++)
		kio_store_release(t.store, r->places[i].block, r->page_bytes);
	r->state = DELETED;
}

/* Its record stays; it may be deleted in this life or a later one. */
static void spoil_one(void)
{
	struct record *r = pick(ACKED);

	if (!r || r->is_bad || r->move.busy || t.n_bad == MAX_BAD)
		return;
	kio_store_quarantine(t.store, r->places[0].block, r->page_bytes);
	r->is_bad = 1;
	t.n_bad++;
}

static void one_step(void)
{
	const uint32_t what = rnd(10);

	if (what < 5)
		put_one();
	else if (what < 7)
		delete_one();
	else if (what < 8)
		move_one();
	else
		turn();
	if (!rnd(100))
		spoil_one();
	if (!rnd(40))
		(void)usleep(rnd(500)); /* let the journal get somewhere else */
}

/* ---- after a crash --------------------------------------------------------------- */

/* Before or after a move that nobody was told of; all of it or nothing. */
static void see_places(struct record *r, const struct kio_place *places)
{
	const size_t n = r->n_pages * sizeof(*places);

	if (r->move.busy && !memcmp(places, r->move.all, n)) {
		memcpy(r->places, r->move.all, n);
		t.n_cut++;
	}
	r->move.busy = 0;
	ck_assert(!memcmp(places, r->places, n));
}

static int on_found(void *ctx, const struct kio_record *f)
{
	(void)ctx;
	for (uint32_t i = 0; i < MAX_RECORDS; i++) {
		struct record *r = &t.records[i];

		if (r->state == NONE || r->id != f->key.w[0])
			continue;
		ck_assert_uint_eq(f->key.w[1], ~r->id);
		ck_assert_uint_eq(f->page_bytes, r->page_bytes);
		ck_assert_uint_eq(f->n_pages, r->n_pages);
		ck_assert_uint_eq(kio_crc32c(0, f->meta, f->meta_bytes),
				  r->meta_crc);
		see_places(r, f->places);
		ck_assert(!r->found);
		t.n_maybe += r->state != ACKED;
		r->found = 1;
		r->handle = f->handle;
		return KIO_RECORD_KEEP;
	}
	ck_abort_msg("record %llu was never put, or is long gone",
		     (unsigned long long)f->key.w[0]);
	return KIO_RECORD_DROP;
}

/* Straight from the disk: half a million trips through threads take long. */
static void check_pages(const struct record *r)
{
	unsigned char *buf;

	ck_assert(!posix_memalign((void **)&buf, 4096, r->page_bytes));
	for (uint32_t i = 0; i < r->n_pages; i++) {
		ck_assert_int_eq(kio_sys_pread(kio_store_fd(t.store), buf,
					       r->page_bytes,
					       (off_t)r->places[i].block *
						       KIO_BLOCK_BYTES),
				 0);
		ck_assert_msg(kio_crc32c(0, buf, r->page_bytes) ==
				      r->places[i].crc,
			      "record %llu page %u: wrong bytes",
			      (unsigned long long)r->id, i);
	}
	free(buf);
}

static void open_again(void)
{
	const struct kio_store_conf c = { .path = t.path,
					  .bytes = STORE_BYTES,
					  .engine = t.engine };
	struct kio_store_report rep;
	const int ret = kio_store_open(&t.store, &c, on_found, NULL, &rep);

	ck_assert_msg(!ret, "open: %s", strerror(-ret));
	ck_assert_uint_eq(rep.n_refused, 0);
	ck_assert_uint_eq(rep.n_lost_frames, 0);
	kio_store_check(t.store);
	for (uint32_t i = 0; i < MAX_RECORDS; i++) {
		struct record *r = &t.records[i];

		ck_assert_msg(r->state != ACKED || r->found,
			      "record %llu was acknowledged and is lost",
			      (unsigned long long)r->id);
		r->state = r->found ? ACKED : NONE;
		if (r->found)
			check_pages(r);
		r->found = r->is_bad = 0;
	}
}

static void open_engine(void)
{
	ck_assert_int_eq(
		kio_engine_new(&t.engine, KIO_ENGINE_THREADS, N_WRITES), 0);
}

/* The power goes at one of the writes and flushes of moves. */
static void die_moving(void)
{
	for (int i = 0; i < 3; i++)
		move_one();
	simdisk_die_at(1 + rnd(6));
	for (int i = 0; i < 20 && !t.dead; i++) {
		turn();
		(void)usleep(20);
	}
}

/* As it lies there, before a daemon has seen it. */
static void fsck(void)
{
	char self[512] = "", cmd[1200], path[64], out[4096] = "";
	const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	FILE *p;
	int fd;

	ck_assert_int_gt(n, 0);
	*strrchr(self, '/') = 0;
	(void)snprintf(path, sizeof(path), "/dev/shm/kvd-crash-%d", getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ck_assert_int_ge(fd, 0);
	simdisk_save(fd);
	(void)close(fd);
	(void)snprintf(cmd, sizeof(cmd), "%s/../kvfsck --verify %s 2>&1", self,
		       path);
	p = popen(cmd, "r");
	ck_assert_ptr_nonnull(p);
	(void)!fread(out, 1, sizeof(out) - 1, p);
	ck_assert_msg(!pclose(p), "%s: %s", cmd, out);
	(void)unlink(path);
	t.n_fscks++;
}

static void one_life(void)
{
	const uint32_t n = rnd(40);

	for (uint32_t i = 0; i < n && !t.dead; i++)
		one_step();
	if (!t.dead && !rnd(4))
		die_moving();
	simdisk_die();
	t.n_crashes++;
	kio_store_close(t.store);
	kio_engine_free(t.engine);
	simdisk_revive(&t.seed);
	if (t.n_crashes % FSCK_EVERY == 1)
		fsck();
	t.dead = 0;
	open_engine();
	open_again();
}

/* ---- a tail that was never flushed ------------------------------------------- */

static void begin(uint64_t seed)
{
	t.seed = seed;
	strcpy(t.path, "/var/tmp/kvd-crash-XXXXXX");
	close(mkstemp(t.path));
	ck_assert_int_eq(truncate(t.path, 0), 0);
	simdisk_open(STORE_BYTES);
	open_engine();
	open_again();
}

static void end(void)
{
	kio_store_close(t.store);
	kio_engine_free(t.engine);
	simdisk_close();
	unlink(t.path);
}

/* The daemon ends, however; its disk goes on. */
static void next_daemon(void)
{
	kio_store_close(t.store);
	kio_engine_free(t.engine);
	t.dead = 0;
	open_engine();
	open_again();
}

static void power_cut(void)
{
	simdisk_die();
	kio_store_close(t.store);
	kio_engine_free(t.engine);
	simdisk_revive(NULL);
	t.dead = 0;
	open_engine();
	open_again(); /* asserts that what was acknowledged is there */
}

static void put_and_wait(void)
{
	const uint64_t n = t.n_acks;

	put_one();
	while (t.n_acks == n && !t.dead) {
		turn();
		(void)usleep(50);
	}
}

/*
 * A daemon ended between a frame and its flush, or that flush failed. The next one finds
 * the frame and goes on behind it: so what it says then must be on the medium, and what
 * was found there may not go either, as nobody writes it again.
 */
START_TEST(what_is_found_is_on_the_medium)
{
	begin(1);
	for (int i = 0; i < 5; i++)
		put_and_wait();
	if (_i)
		simdisk_spoil_flush(2); /* that of the frame */
	else
		kio_fault_arm(KIO_FAULT_ONCE, "sys.fdatasync", 2, EIO);
	put_and_wait();
	kio_fault_disarm();
	ck_assert(t.dead);
	next_daemon();
	ck_assert_uint_eq(t.n_maybe, 1);
	if (_i > 1)
		put_and_wait();
	ck_assert(!t.dead);
	power_cut();
	end();
}
END_TEST

START_TEST(power_fails)
{
	const char *seed = getenv("KVD_SEED");
	const int n = getenv("KVD_LONG") ? 30000 : 2000;

	t.seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL);
	printf("power_fails: seed %llu\n", (unsigned long long)t.seed);
	strcpy(t.path, "/var/tmp/kvd-crash-XXXXXX");
	close(mkstemp(t.path));
	ck_assert_int_eq(truncate(t.path, 0), 0);
	simdisk_open(STORE_BYTES);
	open_engine();
	open_again();
	for (int i = 0; i < n; i++)
		one_life();
	printf("power_fails: %llu crashes, %llu acknowledged, %llu found that "
	       "nobody was told of; %llu moves, %llu that nobody was told of\n",
	       (unsigned long long)t.n_crashes, (unsigned long long)t.n_acks,
	       (unsigned long long)t.n_maybe, (unsigned long long)t.n_moves,
	       (unsigned long long)t.n_cut);
	ck_assert_uint_gt(t.n_moves, (uint64_t)n / 4);
	ck_assert_uint_gt(t.n_cut, 0);
	ck_assert_uint_gt(t.n_fscks, 0);
	ck_assert_uint_gt(t.n_acks, (uint64_t)n);
	ck_assert_uint_gt(t.n_maybe, 0);
	kio_store_close(t.store);
	kio_engine_free(t.engine);
	simdisk_close();
	unlink(t.path);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("store_crash");
	TCase *tc = tcase_create("store_crash");
	SRunner *r;
	int n;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_set_timeout(tc, 3600);
	tcase_add_loop_test(tc, what_is_found_is_on_the_medium, 0, 3);
	tcase_add_test(tc, power_fails);
	suite_add_tcase(s, tc);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n ? 1 : 0;
}
