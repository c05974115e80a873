/*
 * verdict.c - the file of the gate; see verdict.h
 */
#include "kvd/serve/verdict.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/base.h"

#define MAGIC	"kvdgates"
#define VERSION 1u

struct head { /* then struct verdict [n], then the sum of all before it */
	char magic[8];
	uint32_t version, n;
};
struct file {
	struct head head;
	struct verdict list[VERDICT_MAX];
	unsigned char sum[32];
};
static_assert(sizeof(struct verdict) == 48 && sizeof(struct head) == 16,
	      "on disk");

static size_t body_bytes(uint32_t n)
{
	return sizeof(struct head) + n * sizeof(struct verdict);
}

static void sum_of(const struct file *f, uint32_t n, unsigned char sum[32])
{
	crypto_generichash(sum, sizeof(f->sum), (const unsigned char *)f,
			   body_bytes(n), NULL, 0);
}

static int is_error(double x)
{
	return isfinite(x) && x >= 0;
}

/* n_bytes of f were read. */
static int sound(const struct file *f, size_t n_bytes)
{
	const uint32_t n = f->head.n;
	unsigned char sum[32];

	if (n_bytes < sizeof(f->head) || memcmp(f->head.magic, MAGIC, 8) ||
	    f->head.version != VERSION || n > VERDICT_MAX ||
	    n_bytes != body_bytes(n) + sizeof(sum))
		return 0;
	sum_of(f, n, sum);
	if (memcmp((const char *)f + body_bytes(n), sum, sizeof(sum)))
		return 0;
	for (uint32_t i = 0; i < n; i++)
		if (!is_error(f->list[i].plain) || !is_error(f->list[i].blend))
			return 0;
	return 1;
}

int verdict_read(const char *dir, struct verdict *list)
{
	struct file f;
	struct stat st;
	char path[4096 + 32], more;
	ssize_t n = -1;
	int fd, ret = 0;

	memset(&f, 0, sizeof(f));
	(void)snprintf(path, sizeof(path), "%s/" VERDICT_FILE, dir);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return errno == ELOOP ? -EINVAL : -errno;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		ret = -EINVAL;
	if (!ret)
		n = read(fd, &f, sizeof(f));
	if (!ret && n < 0)
		ret = -errno;
	if (!ret && (read(fd, &more, 1) > 0 || !sound(&f, (size_t)n)))
		ret = -EINVAL;
	(void)close(fd); /* only read */
	if (ret)
		return ret;
	memcpy(list, f.list, f.head.n * sizeof(*list));
	return (int)f.head.n;
}

static int same(const struct verdict *a, const struct verdict *b)
{
	return !memcmp(a->model, b->model, sizeof(a->model)) &&
	       !memcmp(a->how, b->how, sizeof(a->how));
}

static void add(struct file *f, const struct verdict *v)
{
	for (uint32_t i = 0; i < f->head.n; i++)
		if (same(&f->list[i], v))
			return;
	if (f->head.n < VERDICT_MAX)
		f->list[f->head.n++] = *v;
}

static int write_file(const char *path, const void *data, size_t n)
{
	ssize_t done;
	int fd, ret = 0;

	(void)unlink(path); /* of a daemon that was killed */
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
		  0600);
	if (fd < 0)
		return -errno;
	done = write(fd, data, n);
	if (done < 0)
		ret = -errno;
	else if ((size_t)done != n)
		ret = -ENOSPC;
	if (close(fd) && !ret)
		ret = -errno;
	return ret;
}

int verdict_keep(const char *dir, const struct verdict *list, uint32_t n)
{
	struct verdict old[VERDICT_MAX];
	const int n_old = verdict_read(dir, old);
	char path[4096 + 32], new[4096 + 32];
	struct file f = { .head = { .version = VERSION } };
	int ret;

	memcpy(f.head.magic, MAGIC, sizeof(f.head.magic));
	for (uint32_t i = 0; i < n; i++)
		if (is_error(list[i].plain) && is_error(list[i].blend))
			add(&f, &list[i]);
	for (int i = 0; i < n_old; i++)
		add(&f, &old[i]);
	sum_of(&f, f.head.n, (unsigned char *)&f + body_bytes(f.head.n));
	(void)snprintf(path, sizeof(path), "%s/" VERDICT_FILE, dir);
	(void)snprintf(new, sizeof(new), "%s/" VERDICT_FILE ".new", dir);
	ret = write_file(new, &f, body_bytes(f.head.n) + sizeof(f.sum));
	if (!ret && rename(new, path))
		ret = -errno;
	if (ret)
		(void)unlink(new);
	return ret;
}
