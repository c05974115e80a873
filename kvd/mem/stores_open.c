/*
 * stores_open.c - open disks, leave out those that cannot be; see stores.h
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/sys.h"
#include "kvd/base/log.h"
#include "kvd/mem/stores_priv.h"

#define BUSY_TRIES 100
#define BUSY_US	   20000u

static void commit_ready(struct loop_fd *f, uint32_t events)
{
	(void)events;
	kio_store_reap(container_of(f, struct disk, commit_fd)->store);
}

static int record_found(void *ctx, const struct kio_record *r)
{
	struct stores *s = ctx;

	return s->found ? s->found(s->ctx, s->i_opening, r) : KIO_RECORD_ORPHAN;
}

/* Another name of a file or device that is a store here already. */
static int is_ours(const struct stores *s, uint32_t i)
{
	struct stat a, b;

	if (kio_sys_stat(s->disks[i].path, &a))
		return 0;
	for (uint32_t k = 0; k < i; k++)
		if (!kio_sys_fstat(kio_store_fd(s->disks[k].store), &b) &&
		    (S_ISBLK(a.st_mode)
			     ? S_ISBLK(b.st_mode) && a.st_rdev == b.st_rdev
			     : a.st_dev == b.st_dev && a.st_ino == b.st_ino))
			return 1;
	return 0;
}

static void record_lost(void *ctx, uint64_t handle)
{
	struct disk *d = ctx;
	struct stores *s = d->stores;

	log_warn("store", "%s: a record was damaged in the index", d->path);
	if (s->lost)
		s->lost(s->lost_ctx, (uint32_t)(d - s->disks), handle);
}

static void space_kept(void *ctx)
{
	log_warn("store", "%s: knows no discard, no holes: what is free stays",
		 ((struct disk *)ctx)->path);
}

static int open_disk(struct stores *s, uint32_t i)
{
	struct disk *d = &s->disks[i];
	const struct stores_disk_conf *dc = &s->conf.disks[i];
	const struct kio_store_conf kc = {
		.path = d->path,
		.bytes = dc->bytes,
		.flags = s->conf.scratch ? KIO_STORE_SCRATCH : 0,
		.engine = d->engine,
	};
	struct kio_store_report rep = { 0 };
	struct kio_store_info info;
	int ret;

	s->i_opening = i;
	ret = kio_store_open(&d->store, &kc, record_found, s, &rep);
	if (ret == -EBUSY && is_ours(s, i))
		return -EEXIST;
	/* the kernel lets go of a killed daemon's io_uring, and lock, after it */
	for (int k = 0; ret == -EBUSY && k < BUSY_TRIES; k++) {
		(void)usleep(BUSY_US);
		ret = kio_store_open(&d->store, &kc, record_found, s, &rep);
	}
	if (ret)
		return ret;
	kio_store_info(d->store, &info);
	if (rep.bytes_per_s > 0) /* little, beside what pages will say */
		rate_add(&d->rate, rep.bytes_per_s * 1e-3, 1000000);
	log_info("store", "%s: %s", d->path,
		 info.direct ? "O_DIRECT" : "buffered, there is no O_DIRECT");
	kio_store_on_kept(d->store, space_kept, d);
	silent_opened(d);
	if (s->conf.scratch)
		return 0;
	log_info("store", "%s: %llu records, %llu pages, in %.1f ms%s", d->path,
		 (unsigned long long)rep.n_records,
		 (unsigned long long)rep.n_pages, (double)rep.open_ns / 1e6,
		 rep.torn_bytes ? ", torn end of log cut off" : "");
	if (rep.n_lost_frames || rep.n_refused)
		log_warn("store",
			 "%s: index damaged: %llu frames of it lost, %llu "
			 "records refused",
			 d->path, (unsigned long long)rep.n_lost_frames,
			 (unsigned long long)rep.n_refused);
	if (info.failed)
		log_error(
			"store",
			"%s: cannot be written: what is there is used, nothing "
			"more becomes durable",
			d->path);
	kio_store_on_lost(d->store, record_lost, d);
	d->commit_fd.fd = kio_store_event_fd(d->store);
	d->commit_fd.events = EPOLLIN;
	d->commit_fd.ready = commit_ready;
	return loop_watch(s->conf.loop, &d->commit_fd);
}

static const char *reason(int err)
{
	switch (-err) {
	case EBUSY:
		return "in use by another process";
	case EEXIST:
		return "the same file or device as another store";
	case EIO:
		return "cannot be read (I/O error): kvfsck tells where";
	case ENOSPC:
		return "no room for its index, or the device is smaller now";
	case EINVAL:
		return "too small for a store, or size is missing";
	case EBADMSG:
		return "damaged: kvfsck tells more";
	case EMEDIUMTYPE:
		return "not a page store; kept as it is";
	case EPROTONOSUPPORT:
		return "written by a newer version";
	default:
		return strerror(-err);
	}
}

/* It says something about one disk, not about the configuration or this host. */
static int may_go_without(int err)
{
	static const int errs[] = { EIO,       EBADMSG,	  ENOENT, ENXIO,
				    ENODEV,    ENOMEDIUM, EROFS,  ESTALE,
				    EREMOTEIO, ETIMEDOUT };

	for (size_t i = 0; i < KV_ARRAY_LEN(errs); i++)
		if (err == -errs[i])
			return 1;
	return 0;
}

/* Those behind it move up: nobody has a number of one that is open. */
static int leave_out(struct stores *s, uint32_t i, const char *why)
{
	struct loop *loop = s->conf.loop;
	struct stores_missing *m = &s->missing[s->n_missing++];
	int ret = 0;

	*m = (struct stores_missing){ .path = s->disks[i].path };
	(void)snprintf(m->why, sizeof(m->why), "%s", why);
	loop_unwatch(loop, &s->disks[i].io_fd);
	kio_engine_free(s->disks[i].engine);
	s->conf.n--;
	for (; i < s->conf.n; i++) {
		struct disk *d = &s->disks[i];
		int err;

		loop_unwatch(loop, &s->disks[i + 1].io_fd);
		*d = s->disks[i + 1];
		s->conf.disks[i] = s->conf.disks[i + 1];
		list_init(&d->lanes);
		err = loop_watch(loop, &d->io_fd);
		ret = ret ? ret : err;
	}
	memset(&s->disks[i], 0, sizeof(s->disks[i]));
	return ret;
}

void stores_on_lost(struct stores *s,
		    void (*lost)(void *ctx, uint32_t i_disk, uint64_t handle),
		    void *ctx)
{
	s->lost = lost;
	s->lost_ctx = ctx;
}

uint32_t stores_n_missing(const struct stores *s)
{
	return s->n_missing;
}

const struct stores_missing *stores_missing(const struct stores *s, uint32_t i)
{
	return &s->missing[i];
}

int stores_open(struct stores *s,
		int (*found)(void *ctx, uint32_t i_disk,
			     const struct kio_record *r),
		void *ctx, char *err, size_t err_len)
{
	uint32_t i = 0;
	int ret;

	s->found = found;
	s->ctx = ctx;
	while (i < s->conf.n) {
		const char *path = s->disks[i].path;

		ret = open_disk(s, i);
		if (!ret) {
			i++;
			continue;
		}
		(void)snprintf(err, err_len, "store %s: %s", path, reason(ret));
		if (s->conf.n == 1 || !may_go_without(ret))
			return ret;
		log_error("store", "%s: %s: left as it is; the others serve",
			  path, reason(ret));
		ret = leave_out(s, i, reason(ret));
		if (ret)
			return ret;
	}
	return 0;
}
