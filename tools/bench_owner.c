/*
 * bench_owner.c - a tenant without its daemon; see bench_owner.h
 */
#include "tools/bench_owner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/cache/persist.h"
#include "kvd/mem/stores.h"
#include "tools/bench.h"

#define STORE_BYTES (128ull << 30)
#define DISK_BYTES  (32ull << 30)

/* What a tenant has, as far as a start needs it. */
struct owner {
	struct loop *loop;
	struct stores *stores;
	struct pager *pager;
	struct segment_pool *pool;
	struct prefix_tree prefix;
	struct chunk_table chunks;
	struct variant_table variants;
	struct persist *persist;
	struct kv_layout layout;
	uint64_t n_adopted;
	uint32_t n_tokens; /* of a segment */
};

void owner_free(struct owner *o)
{
	if (!o)
		return;
	persist_free(o->persist);
	segment_pool_free(o->pool);
	prefix_fini(&o->prefix);
	chunk_fini(&o->chunks);
	variant_table_fini(&o->variants);
	pager_free(o->pager);
	stores_free(o->stores);
	loop_free(o->loop);
	free(o);
}

static int owner_init(struct owner *o, const char *path)
{
	struct stores_conf sc = { .depth = 32,
				  .n = 1,
				  .disks[0] = { path, STORE_BYTES } };
	struct pager_conf pc = { .name = "bench",
				 .memory_bytes = 64u << 20,
				 .disk_bytes = DISK_BYTES,
				 .numa_node = -1,
				 .policy = "clock" };
	struct persist_conf conf = { .tenant = "bench" };
	int ret = loop_new(&o->loop);

	prefix_init(&o->prefix);
	chunk_init(&o->chunks);
	variant_table_init(&o->variants);
	sc.loop = pc.loop = conf.loop = o->loop;
	ret = ret ? ret : loop_start_workers(o->loop, 1);
	ret = ret ? ret : stores_new(&o->stores, &sc);
	pc.stores = o->stores;
	ret = ret ? ret : pager_new(&o->pager, &pc);
	ret = ret ? ret : segment_pool_new(&o->pool, o->pager, DISK_BYTES);
	conf.pool = o->pool;
	conf.prefix = &o->prefix;
	conf.chunks = &o->chunks;
	conf.variants = &o->variants;
	return ret ? ret : persist_new(&o->persist, &conf);
}

static int owner_layout(struct owner *o, uint32_t n_pages)
{
	o->n_tokens = n_pages * SEGMENT_BLOCK;
	o->layout = (struct kv_layout){ .n_layers = 1,
					.n_kv_heads = 1,
					.head_dim = 32,
					.elem_bytes = 2,
					.page_tokens = SEGMENT_BLOCK,
					.page_layers = 1 };
	return kv_layout_init(&o->layout);
}

int owner_new(struct owner **out, const char *path, uint32_t n_pages)
{
	struct owner *o = calloc(1, sizeof(*o));
	int ret;

	if (!o)
		return -ENOMEM;
	ret = owner_layout(o, n_pages);
	ret = ret ? ret : owner_init(o, path);
	if (ret)
		owner_free(o);
	else
		*out = o;
	return ret;
}

int owner_meta(struct owner *o, uint32_t n, void *meta, size_t most,
	       uint64_t key[2])
{
	const uint32_t n_ids = o->n_tokens / SEGMENT_BLOCK;
	struct map_id ids[OWNER_PAGES];
	uint32_t tokens[OWNER_PAGES * SEGMENT_BLOCK];
	struct segment s = { .layout = o->layout,
			     .n_tokens = o->n_tokens,
			     .tokens = tokens,
			     .ids = ids };
	uint64_t x = n + 1;
	size_t n_bytes;
	void *blob;

	for (uint32_t i = 0; i < o->n_tokens; i++)
		tokens[i] = n + i;
	for (uint32_t i = 0; i < n_ids; i++)
		for (int k = 0; k < 2; k++) { /* as a hash is: splitmix64 */
			uint64_t z = x += 0x9e3779b97f4a7c15u +
					  (n + 1ull) * 0x632be59bd9b4e019u;

			z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
			z = (z ^ z >> 27) * 0x94d049bb133111ebu;
			ids[i].w[k] = z ^ z >> 31;
		}
	blob = persist_record_new(o->persist, &s, &n_bytes, key);
	if (!blob || n_bytes > most) {
		free(blob);
		return -ENOMEM;
	}
	memcpy(meta, blob, n_bytes);
	free(blob);
	return (int)n_bytes;
}

static int owner_found(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	struct owner *o = ctx;

	if (persist_adopt(o->persist, i_disk, r))
		return KIO_RECORD_ORPHAN;
	o->n_adopted++;
	return KIO_RECORD_KEEP;
}

int64_t owner_open(struct owner *o)
{
	char err[256];
	const int ret =
		stores_open(o->stores, owner_found, o, err, sizeof(err));

	if (ret)
		return bench_fail(ret, "store: %s", err);
	return (int64_t)o->n_adopted;
}

double owner_persist(struct owner *o)
{
	struct persist_wait w = { .ret = 0 };
	struct uses u = { 0 };
	uint64_t t0 = clock_ns();
	int ret;

	ret = persist_wait(o->persist, &w) != 1 ? -EBADMSG : 0;
	ret = ret ? ret : persist_uses(o->persist, &u);
	t0 = clock_ns() - t0;
	uses_fini(&u);
	return ret ? -1 : (double)t0 / 1e6;
}
