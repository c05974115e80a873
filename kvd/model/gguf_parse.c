/*
 * gguf_parse.c - walk a GGUF file once and check all of it
 *
 * Every count, length and offset that was checked is copied into our own
 * memory. Afterwards only the bytes of strings, array elements and tensors
 * are read from the file, at places and in lengths that no longer depend on
 * it.
 *
 *  (1) r->at <= r->len always; a read first asks need().
 *  (2) Allocations are bounded by a multiple of the file's size: a count is
 *      compared with the bytes that are left before it is believed.
 */
#include "kvd/model/gguf_priv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_MAX	       65535u /* gguf.md: "up to 2^16-1 bytes" */
#define NAME_MAX_LEN   64u /* gguf.md: tensor names */
#define DIMS_MAX       4u
#define NEST_MAX       4u /* arrays in arrays; the format names no bound */
#define ALIGN_DEFAULT  32u
#define ALIGN_MAX      (1u << 20)
#define KV_BYTES_MIN   14u /* 1-byte key, type, 1-byte value */
#define INFO_BYTES_MIN 33u /* 1-byte name, 1 dimension */

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	      "GGUF is read as it lies in the file");

/* The walk: where it is, what it reads there, and where errors go. */
struct reader {
	struct gguf *g;
	uint64_t at, len;
	char what[112]; /* "key 3", "tensor \"blk.0...\"" */
	char *err;
	size_t err_len;
};

/* Put "what, byte at: text" into err. Returns -EINVAL. */
__attribute__((format(printf, 3, 4))) static int
bad(struct reader *r, uint64_t at, const char *fmt, ...);

static int bad(struct reader *r, uint64_t at, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap); /* cut is fine */
	va_end(ap);
	if (r->err_len)
		(void)snprintf(r->err, r->err_len, "%s, byte %" PRIu64 ": %s",
			       r->what, at, text);
	return -EINVAL;
}

static void set_what(struct reader *r, const char *kind, struct gguf_str s)
{
	char name[80];

	(void)snprintf(r->what, sizeof(r->what), "%s \"%s\"", kind,
		       gguf_printable(s, name, sizeof(name)));
}

static int need(struct reader *r, uint64_t n, const char *field)
{
	if (n <= r->len - r->at)
		return 0;
	return bad(r, r->at,
		   "%s needs %" PRIu64 " bytes, the file ends after %" PRIu64,
		   field, n, r->len - r->at);
}

static int read_u32(struct reader *r, const char *field, uint32_t *out)
{
	int ret = need(r, sizeof(*out), field);

	if (ret)
		return ret;
	memcpy(out, r->g->base + r->at, sizeof(*out));
	r->at += sizeof(*out);
	return 0;
}

static int read_u64(struct reader *r, const char *field, uint64_t *out)
{
	int ret = need(r, sizeof(*out), field);

	if (ret)
		return ret;
	memcpy(out, r->g->base + r->at, sizeof(*out));
	r->at += sizeof(*out);
	return 0;
}

static int read_str(struct reader *r, const char *field, struct gguf_str *out)
{
	int ret = read_u64(r, field, &out->len);

	if (!ret)
		ret = need(r, out->len, field);
	if (ret)
		return ret;
	out->s = (const char *)r->g->base + r->at;
	r->at += out->len;
	return 0;
}

/* ---- keys --------------------------------------------------------- */

uint32_t gguf_type_bytes(uint32_t type)
{
	static const uint8_t bytes[] = {
		[GGUF_U8] = 1,	[GGUF_I8] = 1,	[GGUF_U16] = 2, [GGUF_I16] = 2,
		[GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
		[GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
	};

	return type < sizeof(bytes) ? bytes[type] : 0;
}

static int check_bools(struct reader *r, const uint8_t *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if (p[i] > 1)
			return bad(r, (uint64_t)(p - r->g->base) + i,
				   "bool is %u, not 0 or 1", p[i]);
	return 0;
}

/* n values of a fixed size. */
static int skip_fixed(struct reader *r, uint32_t type, uint64_t n)
{
	const uint32_t bytes = gguf_type_bytes(type);
	const uint8_t *p = r->g->base + r->at;

	if (!bytes)
		return bad(r, r->at, "value type %u is not known", type);
	if (n > (r->len - r->at) / bytes)
		return bad(r, r->at,
			   "%" PRIu64 " values of %u bytes, the file ends after"
			   " %" PRIu64,
			   n, bytes, r->len - r->at);
	r->at += n * bytes;
	return type == GGUF_BOOL ? check_bools(r, p, n) : 0;
}

static int read_strs(struct reader *r, uint64_t n, struct gguf_str **out)
{
	int ret = 0;

	if (n > (r->len - r->at) / sizeof(uint64_t))
		return bad(r, r->at,
			   "%" PRIu64 " strings, the file ends after %" PRIu64
			   " bytes",
			   n, r->len - r->at);
	*out = malloc(n ? n * sizeof(**out) : 1);
	if (!*out)
		return -ENOMEM;
	for (uint64_t i = 0; i < n && !ret; i++)
		ret = read_str(r, "string", *out + i);
	return ret;
}

static int read_array_head(struct reader *r, uint32_t *elem, uint64_t *n)
{
	int ret = read_u32(r, "array type", elem);

	return ret ? ret : read_u64(r, "array length", n);
}

/* The elements of an array of arrays: checked, not kept. */
static int skip_arrays(struct reader *r, uint64_t n, uint32_t depth)
{
	struct gguf_str s;
	uint32_t elem;
	uint64_t len;
	int ret = 0;

	if (depth > NEST_MAX)
		return bad(r, r->at, "arrays nested deeper than %u", NEST_MAX);
	for (uint64_t i = 0; i < n && !ret; i++) {
		ret = read_array_head(r, &elem, &len);
		if (ret)
			return ret;
		if (elem == GGUF_ARRAY)
			ret = skip_arrays(r, len, depth + 1);
		else if (elem != GGUF_STRING)
			ret = skip_fixed(r, elem, len);
		else
			for (uint64_t j = 0; j < len && !ret; j++)
				ret = read_str(r, "string", &s);
	}
	return ret;
}

static int read_array(struct reader *r, struct gguf_kv *kv)
{
	uint32_t elem;
	int ret = read_array_head(r, &elem, &kv->n);

	if (ret)
		return ret;
	kv->elem = (enum gguf_type)elem;
	kv->data = r->g->base + r->at;
	if (elem == GGUF_STRING)
		return read_strs(r, kv->n, &kv->strs);
	if (elem == GGUF_ARRAY)
		return skip_arrays(r, kv->n, 2);
	return skip_fixed(r, elem, kv->n);
}

static int read_kv(struct reader *r, struct gguf_kv *kv)
{
	uint64_t at = r->at;
	uint32_t type;
	int ret = read_str(r, "key", &kv->key);

	if (ret)
		return ret;
	if (!kv->key.len || kv->key.len > KEY_MAX)
		return bad(r, at, "key of %" PRIu64 " bytes", kv->key.len);
	set_what(r, "key", kv->key);
	ret = read_u32(r, "value type", &type);
	if (ret)
		return ret;
	kv->type = (enum gguf_type)type;
	kv->data = r->g->base + r->at;
	if (type == GGUF_STRING)
		return read_strs(r, 1, &kv->strs);
	if (type == GGUF_ARRAY)
		return read_array(r, kv);
	return skip_fixed(r, type, 1);
}

static int str_cmp(struct gguf_str a, struct gguf_str b)
{
	int c = memcmp(a.s, b.s, a.len < b.len ? a.len : b.len);

	return c ? c : (a.len > b.len) - (a.len < b.len);
}

int gguf_kv_cmp(const void *a, const void *b)
{
	return str_cmp(((const struct gguf_kv *)a)->key,
		       ((const struct gguf_kv *)b)->key);
}

static int read_kvs(struct reader *r)
{
	struct gguf *g = r->g;
	int ret;

	if (g->n_kvs > (r->len - r->at) / KV_BYTES_MIN)
		return bad(r, r->at, "%" PRIu64 " keys cannot fit", g->n_kvs);
	g->kvs = calloc(g->n_kvs ? g->n_kvs : 1, sizeof(*g->kvs));
	if (!g->kvs)
		return -ENOMEM;
	for (uint64_t i = 0; i < g->n_kvs; i++) {
		(void)snprintf(r->what, sizeof(r->what), "key %" PRIu64, i);
		ret = read_kv(r, &g->kvs[i]);
		if (ret)
			return ret;
	}
	qsort(g->kvs, g->n_kvs, sizeof(*g->kvs), gguf_kv_cmp);
	for (uint64_t i = 1; i < g->n_kvs; i++) {
		if (gguf_kv_cmp(&g->kvs[i - 1], &g->kvs[i]))
			continue;
		set_what(r, "key", g->kvs[i].key);
		return bad(r, (uint64_t)(g->kvs[i].data - g->base),
			   "is there twice");
	}
	return 0;
}

static int read_alignment(struct reader *r)
{
	int ret = gguf_get_u32(r->g, "general.alignment", &r->g->align);

	if (ret == -ENOENT) {
		r->g->align = ALIGN_DEFAULT;
		return 0;
	}
	(void)snprintf(r->what, sizeof(r->what), "key \"general.alignment\"");
	if (ret)
		return bad(r, r->at, "is not an uint32");
	if (r->g->align < 8 || r->g->align > ALIGN_MAX ||
	    r->g->align & (r->g->align - 1))
		return bad(r, r->at, "is %u, not a power of two in 8..%u",
			   r->g->align, ALIGN_MAX);
	return 0;
}

/* ---- tensors ------------------------------------------------------ */

/* Elements and bytes of one block of the types whose size we know. */
static int block_of(uint32_t ggml_type, uint32_t *elems, uint32_t *bytes)
{
	static const struct {
		uint32_t type, elems, bytes;
	} known[] = {
		{ 0, 1, 4 }, /* F32 */
		{ 1, 1, 2 }, /* F16 */
		{ 8, 32, 34 }, /* Q8_0 */
		{ 30, 1, 2 }, /* BF16 */
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (known[i].type != ggml_type)
			continue;
		*elems = known[i].elems;
		*bytes = known[i].bytes;
		return 0;
	}
	return -ENOTSUP;
}

static int read_dims(struct reader *r, struct gguf_tensor *t)
{
	uint64_t n = 1;
	int ret = read_u32(r, "number of dimensions", &t->n_dims);

	if (ret)
		return ret;
	if (!t->n_dims || t->n_dims > DIMS_MAX)
		return bad(r, r->at - 4, "%u dimensions", t->n_dims);
	for (uint32_t i = 0; i < t->n_dims; i++) {
		ret = read_u64(r, "dimension", &t->dims[i]);
		if (ret)
			return ret;
		if (!t->dims[i] || t->dims[i] > INT64_MAX / 8 / n)
			return bad(r, r->at - 8,
				   "dimension %u is %" PRIu64
				   ", the product is out of range",
				   i, t->dims[i]);
		n *= t->dims[i];
	}
	for (uint32_t i = t->n_dims; i < DIMS_MAX; i++)
		t->dims[i] = 1;
	return 0;
}

static int set_bytes(struct reader *r, struct gguf_tensor *t)
{
	uint64_t n = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
	uint32_t elems, bytes;

	if (block_of(t->ggml_type, &elems, &bytes))
		return 0; /* who wants this tensor refuses it */
	if (t->dims[0] % elems)
		return bad(r, r->at - 12,
			   "rows of %" PRIu64 " are not whole blocks of %u",
			   t->dims[0], elems);
	t->n_bytes = n / elems * bytes; /* n <= 2^60, bytes / elems <= 4 */
	return 0;
}

/* The offset stays in t->data as a number until the data section is known. */
static int read_info(struct reader *r, struct gguf_tensor *t)
{
	uint64_t offset, at = r->at;
	int ret = read_str(r, "name", &t->name);

	if (ret)
		return ret;
	if (!t->name.len || t->name.len > NAME_MAX_LEN)
		return bad(r, at, "name of %" PRIu64 " bytes", t->name.len);
	set_what(r, "tensor", t->name);
	ret = read_dims(r, t);
	if (!ret)
		ret = read_u32(r, "type", &t->ggml_type);
	if (!ret)
		ret = read_u64(r, "offset", &offset);
	if (!ret)
		ret = set_bytes(r, t);
	if (ret)
		return ret;
	if (offset % r->g->align)
		return bad(r, r->at - 8,
			   "offset %" PRIu64 " is not a multiple of %u", offset,
			   r->g->align);
	t->data = (const void *)(uintptr_t)offset;
	return 0;
}

int gguf_name_cmp(const void *a, const void *b)
{
	return str_cmp((*(struct gguf_tensor *const *)a)->name,
		       (*(struct gguf_tensor *const *)b)->name);
}

static int data_cmp(const void *a, const void *b)
{
	const struct gguf_tensor *x = *(struct gguf_tensor *const *)a;
	const struct gguf_tensor *y = *(struct gguf_tensor *const *)b;

	return (x->data > y->data) - (x->data < y->data);
}

static uint64_t place(const struct gguf *g, const struct gguf_tensor *t)
{
	return (uint64_t)((const uint8_t *)t->data - g->base);
}

/* Turn offsets into pointers, each with all of its bytes inside the file. */
static int place_tensors(struct reader *r)
{
	struct gguf *g = r->g;
	uint64_t pad = (g->align - r->at % g->align) % g->align;
	uint64_t room;

	if (!g->n_tensors)
		return 0;
	(void)snprintf(r->what, sizeof(r->what), "tensor data");
	if (need(r, pad, "padding"))
		return -EINVAL;
	r->at += pad;
	room = r->len - r->at;
	for (uint64_t i = 0; i < g->n_tensors; i++) {
		struct gguf_tensor *t = &g->tensors[i];
		uint64_t offset = (uintptr_t)t->data;

		set_what(r, "tensor", t->name);
		if (offset > room || t->n_bytes > room - offset)
			return bad(r, r->at,
				   "%" PRIu64 " bytes at offset %" PRIu64
				   " of the data, which has %" PRIu64,
				   t->n_bytes, offset, room);
		t->data = g->base + r->at + offset;
	}
	return 0;
}

static int check_overlap(struct reader *r)
{
	struct gguf *g = r->g;

	qsort(g->sorted, g->n_tensors, sizeof(*g->sorted), data_cmp);
	for (uint64_t i = 1; i < g->n_tensors; i++) {
		const struct gguf_tensor *a = g->sorted[i - 1];
		const struct gguf_tensor *b = g->sorted[i];

		if (place(g, a) + a->n_bytes <= place(g, b))
			continue;
		set_what(r, "tensor", b->name);
		return bad(r, place(g, b), "overlaps the tensor before it");
	}
	return 0;
}

static int check_names(struct reader *r)
{
	struct gguf *g = r->g;

	qsort(g->sorted, g->n_tensors, sizeof(*g->sorted), gguf_name_cmp);
	for (uint64_t i = 1; i < g->n_tensors; i++) {
		if (gguf_name_cmp(&g->sorted[i - 1], &g->sorted[i]))
			continue;
		set_what(r, "tensor", g->sorted[i]->name);
		return bad(r, r->at, "is there twice");
	}
	return 0;
}

static int read_tensors(struct reader *r)
{
	struct gguf *g = r->g;
	int ret;

	(void)snprintf(r->what, sizeof(r->what), "tensor infos");
	if (g->n_tensors > (r->len - r->at) / INFO_BYTES_MIN)
		return bad(r, r->at, "%" PRIu64 " tensors cannot fit",
			   g->n_tensors);
	g->tensors =
		calloc(g->n_tensors ? g->n_tensors : 1, sizeof(*g->tensors));
	g->sorted = calloc(g->n_tensors ? g->n_tensors : 1,
			   sizeof(struct gguf_tensor *));
	if (!g->tensors || !g->sorted)
		return -ENOMEM;
	for (uint64_t i = 0; i < g->n_tensors; i++) {
		(void)snprintf(r->what, sizeof(r->what), "tensor %" PRIu64, i);
		g->sorted[i] = &g->tensors[i];
		ret = read_info(r, &g->tensors[i]);
		if (ret)
			return ret;
	}
	ret = place_tensors(r);
	if (!ret)
		ret = check_overlap(r);
	return ret ? ret : check_names(r);
}

/* ---- the whole file ----------------------------------------------- */

static int read_header(struct reader *r)
{
	uint32_t magic, version;
	int ret;

	(void)snprintf(r->what, sizeof(r->what), "header");
	ret = read_u32(r, "magic", &magic);
	if (ret)
		return ret;
	if (magic != 0x46554747) /* "GGUF" */
		return bad(r, 0, "no GGUF magic");
	ret = read_u32(r, "version", &version);
	if (ret)
		return ret;
	if (version == 0x02000000 || version == 0x03000000)
		return bad(r, 4, "big-endian files are not supported");
	if (version != 2 && version != 3)
		return bad(r, 4, "version %u, supported are 2 and 3", version);
	ret = read_u64(r, "number of tensors", &r->g->n_tensors);
	return ret ? ret : read_u64(r, "number of keys", &r->g->n_kvs);
}

int gguf_parse(struct gguf *g, char *err, size_t err_len)
{
	struct reader r = {
		.g = g,
		.len = g->len,
		.err = err,
		.err_len = err_len,
	};
	int ret = read_header(&r);

	if (!ret)
		ret = read_kvs(&r);
	if (!ret)
		ret = read_alignment(&r);
	if (!ret)
		ret = read_tensors(&r);
	if (ret == -ENOMEM && err_len)
		(void)snprintf(err, err_len, "%s: out of memory", r.what);
	return ret;
}
