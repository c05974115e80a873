/*
 * fuzz_store.c - any bytes as superblocks and log of a page store
 *
 * Input: a byte of flags, 128 bytes of each superblock, then the log. SEAL_SB and
 * SEAL_LOG make the checksums right, so that what lies behind them is reached. What
 * is accepted must be consistent, usable, and say the same when opened again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/fault.h"
#include "io/store_priv.h"

#define BYTES	  (34ull << 20)
#define SB_GIVEN  128u
#define LOG_MAX	  (1u << 20)
#define MAX_BYTES (1ull << 30) /* of a store that says how large it is */

enum { SEAL_SB = 1, SEAL_LOG = 2, DROP = 4, ORPHAN = 8 };

static struct kio_engine *engine;
static char path[64];
static int fd;
static uint8_t flags;
static char sbs[2 * KIO_BLOCK_BYTES], log_bytes[LOG_MAX];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int ok)
{
	if (!ok)
		abort();
}

static void clean(void)
{
	(void)unlink(path);
}

static void begin(void)
{
	snprintf(path, sizeof(path), "/dev/shm/kvd-fuzz-store.%d", getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0);
	atexit(clean);
	/* 4 MiB of zeros for each input would take all the time */
	kio_fault_arm(KIO_FAULT_FOREVER, "sys.fallocate", 1, EOPNOTSUPP);
	must(!kio_engine_new(&engine, KIO_ENGINE_THREADS, 4));
}

static void seal_log(size_t n, const struct sb *sb)
{
	uint64_t seq = 0;
	uint32_t prev = 0;

	for (size_t at = 0; at + sizeof(struct frame) <= n;) {
		struct frame f;

		memcpy(&f, log_bytes + at, sizeof(f));
		f.magic = FRAME_MAGIC;
		f.epoch = sb->epoch;
		f.salt = sb->salt;
		f.seq = ++seq;
		f.prev = prev;
		f.rsvd = 0;
		f.crc = 0;
		f.n_bytes = (uint32_t)KV_MIN((size_t)f.n_bytes,
					     n - at - sizeof(f)) &
			    ~7u;
		memcpy(log_bytes + at, &f, sizeof(f));
		f.crc = kio_crc32c(0, log_bytes + at, sizeof(f) + f.n_bytes);
		memcpy(log_bytes + at, &f, sizeof(f));
		prev = f.crc;
		at += KV_ALIGN_UP(sizeof(f) + f.n_bytes, KIO_BLOCK_BYTES);
	}
}

/* 0: too large to play with. */
static int write_file(const uint8_t *data, size_t n)
{
	struct sb sb;

	for (int i = 0; i < 2; i++, data += SB_GIVEN, n -= SB_GIVEN) {
		memset(&sb, 0, sizeof(sb));
		memcpy(&sb, data, SB_GIVEN);
		if (sb.bytes > MAX_BYTES)
			return 0;
		if (flags & SEAL_SB)
			sb_seal(&sb);
		memcpy(sbs + (size_t)i * KIO_BLOCK_BYTES, &sb, sizeof(sb));
	}
	n = KV_MIN(n, LOG_MAX);
	memcpy(log_bytes, data, n);
	if (flags & SEAL_LOG)
		seal_log(n, &sb);
	must(!ftruncate(fd, 0) && !ftruncate(fd, BYTES));
	must(pwrite(fd, sbs, sizeof(sbs), 0) == (ssize_t)sizeof(sbs));
	for (int i = 0; i < 2; i++)
		must(pwrite(fd, log_bytes, n,
			    (off_t)(INDEX_OFF + (unsigned)i * INDEX_MIN)) ==
		     (ssize_t)n);
	return 1;
}

static int on_found(void *ctx, const struct kio_record *r)
{
	volatile unsigned char sum = 0;

	++*(uint64_t *)ctx;
	must(r->n_pages > 0);
	for (size_t i = 0; i < r->meta_bytes; i++)
		sum = (unsigned char)(sum +
				      ((const unsigned char *)r->meta)[i]);
	return flags & DROP	? KIO_RECORD_DROP
	       : flags & ORPHAN ? KIO_RECORD_ORPHAN
				: KIO_RECORD_KEEP;
}

static int told;

static void on_commit(struct kio_commit *c)
{
	told = c->ret ? -1 : 1;
}

/* One record; 1 when it was acknowledged. */
static int put_one(struct kio_store *s)
{
	struct pollfd bell = { .fd = kio_store_event_fd(s), .events = POLLIN };
	const int64_t at = kio_store_alloc(s, 4096);
	struct kio_place place = { .block = (uint64_t)at };
	struct kio_commit c = { .page_bytes = 4096,
				.n_pages = 1,
				.places = &place,
				.done = on_commit };

	if (at < 0)
		return 0;
	told = 0;
	kio_store_put(s, &c);
	while (!told) {
		(void)poll(&bell, 1, 1000);
		(void)kio_store_reap(s);
	}
	return told > 0;
}

static void drain(void)
{
	kio_engine_submit(engine);
	for (int i = 0; i < 100; i++)
		(void)kio_engine_reap(engine);
}

static int open_store(struct kio_store **s, struct kio_store_report *rep,
		      uint64_t *n_found)
{
	const struct kio_store_conf c = { .path = path, .engine = engine };
	int ret;

	do { /* what the last one still reserves holds the file */
		drain();
		*n_found = 0;
		ret = kio_store_open(s, &c, on_found, n_found, rep);
	} while (ret == -EBUSY);
	return ret;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kio_store_report rep;
	uint64_t n_found, n_left, may_go;
	struct kio_store *s;

	if (!engine)
		begin();
	if (size < 1 + 2 * SB_GIVEN)
		return 0;
	flags = data[0];
	if (!write_file(data + 1, size - 1) || open_store(&s, &rep, &n_found))
		return 0;
	must(rep.n_records == n_found);
	kio_store_check(s);
	n_left = (flags & DROP ? 0 : n_found) + (uint64_t)put_one(s);
	kio_store_check(s);
	kio_store_close(s);
	may_go = !!(flags & ORPHAN); /* one orphan, for room */
	flags &= (uint8_t) ~(DROP | ORPHAN);
	must(!open_store(&s, &rep, &n_found));
	must(n_found <= n_left && n_found + may_go >= n_left);
	must(!rep.n_lost_frames);
	kio_store_check(s);
	kio_store_close(s);
	return 0;
}
