/*
 * kvfsck.c - check and explain a page store that no daemon uses
 *
 * Reads what a daemon would read and says what it would find; with --verify every
 * page, too. Changes nothing but with --repair, and then only what is safe: both
 * superblocks from the one that counts, and records go whose pages fail, that
 * contradict others, or that name what is not there. A cut end of the log is what a
 * crash leaves: nobody was told of what was there.
 *
 * Exit: 0 clean, 1 problems (repaired or not), 2 usage, 4 cannot be read, or told.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/store_priv.h"
#include "io/sys.h"

enum { CLEAN = 0, PROBLEMS = 1, USAGE = 2, UNREADABLE = 4 };

struct fsck {
	const char *path;
	int verify, repair, json, records;
	int fd;
	uint64_t have_bytes;
	struct sb sb, both[2];
	int valid[2];
	struct index_image x;
	struct slots slots;
	uint64_t *drop; /* [n_drop] first blocks of those that go, by serial */
	uint64_t n_drop;
	uint64_t n_records, n_pages, page_bytes, n_bad_slots;
	uint64_t n_read, n_wrong;
	uint64_t n_problems, n_repaired;
	json_t *out, *problems, *list;
};

/* For people at once, for programs at the end. */
static void say(const struct fsck *f, const char *fmt, ...) KV_PRINTF(2, 3);
static void problem(struct fsck *f, const char *fmt, ...) KV_PRINTF(2, 3);

static void say(const struct fsck *f, const char *fmt, ...)
{
	va_list ap;

	if (f->json)
		return;
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
}

static void problem(struct fsck *f, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	f->n_problems++;
	say(f, "problem: %s\n", text);
	if (f->json)
		json_array_append_new(f->problems, json_string(text));
}

static void note(struct fsck *f, const char *key, uint64_t v)
{
	json_object_set_new(f->out, key, json_integer((json_int_t)v));
}

static int cannot(struct fsck *f, const char *why)
{
	fprintf(stderr, "kvfsck: %s: %s\n", f->path, why);
	return UNREADABLE;
}

/* ---- the file --------------------------------------------------------------- */

/* No daemon may start while we look, nor look while we write. */
static int lock(const struct fsck *f)
{
	struct flock l = { .l_type = f->repair ? F_WRLCK : F_RDLCK,
			   .l_whence = SEEK_SET };

	return fcntl(f->fd, F_OFD_SETLK, &l) ? -errno : 0;
}

static int open_file(struct fsck *f)
{
	/* a FIFO is not waited for */
	const int flags = O_NONBLOCK | (f->repair ? O_RDWR : O_RDONLY);
	struct stat st;
	off_t end;

	f->fd = kio_sys_open(f->path, flags | O_DIRECT, 0);
	if (f->fd == -EINVAL)
		f->fd = kio_sys_open(f->path, flags, 0);
	if (f->fd < 0)
		return cannot(f, strerror(-f->fd));
	if (kio_sys_fstat(f->fd, &st))
		return cannot(f, "cannot be looked at");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return cannot(f, "neither a file nor a disk");
	if (lock(f))
		return cannot(f, "in use by another process");
	end = lseek(f->fd, 0, SEEK_END); /* of devices, too */
	if (end < 0)
		return cannot(f, strerror(errno));
	f->have_bytes = (uint64_t)end;
	return 0;
}

/* ---- superblocks ------------------------------------------------------------ */

static void show_copies(struct fsck *f)
{
	for (int i = 0; i < 2; i++) {
		if (f->valid[i])
			say(f, "superblock %d: whole, generation %llu\n", i,
			    (unsigned long long)f->both[i].generation);
		else
			problem(f, "superblock %d is damaged", i);
	}
	if (f->valid[0] && f->valid[1] && !sb_twins(f->both, f->valid))
		say(f, "superblocks: the newer one counts, the other was not "
		       "written when a crash came, which is fine\n");
}

static int no_superblock(struct fsck *f, int ret)
{
	switch (ret) {
	case -ENODATA:
		return cannot(f, "blank: a daemon would make a store here");
	case -EMEDIUMTYPE:
		return cannot(f, "not a page store");
	case -EPROTONOSUPPORT:
		return cannot(f, "written by a newer version");
	case -EBADMSG:
		show_copies(f);
		problem(f, "no superblock can be used: where the index and the "
			   "zones begin is not known");
		say(f, "A copy of either (4096 bytes, from the start or behind "
		       "it) would do.\nElse empty the file: what it cached is "
		       "computed again.\n");
		return PROBLEMS;
	}
	return cannot(f, strerror(-ret));
}

static int check_superblocks(struct fsck *f)
{
	const int ret = sb_read(f->fd, &f->sb, f->both, f->valid);
	const struct sb *sb = &f->sb;

	if (ret)
		return no_superblock(f, ret);
	say(f, "%s: version %u.%u, %.1f MiB, %llu zones of %llu MiB\n", f->path,
	    sb->major, sb->minor, (double)sb->bytes / 1048576,
	    (unsigned long long)sb->n_zones,
	    (unsigned long long)(sb->zone_bytes >> 20));
	show_copies(f);
	note(f, "bytes", sb->bytes);
	note(f, "zones", sb->n_zones);
	note(f, "zone_bytes", sb->zone_bytes);
	note(f, "generation", sb->generation);
	note(f, "epoch", sb->epoch);
	if (f->have_bytes < sb->data_off) {
		problem(f, "the file is cut inside its index: %llu bytes",
			(unsigned long long)f->have_bytes);
		return PROBLEMS;
	}
	if (f->have_bytes < sb->bytes)
		problem(f, "the file is cut: %llu bytes of %llu",
			(unsigned long long)f->have_bytes,
			(unsigned long long)sb->bytes);
	return 0;
}

/* ---- records ---------------------------------------------------------------- */

static int drop_record(struct fsck *f, const struct rec_put *p)
{
	const struct kio_place *places = (const struct kio_place *)(p + 1);
	uint64_t *d = realloc(f->drop, (f->n_drop + 1) * sizeof(*d));

	if (!d)
		return -ENOMEM;
	f->drop = d;
	d[f->n_drop++] = places[0].block;
	return 0;
}

/* Its slots, all or none; or why not. */
static const char *take(struct fsck *f, const struct rec_put *p)
{
	const struct kio_place *places = (const struct kio_place *)(p + 1);
	const char *why = NULL;
	uint32_t n = 0;

	while (n < p->n_pages && !why) {
		const uint64_t block = places[n].block;

		if (slots_take(&f->slots, block, p->page_bytes)) {
			why = "a page is outside the zones, or another "
			      "record's, or of another size than its zone";
			break;
		}
		(void)slots_name(&f->slots, block, p->page_bytes); /* taken */
		n++;
		if (places[n - 1]._pad)
			why = "what must be zero is not";
		else if (block * KIO_BLOCK_BYTES + p->page_bytes >
			 f->have_bytes)
			why = "a page is behind the end of the file";
	}
	while (why && n--)
		slots_release(&f->slots, places[n].block, p->page_bytes);
	return why;
}

/* How many pages are not what the record says. */
static uint32_t verify(struct fsck *f, const struct rec_put *p, char *buf)
{
	const struct kio_place *places = (const struct kio_place *)(p + 1);
	uint32_t n_wrong = 0;

	for (uint32_t i = 0; i < p->n_pages; i++) {
		const int ret = kio_sys_pread(
			f->fd, buf, p->page_bytes,
			(off_t)(places[i].block * KIO_BLOCK_BYTES));

		f->n_read++;
		if (!ret && kio_crc32c(0, buf, p->page_bytes) == places[i].crc)
			continue;
		n_wrong++;
		problem(f, "record %016llx%016llx: page %u at block %llu: %s",
			(unsigned long long)p->key.w[0],
			(unsigned long long)p->key.w[1], i,
			(unsigned long long)places[i].block,
			ret ? strerror(-ret) : "checksum differs");
	}
	f->n_wrong += n_wrong;
	return n_wrong;
}

static void list_record(struct fsck *f, const struct rec_put *p)
{
	char key[40];

	(void)snprintf(key, sizeof(key), "%016llx%016llx",
		       (unsigned long long)p->key.w[0],
		       (unsigned long long)p->key.w[1]);
	say(f, "record %s: %u pages of %u bytes, %u bytes of blob\n", key,
	    p->n_pages, p->page_bytes, p->meta_bytes);
	if (f->json)
		json_array_append_new(
			f->list,
			json_pack("{s:s, s:I, s:I, s:I}", "key", key, "pages",
				  (json_int_t)p->n_pages, "page_bytes",
				  (json_int_t)p->page_bytes, "blob_bytes",
				  (json_int_t)p->meta_bytes));
}

static int check_put(struct fsck *f, const struct rec_put *p, char *buf)
{
	const char *why = take(f, p);

	f->n_records++;
	f->n_pages += p->n_pages;
	f->page_bytes += (uint64_t)p->n_pages * p->page_bytes;
	if (f->records)
		list_record(f, p);
	if (why) {
		problem(f, "record %016llx%016llx: %s",
			(unsigned long long)p->key.w[0],
			(unsigned long long)p->key.w[1], why);
		return 0; /* opening the store drops it */
	}
	return f->verify && verify(f, p, buf) ? drop_record(f, p) : 0;
}

/* Behind all puts, as a store is opened: whichever was written first. */
static void check_bad(struct fsck *f, const struct entry *e)
{
	const struct rec_bad *b = (const void *)(f->x.base + e->off);

	f->n_bad_slots += !slots_take_bad(&f->slots, b->block, b->page_bytes);
}

static int check_records(struct fsck *f)
{
	char *buf = NULL;
	int ret = slots_init(&f->slots, &f->sb, 0);

	if (!ret && f->verify &&
	    posix_memalign((void **)&buf, KIO_BLOCK_BYTES, f->sb.zone_bytes))
		ret = -ENOMEM;
	for (uint64_t i = 0; i < f->x.n_entries && !ret; i++)
		if (!f->x.entries[i].is_bad)
			ret = check_put(f, index_put(&f->x, &f->x.entries[i]),
					buf);
	for (uint64_t i = 0; i < f->x.n_entries; i++)
		if (f->x.entries[i].is_bad)
			check_bad(f, &f->x.entries[i]);
	free(buf);
	return ret;
}

static int no_index(struct fsck *f, int ret)
{
	if (ret != -EIO)
		return cannot(f, strerror(-ret));
	problem(f, "the index cannot be read at byte %llu: %s",
		(unsigned long long)(INDEX_OFF +
				     f->sb.active * f->sb.index_bytes +
				     f->x.end),
		strerror(EIO));
	say(f, "Which records follow is not known as long as that is so. Copy "
	       "the store to another disk,\nwhat cannot be read as zeros "
	       "(ddrescue, or dd conv=noerror,sync iflag=direct bs=4096): of "
	       "the\ncopy kvfsck tells what is lost, and a daemon uses the "
	       "rest. Else empty the file, or write\nzeros over the device: "
	       "what it cached is computed again.\n");
	return UNREADABLE;
}

static int check_index(struct fsck *f)
{
	int ret = index_load(f->fd, &f->sb, &f->x);

	if (ret)
		return no_index(f, ret);
	say(f, "index: area %u, epoch %llu, %llu frames, %llu of %llu KiB\n",
	    f->sb.active, (unsigned long long)f->sb.epoch,
	    (unsigned long long)f->x.n_frames,
	    (unsigned long long)(f->x.end >> 10),
	    (unsigned long long)(f->sb.index_bytes >> 10));
	if (f->x.n_beyond)
		problem(f,
			"the log is damaged at byte %llu: at least %llu frames "
			"behind it are lost",
			(unsigned long long)(INDEX_OFF +
					     f->sb.active * f->sb.index_bytes +
					     f->x.end),
			(unsigned long long)f->x.n_beyond);
	else if (f->x.torn_bytes)
		say(f,
		    "index: its end was cut off by a crash, which is fine\n");
	if (f->x.n_malformed)
		problem(f, "%llu records in whole frames make no sense",
			(unsigned long long)f->x.n_malformed);
	ret = check_records(f);
	if (ret)
		return cannot(f, strerror(-ret));
	say(f, "records: %llu, with %llu pages, %.1f MiB; %llu bad slots\n",
	    (unsigned long long)f->n_records, (unsigned long long)f->n_pages,
	    (double)f->page_bytes / 1048576,
	    (unsigned long long)f->n_bad_slots);
	if (f->verify)
		say(f, "pages: %llu read, %llu wrong\n",
		    (unsigned long long)f->n_read,
		    (unsigned long long)f->n_wrong);
	return 0;
}

/* ---- repair ----------------------------------------------------------------- */

/* Called in order of serial, as they were checked. */
static int keep_or_drop(void *ctx, const struct kio_record *r)
{
	struct fsck *f = ctx;

	if (f->n_repaired == f->n_drop ||
	    r->places[0].block != f->drop[f->n_repaired])
		return KIO_RECORD_KEEP;
	f->n_repaired++;
	return KIO_RECORD_DROP;
}

/*
 * Opening a store for use rewrites its superblocks, leaves the damaged log and drops
 * the records that cannot be.
 */
static int repair(struct fsck *f)
{
	struct kio_store_conf c = { .path = f->path, .bytes = f->sb.bytes };
	struct kio_store_info info;
	struct kio_store *s;
	int ret;

	(void)close(f->fd); /* and with it the lock, for the store to take */
	f->fd = -1;
	ret = kio_engine_new(&c.engine, KIO_ENGINE_THREADS, 8);
	if (ret)
		return cannot(f, strerror(-ret));
	ret = kio_store_open(&s, &c, keep_or_drop, f, NULL);
	if (!ret) {
		kio_store_close(s); /* ends what was queued */
		kio_engine_free(c.engine);
		c.engine = NULL;
		ret = kio_engine_new(&c.engine, KIO_ENGINE_THREADS, 8);
	}
	if (!ret)
		ret = kio_store_open(&s, &c, keep_or_drop, f, NULL);
	if (!ret) {
		kio_store_info(s, &info);
		say(f, "repaired: %llu records deleted, %llu left\n",
		    (unsigned long long)f->n_repaired,
		    (unsigned long long)info.n_records);
		kio_store_close(s);
	}
	kio_engine_free(c.engine);
	return ret ? cannot(f, strerror(-ret)) : 0;
}

/* ---- main ------------------------------------------------------------------- */

static int check(struct fsck *f)
{
	int ret = open_file(f);

	if (!ret)
		ret = check_superblocks(f);
	if (!ret)
		ret = check_index(f);
	if (!ret && f->repair && f->n_problems)
		ret = repair(f);
	if (ret)
		return ret;
	say(f, f->n_problems ? "%llu problems\n" : "clean\n",
	    (unsigned long long)f->n_problems);
	return f->n_problems ? PROBLEMS : CLEAN;
}

static void print_json(struct fsck *f, int rc)
{
	note(f, "frames", f->x.n_frames);
	note(f, "torn_bytes", f->x.torn_bytes);
	note(f, "lost_frames", f->x.n_beyond);
	note(f, "records", f->n_records);
	note(f, "pages", f->n_pages);
	note(f, "page_bytes", f->page_bytes);
	note(f, "bad_slots", f->n_bad_slots);
	note(f, "pages_read", f->n_read);
	note(f, "pages_wrong", f->n_wrong);
	note(f, "records_deleted", f->n_repaired);
	note(f, "exit", (uint64_t)rc);
	json_object_set(f->out, "problems", f->problems);
	if (f->records)
		json_object_set(f->out, "list", f->list);
	json_dumpf(f->out, stdout, JSON_INDENT(2));
	putchar('\n');
}

static void usage(FILE *to)
{
	fputs("usage: kvfsck [--verify] [--repair] [--records] [--json] "
	      "FILE|DEVICE\n"
	      "  --verify   read every page and compare its checksum\n"
	      "  --repair   write: superblocks, and records go that fail\n"
	      "  --records  list them\n"
	      "  --json     one object\n"
	      "exit: 0 clean, 1 problems (repaired or not), 2 usage, "
	      "4 cannot be read\n",
	      to);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "verify", no_argument, NULL, 'v' },
		{ "repair", no_argument, NULL, 'r' },
		{ "records", no_argument, NULL, 'l' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct fsck f = { .fd = -1 };
	int c, rc;

	kio_sys_fill_std(); /* the store is not where we print */
	while ((c = getopt_long(argc, argv, "vrljh", options, NULL)) != -1) {
		f.verify |= c == 'v';
		f.repair |= c == 'r';
		f.records |= c == 'l';
		f.json |= c == 'j';
		if (c == 'h' || c == '?') {
			usage(c == 'h' ? stdout : stderr);
			return c == 'h' ? CLEAN : USAGE;
		}
	}
	if (optind + 1 != argc) {
		usage(stderr);
		return USAGE;
	}
	f.path = argv[optind];
	f.out = json_object();
	f.problems = json_array();
	f.list = json_array();
	rc = check(&f);
	if (f.json)
		print_json(&f, rc);
	if (fflush(stdout) || ferror(stdout)) {
		(void)cannot(&f, "what was found could not be written");
		rc = rc ? rc : UNREADABLE;
	}
	json_decref(f.out);
	json_decref(f.problems);
	json_decref(f.list);
	index_unload(&f.x);
	slots_fini(&f.slots);
	free(f.drop);
	return rc;
}
