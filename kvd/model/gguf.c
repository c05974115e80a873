/*
 * gguf.c - open a GGUF file and look things up in it; see gguf.h
 *
 * The file is mapped, so one that is truncated while it is open means SIGBUS:
 * who opens it copies what it needs and closes it. Immutable after open; any
 * thread.
 */
#include "kvd/model/gguf_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int gguf_new(struct gguf **out, const struct gguf *from, char *err,
		    size_t err_len)
{
	struct gguf *g = malloc(sizeof(*g));
	int ret;

	if (!g) {
		if (from->mapped)
			(void)munmap((void *)(uintptr_t)from->base, from->len);
		return -ENOMEM;
	}
	*g = *from;
	ret = gguf_parse(g, err, err_len);
	if (ret)
		gguf_close(g);
	else
		*out = g;
	return ret;
}

int gguf_open_mem(struct gguf **out, const void *buf, size_t len, char *err,
		  size_t err_len)
{
	const struct gguf g = { .base = buf, .len = len };

	if ((uintptr_t)buf % 8) {
		if (err_len)
			(void)snprintf(err, err_len, "buffer is not aligned");
		return -EINVAL;
	}
	return gguf_new(out, &g, err, err_len);
}

static int map_fd(int fd, struct gguf *g, char *err, size_t err_len)
{
	const char *what = NULL;
	struct stat st;
	void *p;

	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode))
		what = "not a regular file";
	else if (st.st_size == 0)
		what = "header, byte 0: the file is empty";
	if (what) {
		(void)snprintf(err, err_len, "%s", what);
		return -EINVAL;
	}
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*g = (struct gguf){ .base = p, .len = (size_t)st.st_size, .mapped = 1 };
	return 0;
}

int gguf_open(struct gguf **out, const char *path, char *err, size_t err_len)
{
	struct gguf g;
	int fd, ret;

	if (err_len)
		err[0] = 0;
	/* Not blocking: the path may name a FIFO. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ret = fd < 0 ? -errno : map_fd(fd, &g, err, err_len);
	if (fd >= 0)
		(void)close(fd); /* only read from */
	if (!ret)
		return gguf_new(out, &g, err, err_len);
	if (err_len && !err[0])
		(void)snprintf(err, err_len, "%s", strerror(-ret));
	return ret;
}

void gguf_close(struct gguf *g)
{
	if (!g)
		return;
	for (uint64_t i = 0; g->kvs && i < g->n_kvs; i++)
		free(g->kvs[i].strs);
	free(g->kvs);
	free(g->tensors);
	free(g->sorted);
	if (g->mapped) /* cannot fail: it is our own mapping */
		(void)munmap((void *)(uintptr_t)g->base, g->len);
	free(g);
}

/* ---- look-ups ----------------------------------------------------- */

static const struct gguf_kv *find_kv(const struct gguf *g, const char *key)
{
	const struct gguf_kv want = { .key = { key, strlen(key) } };

	return bsearch(&want, g->kvs, g->n_kvs, sizeof(*g->kvs), gguf_kv_cmp);
}

static int get_scalar(const struct gguf *g, const char *key,
		      enum gguf_type type, void *out)
{
	const struct gguf_kv *kv = find_kv(g, key);

	if (!kv)
		return -ENOENT;
	if (kv->type != type)
		return -EINVAL;
	memcpy(out, kv->data, gguf_type_bytes(type));
	return 0;
}

int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out)
{
	return get_scalar(g, key, GGUF_U32, out);
}

int gguf_get_f32(const struct gguf *g, const char *key, float *out)
{
	return get_scalar(g, key, GGUF_F32, out);
}

int gguf_get_bool(const struct gguf *g, const char *key, int *out)
{
	uint8_t b;
	int ret = get_scalar(g, key, GGUF_BOOL, &b);

	if (!ret)
		*out = b;
	return ret;
}

int gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out)
{
	const struct gguf_kv *kv = find_kv(g, key);

	if (!kv)
		return -ENOENT;
	if (kv->type != GGUF_STRING)
		return -EINVAL;
	*out = kv->strs[0];
	return 0;
}

static int find_array(const struct gguf *g, const char *key,
		      enum gguf_type elem, const struct gguf_kv **out)
{
	const struct gguf_kv *kv = find_kv(g, key);

	if (!kv)
		return -ENOENT;
	if (kv->type != GGUF_ARRAY || kv->elem != elem)
		return -EINVAL;
	*out = kv;
	return 0;
}

int gguf_get_array(const struct gguf *g, const char *key, enum gguf_type type,
		   uint64_t *n)
{
	const struct gguf_kv *kv;
	int ret = find_array(g, key, type, &kv);

	if (!ret)
		*n = kv->n;
	return ret;
}

int gguf_array_str(const struct gguf *g, const char *key, uint64_t i,
		   struct gguf_str *out)
{
	const struct gguf_kv *kv;
	int ret = find_array(g, key, GGUF_STRING, &kv);

	if (ret)
		return ret;
	if (i >= kv->n)
		return -EINVAL;
	*out = kv->strs[i];
	return 0;
}

static int array_word(const struct gguf *g, const char *key,
		      enum gguf_type type, uint64_t i, void *out)
{
	const struct gguf_kv *kv;
	int ret = find_array(g, key, type, &kv);

	if (ret)
		return ret;
	if (i >= kv->n)
		return -EINVAL;
	memcpy(out, kv->data + i * sizeof(uint32_t), sizeof(uint32_t));
	return 0;
}

int gguf_array_f32(const struct gguf *g, const char *key, uint64_t i,
		   float *out)
{
	return array_word(g, key, GGUF_F32, i, out);
}

int gguf_array_i32(const struct gguf *g, const char *key, uint64_t i,
		   int32_t *out)
{
	return array_word(g, key, GGUF_I32, i, out);
}

const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name)
{
	struct gguf_tensor want = { .name = { name, strlen(name) } };
	struct gguf_tensor *key = &want;
	struct gguf_tensor **t = bsearch(&key, g->sorted, g->n_tensors,
					 sizeof(*g->sorted), gguf_name_cmp);

	return t ? *t : NULL;
}

const char *gguf_printable(struct gguf_str s, char *out, size_t len)
{
	uint64_t n = s.len < len ? s.len : len - 1;

	for (uint64_t i = 0; i < n; i++) {
		const char c = s.s[i];

		out[i] = c >= 0x20 && c < 0x7f && c != '"' ? c : '?';
	}
	out[n] = 0;
	return out;
}

uint64_t gguf_n_tensors(const struct gguf *g)
{
	return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, uint64_t i)
{
	return i < g->n_tensors ? &g->tensors[i] : NULL;
}
