/*
 * simdisk.c - a disk with a volatile cache that can lose power; see simdisk.h
 *
 *  (1) view is what a reader sees; stable is what is on the medium.
 *  (2) They differ only in what pending says.
 */
#include "tests/rig/simdisk.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/base.h"
#include "io/sys.h"

#define SECTOR 512u

struct pending {
	size_t off, n;
	unsigned char *data;
};

static struct {
	pthread_mutex_t m;
	unsigned char *view, *stable;
	size_t n_bytes;
	struct pending *pending;
	size_t n_pending, room;
	uint32_t die_at; /* 0: not */
	uint32_t spoil_at; /* 0: not */
	int spoilt; /* (2) does not hold: a flush failed */
	int dead;
} d = { .m = PTHREAD_MUTEX_INITIALIZER };

uint64_t simdisk_random(uint64_t *seed)
{
	uint64_t z = *seed += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static ssize_t sim_pread(int fd, void *buf, size_t n, off_t off)
{
	(void)fd;
	pthread_mutex_lock(&d.m);
	if ((size_t)off >= d.n_bytes)
		n = 0;
	else
		n = KV_MIN(n, d.n_bytes - (size_t)off);
	memcpy(buf, d.view + off, n);
	pthread_mutex_unlock(&d.m);
	return (ssize_t)n;
}

static void remember(const void *buf, size_t n, size_t off)
{
	struct pending *p;

	if (d.n_pending == d.room) {
		d.room = d.room ? 2 * d.room : 64;
		d.pending = realloc(d.pending, d.room * sizeof(*d.pending));
		ck_assert_ptr_nonnull(d.pending);
	}
	p = &d.pending[d.n_pending++];
	*p = (struct pending){ off, n, malloc(n) };
	ck_assert_ptr_nonnull(p->data);
	memcpy(p->data, buf, n);
}

/* A write or flush; m is held. */
static void one_more(void)
{
	if (d.die_at && !--d.die_at)
		d.dead = 1;
}

static ssize_t sim_pwrite(int fd, const void *buf, size_t n, off_t off)
{
	ssize_t ret = (ssize_t)n;

	(void)fd;
	pthread_mutex_lock(&d.m);
	one_more();
	if (d.dead || (size_t)off + n > d.n_bytes) {
		errno = EIO;
		ret = -1;
	} else {
		remember(buf, n, (size_t)off);
		memcpy(d.view + off, buf, n);
	}
	pthread_mutex_unlock(&d.m);
	return ret;
}

static void forget_pending(void)
{
	for (size_t i = 0; i < d.n_pending; i++)
		free(d.pending[i].data);
	d.n_pending = 0;
}

static int sim_fdatasync(int fd)
{
	int ret = 0;

	(void)fd;
	pthread_mutex_lock(&d.m);
	one_more();
	if (d.dead) {
		errno = EIO;
		ret = -1;
	} else if (d.spoil_at && !--d.spoil_at) {
		d.spoilt = 1;
		forget_pending();
		errno = EIO;
		ret = -1;
	} else {
		for (size_t i = 0; i < d.n_pending; i++)
			memcpy(d.stable + d.pending[i].off, d.pending[i].data,
			       d.pending[i].n);
		forget_pending();
	}
	pthread_mutex_unlock(&d.m);
	return ret;
}

static const struct kio_disk sim = { sim_pread, sim_pwrite, sim_fdatasync };

void simdisk_open(size_t n_bytes)
{
	d.view = calloc(1, n_bytes);
	d.stable = calloc(1, n_bytes);
	ck_assert(d.view && d.stable);
	d.n_bytes = n_bytes;
	d.dead = 0;
	kio_sys_disk = &sim;
}

void simdisk_close(void)
{
	kio_sys_disk = NULL;
	forget_pending();
	free(d.pending);
	free(d.view);
	free(d.stable);
	d.pending = NULL;
	d.room = 0;
}

void simdisk_die_at(uint32_t nth)
{
	pthread_mutex_lock(&d.m);
	d.die_at = nth;
	pthread_mutex_unlock(&d.m);
}

void simdisk_spoil_flush(uint32_t nth)
{
	pthread_mutex_lock(&d.m);
	d.spoil_at = nth;
	pthread_mutex_unlock(&d.m);
}

void simdisk_die(void)
{
	pthread_mutex_lock(&d.m);
	d.dead = 1;
	d.die_at = 0;
	pthread_mutex_unlock(&d.m);
}

/* All, nothing, the first sectors, or any sectors. */
static void keep_some(const struct pending *p, uint64_t *seed)
{
	const uint64_t how = simdisk_random(seed) % 4;
	const size_t n_sectors = KV_DIV_UP(p->n, SECTOR);
	const size_t prefix = simdisk_random(seed) % (n_sectors + 1);

	for (size_t i = 0; i < n_sectors; i++) {
		const size_t at = i * SECTOR;

		if (how == 1 || (how == 2 && i >= prefix) ||
		    (how == 3 && simdisk_random(seed) % 2))
			continue;
		memcpy(d.stable + p->off + at, p->data + at,
		       KV_MIN(SECTOR, p->n - at));
	}
}

void simdisk_revive(uint64_t *seed)
{
	for (size_t i = 0; seed && i < d.n_pending; i++)
		keep_some(&d.pending[i], seed);
	if (d.spoilt)
		memcpy(d.view, d.stable, d.n_bytes);
	d.spoilt = 0;
	for (size_t i = 0; i < d.n_pending; i++)
		memcpy(d.view + d.pending[i].off, d.stable + d.pending[i].off,
		       d.pending[i].n);
	forget_pending();
	d.dead = 0;
}

void simdisk_save(int fd)
{
	static const unsigned char zeros[65536];

	ck_assert_int_eq(ftruncate(fd, 0), 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)d.n_bytes), 0);
	for (size_t at = 0; at < d.n_bytes; at += sizeof(zeros)) {
		const size_t n = KV_MIN(sizeof(zeros), d.n_bytes - at);

		if (memcmp(d.view + at, zeros, n))
			ck_assert_int_eq(pwrite(fd, d.view + at, n, (off_t)at),
					 (ssize_t)n);
	}
}

uint64_t simdisk_n_pending(void)
{
	uint64_t n;

	pthread_mutex_lock(&d.m);
	n = d.n_pending;
	pthread_mutex_unlock(&d.m);
	return n;
}
