/*
 * uses.c - the file of statistics; see uses.h
 */
#include "kvd/cache/uses.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/base.h"

#define MAGIC	"kvduses\n"
#define VERSION 1u
#define SUM	32u

struct head { /* then struct use_entry [n], then the sum of all before it */
	char magic[8];
	uint32_t version, n;
};
static_assert(sizeof(struct use_entry) == 32 && sizeof(struct head) == 16,
	      "on disk");

static size_t body_bytes(uint32_t n)
{
	return sizeof(struct head) + n * sizeof(struct use_entry);
}

static int compare(const void *a, const void *b)
{
	const struct use_entry *x = a, *y = b;
	const int w = x->key[0] == y->key[0];

	return x->key[w] < y->key[w] ? -1 : x->key[w] > y->key[w];
}

/* ---- read -------------------------------------------------------------------- */

/* The file in fd, of n_bytes, into f. */
static int read_all(int fd, void *f, size_t n_bytes)
{
	size_t at = 0;

	while (at < n_bytes) {
		const ssize_t n = read(fd, (char *)f + at, n_bytes - at);

		if (n < 0)
			return -errno;
		if (!n)
			return -EINVAL; /* it shrank */
		at += (size_t)n;
	}
	return 0;
}

static int sound(const struct head *h, size_t n_bytes)
{
	const struct use_entry *list = (const void *)(h + 1);
	unsigned char sum[SUM];

	if (memcmp(h->magic, MAGIC, sizeof(h->magic)) ||
	    h->version != VERSION || h->n > USES_MAX ||
	    n_bytes != body_bytes(h->n) + SUM)
		return 0;
	crypto_generichash(sum, SUM, (const unsigned char *)h, body_bytes(h->n),
			   NULL, 0);
	if (memcmp((const char *)h + body_bytes(h->n), sum, SUM))
		return 0;
	for (uint32_t i = 0; i < h->n; i++)
		if (!(list[i].value >= 0 && list[i].value <= USES_VALUE) ||
		    (i && compare(&list[i - 1], &list[i]) > 0))
			return 0;
	return 1;
}

static int read_file(int fd, struct uses *u)
{
	struct stat st;
	size_t n_bytes;
	struct head *h;
	int ret;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    st.st_size < (off_t)(body_bytes(0) + SUM) ||
	    st.st_size > (off_t)(body_bytes(USES_MAX) + SUM))
		return -EINVAL;
	n_bytes = (size_t)st.st_size;
	h = malloc(n_bytes);
	if (!h)
		return -ENOMEM;
	ret = read_all(fd, h, n_bytes);
	if (!ret && !sound(h, n_bytes))
		ret = -EINVAL;
	for (uint32_t i = 0; !ret && i < h->n; i++)
		ret = uses_add(u, (struct use_entry *)(h + 1) + i);
	free(h);
	return ret;
}

int uses_read(const char *dir, struct uses *u)
{
	char path[4096 + 32];
	int fd, ret;

	memset(u, 0, sizeof(*u));
	(void)snprintf(path, sizeof(path), "%s/" USES_FILE, dir);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return errno == ELOOP ? -EINVAL : -errno;
	ret = read_file(fd, u);
	(void)close(fd); /* only read */
	if (ret)
		uses_fini(u);
	return ret;
}

struct use_entry *uses_find(const struct uses *u, const uint64_t key[2])
{
	const struct use_entry e = { .key = { key[0], key[1] } };

	return u->n ? bsearch(&e, u->list, u->n, sizeof(e), compare) : NULL;
}

/* ---- write ------------------------------------------------------------------- */

int uses_add(struct uses *u, const struct use_entry *e)
{
	if (u->n == USES_MAX)
		return 0;
	if (u->n == u->room) {
		const uint32_t room = 2 * u->room + 64;
		struct use_entry *list = realloc(u->list, room * sizeof(*list));

		if (!list)
			return -ENOMEM;
		u->list = list;
		u->room = room;
	}
	u->list[u->n] = *e;
	u->list[u->n].value = fmin(fmax(e->value, 0), USES_VALUE);
	u->n++;
	return 0;
}

static int put(int fd, crypto_generichash_state *st, const void *data, size_t n)
{
	if (st)
		crypto_generichash_update(st, data, n);
	while (n) {
		const ssize_t done = write(fd, data, n);

		if (done < 0)
			return -errno;
		data = (const char *)data + done;
		n -= (size_t)done;
	}
	return 0;
}

static int write_file(const char *path, const struct uses *u)
{
	struct head h = { .version = VERSION, .n = u->n };
	crypto_generichash_state st;
	unsigned char sum[SUM];
	int fd, ret;

	memcpy(h.magic, MAGIC, sizeof(h.magic));
	(void)unlink(path); /* of a daemon that was killed */
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
		  0600);
	if (fd < 0)
		return -errno;
	crypto_generichash_init(&st, NULL, 0, SUM);
	ret = put(fd, &st, &h, sizeof(h));
	if (!ret)
		ret = put(fd, &st, u->list, u->n * sizeof(*u->list));
	crypto_generichash_final(&st, sum, SUM);
	if (!ret)
		ret = put(fd, NULL, sum, SUM);
	if (!ret && fdatasync(fd))
		ret = -errno;
	if (close(fd) && !ret)
		ret = -errno;
	return ret;
}

int uses_write(const char *dir, struct uses *u)
{
	char path[4096 + 32], new[4096 + 32];
	int ret;

	if (u->n)
		qsort(u->list, u->n, sizeof(*u->list), compare);
	(void)snprintf(path, sizeof(path), "%s/" USES_FILE, dir);
	(void)snprintf(new, sizeof(new), "%s/" USES_FILE ".new", dir);
	ret = write_file(new, u);
	if (!ret && rename(new, path))
		ret = -errno;
	if (ret)
		(void)unlink(new);
	return ret;
}

void uses_fini(struct uses *u)
{
	free(u->list);
	memset(u, 0, sizeof(*u));
}
