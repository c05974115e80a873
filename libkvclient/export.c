/*
 * export.c - pages of the daemon's device memory in this process
 *
 * Each segment is one range of addresses (cuMemAddressReserve), group by group: the
 * pages of a group of layers stand side by side, so that pages by token have one
 * stride from the first token to the last. Frames come as descriptors over the control
 * socket, some pages at a time, are imported, mapped and closed.
 *
 * The driver is the one of this process: loaded here, if the program has not. Its
 * context is not touched; handles and mappings need none.
 *
 * Any thread.
 */
#include "libkvclient/kvc.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROOM_FIRST 16u /* entries */

/* ---- the driver: what is needed of it, as in cuda.h --------------------------- */

struct access {
	int type, id; /* 1: a device; its number */
	int flags;
};
enum { POSIX_FD = 1, DEVICE = 1, PROT_R = 1, PROT_RW = 3 };
enum { NOT_SUPPORTED = 801, INVALID_VALUE = 1, OUT_OF_MEMORY = 2 };

#define CALLS(X) \
	X(init, "cuInit", (unsigned int flags)) \
	X(count, "cuDeviceGetCount", (int *n)) \
	X(get, "cuDeviceGet", (int *dev, int i)) \
	X(uuid, "cuDeviceGetUuid", (void *out, int dev)) \
	X(reserve, "cuMemAddressReserve", \
	  (uint64_t * at, size_t n, size_t align, uint64_t want, \
	   unsigned long long flags)) \
	X(unreserve, "cuMemAddressFree", (uint64_t at, size_t n)) \
	X(import, "cuMemImportFromShareableHandle", \
	  (uint64_t * mem, void *handle, int type)) \
	X(release, "cuMemRelease", (uint64_t mem)) \
	X(map, "cuMemMap", \
	  (uint64_t at, size_t n, size_t off, uint64_t mem, \
	   unsigned long long flags)) \
	X(access, "cuMemSetAccess", \
	  (uint64_t at, size_t n, const struct access *a, size_t n_a)) \
	X(unmap, "cuMemUnmap", (uint64_t at, size_t n))

#define FIELD(name, symbol, args) int(*name) args;
struct driver {
	CALLS(FIELD)
};
#undef FIELD

static int driver_open(struct driver *d, const char *library)
{
	/* it stays loaded: the program may use it too */
	void *lib = dlopen(library ? library : "libcuda.so.1",
			   RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	void *p;

	if (!lib)
		return -ENOTSUP;
#define LOAD(name, symbol, args) \
	p = dlsym(lib, symbol); \
	if (!p) \
		return -ENOTSUP; \
	memcpy(&d->name, &p, sizeof(p));
	CALLS(LOAD)
#undef LOAD
	return d->init(0) ? -ENODEV : 0;
}

static int driver_err(int r)
{
	return !r		    ? 0
	       : r == OUT_OF_MEMORY ? -ENOMEM
	       : r == NOT_SUPPORTED ? -ENOTSUP
	       : r == INVALID_VALUE ? -EINVAL
				    : -EIO;
}

static int driver_find(const struct driver *d, const uint8_t uuid[16], int *dev)
{
	uint8_t have[16];
	int n = 0;

	if (d->count(&n))
		return -ENODEV;
	for (int i = 0; i < n; i++)
		if (!d->get(dev, i) && !d->uuid(have, *dev) &&
		    !memcmp(have, uuid, sizeof(have)))
			return 0;
	return -ENODEV; /* not one that this process sees */
}

/* ---- what kvc_export() returned ------------------------------------------------ */

struct area {
	uint64_t at, n_bytes; /* reserved */
	uint64_t n_mapped; /* frames in it */
	uint32_t id, n_pages;
	uint32_t flags; /* of its entry */
};

struct exported {
	struct kvc_export pub;
	struct driver cu;
	int dev;
	uint64_t page_bytes, frame_bytes, n_groups;
	struct area *areas; /* [pub.n_entries] */
	struct kvc_export_entry *entries;
	uint64_t *frames; /* addresses of those mapped, of all areas */
	uint64_t n_frames;
	uint32_t epoch;
	uint32_t n_told; /* areas that the daemon has pinned */
};

/* Where page i of the area goes: group by group. */
static uint64_t page_at(const struct exported *e, const struct area *a,
			uint64_t i)
{
	const uint64_t n_blocks = a->n_pages / e->n_groups;

	return a->at +
	       (i % e->n_groups * n_blocks + i / e->n_groups) * e->page_bytes;
}

static int map_frame(struct exported *e, uint64_t at, int fd)
{
	uint64_t mem;
	int r = e->cu.import(&mem, (void *)(intptr_t)fd, POSIX_FD);

	if (r)
		return driver_err(r);
	r = e->cu.map(at, e->frame_bytes, 0, mem, 0);
	(void)e->cu.release(mem); /* the mapping keeps it */
	if (!r)
		e->frames[e->n_frames++] = at;
	return driver_err(r);
}

static int call(struct kvc *c, uint16_t op, uint64_t a0, uint64_t a1,
		uint64_t a2)
{
	struct kv_sqe s = { .opcode = op, .arg = { a0, a1, a2 } };

	return kvc_call(c, &s);
}

/* Pages [first, first + n) of an area: ask, receive, map. */
static int map_pages(struct kvc *c, struct exported *e, const struct area *a,
		     uint32_t first, uint32_t n)
{
	const uint64_t per_page = e->page_bytes / e->frame_bytes;
	int fds[KV_FRAMES_MAX];
	int n_fds = call(c, KV_OP_EXPORT_PAGES, a->id, first, n), ret = 0;

	if (n_fds < 0)
		return n_fds;
	n_fds = kvc_frames_take(c, a->id, first, fds);
	if (n_fds < 0)
		return n_fds;
	if ((uint64_t)n_fds != n * per_page)
		ret = -EPROTO;
	for (int i = 0; i < n_fds; i++) {
		const uint64_t k = (uint64_t)i;

		if (!ret)
			ret = map_frame(e,
					page_at(e, a, first + k / per_page) +
						k % per_page * e->frame_bytes,
					fds[i]);
		(void)close(fds[i]); /* imported, or of no use */
	}
	return ret;
}

/* All of an area is mapped: for reading only where it is to be and can be. */
static int set_access(struct exported *e, const struct area *a)
{
	struct access acc = { DEVICE, e->dev,
			      a->flags & KV_EXPORT_WRITE ? PROT_RW : PROT_R };
	int r = e->cu.access(a->at, a->n_bytes, &acc, 1);

	if (r && acc.flags == PROT_R) {
		acc.flags = PROT_RW;
		r = e->cu.access(a->at, a->n_bytes, &acc, 1);
		e->pub.is_writable = 1;
	}
	return driver_err(r);
}

static int area_map(struct kvc *c, struct exported *e, struct area *a)
{
	const uint64_t per_page = e->page_bytes / e->frame_bytes;
	const uint32_t step = (uint32_t)(KV_FRAMES_MAX / per_page);
	int ret = driver_err(e->cu.reserve(&a->at, a->n_bytes, 0, 0, 0));

	if (ret)
		a->at = 0;
	for (uint32_t i = 0; !ret && i < a->n_pages; i += step)
		ret = map_pages(c, e, a, i,
				a->n_pages - i < step ? a->n_pages - i : step);
	return ret ? ret : set_access(e, a);
}

static void exported_free(struct exported *e)
{
	free(e->areas);
	free(e->entries);
	free(e->frames);
	free(e);
}

/* First out of this process, then out of the daemon. */
static int exported_end(struct kvc *c, struct exported *e)
{
	int ret = 0;

	for (uint64_t i = 0; i < e->n_frames; i++)
		if (e->cu.unmap(e->frames[i], e->frame_bytes))
			ret = -EIO;
	for (uint32_t i = 0; i < e->n_told; i++) {
		struct area *a = &e->areas[i];

		if (a->at && e->cu.unreserve(a->at, a->n_bytes))
			ret = -EIO;
		if (e->epoch == c->epoch && c->map)
			(void)call(c, KV_OP_UNEXPORT, a->id, 0,
				   0); /* or over */
	}
	exported_free(e);
	return ret;
}

/* ---- asking --------------------------------------------------------------------- */

static void take_numbers(struct exported *e, const struct kv_export *k)
{
	struct kvc_export *p = &e->pub;

	e->page_bytes = k->page_bytes;
	e->frame_bytes = k->frame_bytes;
	e->n_groups = k->page_layers ? (k->n_layers + k->page_layers - 1) /
					       k->page_layers
				     : 0;
	p->n_tokens = k->n_tokens;
	p->token_stride = k->token_stride;
	p->head_stride = k->head_stride;
	p->plane_stride = k->plane_stride;
	p->layer_stride = k->layer_stride;
	p->n_layers = k->n_layers;
	p->n_kv_heads = k->n_kv_heads;
	p->head_dim = k->head_dim;
	p->elem_bytes = k->elem_bytes;
	p->page_tokens = k->page_tokens;
	p->page_layers = k->page_layers;
	p->page_bytes = k->page_bytes;
	p->is_contiguous = k->flags & KV_EXPORT_BY_TOKEN ? 1 : 0;
}

/* The daemon is trusted with KV, not with our arithmetic. */
static int look_at_numbers(const struct exported *e)
{
	return e->n_groups && e->frame_bytes && e->page_bytes &&
			       e->page_bytes % e->frame_bytes == 0 &&
			       e->page_bytes / e->frame_bytes <= KV_FRAMES_MAX
		       ? 0
		       : -ENOTSUP;
}

static int take_entries(struct exported *e, const struct kv_export_entry *from,
			uint32_t n)
{
	uint64_t n_frames = 0;

	e->areas = calloc(n + 1, sizeof(*e->areas));
	e->entries = calloc(n + 1, sizeof(*e->entries));
	if (!e->areas || !e->entries)
		return -ENOMEM;
	e->pub.entries = e->entries;
	e->pub.n_entries = n;
	for (uint32_t i = 0; i < n; i++) {
		struct area *a = &e->areas[i];

		a->id = from[i].export_id;
		a->n_pages = from[i].n_pages;
		a->flags = from[i].flags;
		a->n_bytes = a->n_pages * e->page_bytes;
		n_frames += a->n_bytes / e->frame_bytes;
		e->n_told++;
		e->entries[i] = (struct kvc_export_entry){
			.from = from[i].from,
			.n_tokens = from[i].n_tokens,
			.n_room = a->flags & KV_EXPORT_WRITE
					  ? from[i].n_room - from[i].from
					  : from[i].n_tokens,
			.pos = from[i].pos,
			.base_pos = from[i].base_pos,
		};
	}
	e->frames = calloc(n_frames + 1, sizeof(*e->frames));
	return e->frames ? 0 : -ENOMEM;
}

static int map_all(struct kvc *c, struct exported *e)
{
	for (uint32_t i = 0; i < e->n_told; i++) {
		struct area *a = &e->areas[i];
		int ret;

		if (a->n_pages % e->n_groups)
			return -EPROTO;
		ret = area_map(c, e, a);
		if (ret)
			return ret;
		e->entries[i].addr = a->at;
		e->entries[i].group_stride =
			a->n_pages / e->n_groups * e->page_bytes;
	}
	return 0;
}

/* Ask with room for n entries; entries, or -errno, then *n is what it takes. */
static int ask(struct kvc *c, struct exported *e, int seq, uint32_t flags,
	       uint32_t *n)
{
	struct kv_sqe s = { .opcode = KV_OP_EXPORT, .seq = (uint32_t)seq };
	struct kv_export_entry *entries = NULL;
	void *p, *q = NULL;
	struct kv_export *k;
	int ret = kvc_arena_take(c, sizeof(*k), &p);

	if (!ret)
		ret = kvc_arena_take(c, *n * sizeof(*entries), &q);
	else
		return ret;
	if (ret) {
		kvc_free(c, p);
		return ret;
	}
	k = p;
	entries = q;
	*k = (struct kv_export){ .entries_off = kvc_off(c, entries),
				 .n_entries = *n,
				 .flags = flags };
	s.arg[0] = kvc_off(c, k);
	ret = kvc_call(c, &s);
	if (ret >= 0) {
		take_numbers(e, k);
		if (take_entries(e, entries, (uint32_t)ret))
			ret = -ENOMEM;
		else if (look_at_numbers(e) ||
			 driver_find(&e->cu, k->uuid, &e->dev))
			ret = -ENOTSUP;
	} else if (ret == -EMSGSIZE) {
		*n = k->n_entries;
	}
	kvc_free(c, k);
	kvc_free(c, entries);
	return ret;
}

int kvc_export(struct kvc *c, int seq, const struct kvc_export_args *args,
	       struct kvc_export **out)
{
	uint32_t n = ROOM_FIRST;
	struct exported *e;
	int ret;

	if (!kvc_usable(c))
		return -EPERM;
	if (!c->map)
		return -ECONNRESET;
	if (!(c->features & KV_FEATURE_EXPORT))
		return -ENOTSUP;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	e->epoch = c->epoch;
	ret = driver_open(&e->cu, args ? args->cuda_library : NULL);
	if (!ret)
		do {
			ret = ask(c, e, seq,
				  args && args->with_tail ? KV_EXPORT_TAIL : 0,
				  &n);
		} while (ret == -EMSGSIZE && n < UINT32_MAX / 64);
	if (ret >= 0)
		ret = map_all(c, e);
	if (ret) {
		(void)exported_end(c, e); /* ret says why */
		return ret;
	}
	*out = &e->pub;
	return 0;
}

int kvc_unexport(struct kvc *c, struct kvc_export *x)
{
	if (!kvc_usable(c))
		return -EPERM;
	return x ? exported_end(c, (struct exported *)((char *)x -
						       offsetof(struct exported,
								pub)))
		 : 0;
}

int kvc_seq_wrote(struct kvc *c, int seq, uint64_t n_tokens)
{
	struct kv_sqe s = { .opcode = KV_OP_SEQ_WROTE,
			    .seq = (uint32_t)seq,
			    .arg = { n_tokens } };

	return kvc_call(c, &s);
}

/* ---- buffers --------------------------------------------------------------------- */

int kvc_buffer(struct kvc *c, const struct kv_buffer *b)
{
	struct kv_sqe s = { .opcode = KV_OP_BUFFER };
	void *p;
	int ret = kvc_arena_take(c, sizeof(*b), &p);

	if (ret)
		return ret;
	memcpy(p, b, sizeof(*b));
	s.arg[0] = kvc_off(c, p);
	ret = kvc_call(c, &s);
	kvc_free(c, p);
	return ret;
}

int kvc_buffer_free(struct kvc *c, int buffer)
{
	struct kv_sqe s = { .opcode = KV_OP_BUFFER_FREE,
			    .arg = { (uint64_t)buffer } };

	return buffer < 0 ? -ENOENT : kvc_call(c, &s);
}
