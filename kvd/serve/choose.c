/*
 * choose.c - what of a request's hits is read from disk, and what computed again
 *
 * Collects what cost.h decides on: bytes that are on disk only, rows, rates and
 * queues of now, the request's deadline.
 */
#include "kvd/serve/gen.h"

#include <errno.h>
#include <stdlib.h>
#include "kvd/base/clock.h"
#include "kvd/mem/stores.h"

static_assert(COST_DISKS >= STORES_MAX, "one for each");

#define PRIOR_PREFILL 1e4 /* rows a second, before any step */

static double rows_per_s(const struct gen *g)
{
	return rate_per_s(&g->model->prefill, PRIOR_PREFILL);
}

struct cost_now gen_cost_now(const struct gen *g, const struct pager *p)
{
	const uint64_t now = clock_ns();
	struct cost_now c = { .rows_per_s = rows_per_s(g),
			      .queue_rows = g->model->queued_rows,
			      .left_ns = COST_NO_DEADLINE };

	for (uint32_t i = 0; i < pager_n_disks(p); i++)
		pager_disk_speed(p, i, &c.disks[i].bytes_per_s,
				 &c.disks[i].queue_bytes);
	pager_disks_limit(p, &c.all.bytes_per_s, &c.all.queue_bytes);
	if (g->deadline_ns)
		c.left_ns = g->deadline_ns > now ? g->deadline_ns - now : 0;
	return c;
}

uint32_t gen_share_by_load(const struct gen *g, const struct cost_bytes *bytes,
			   uint64_t n)
{
	const double ns = (double)n * 1e9 / rows_per_s(g);
	const struct cost_now now = gen_cost_now(g, g->tenant->pager);

	return cost_share((uint64_t)cost_load_ns(&now, bytes), (uint64_t)ns,
			  REPAIR_LEAST);
}

void gen_add_lower(struct cost_bytes *bytes, const struct page_run *run)
{
	bytes->on[range_disk(run->range)] +=
		range_lower_bytes(run->range, run->first, run->n);
}

float gen_compute_cost(const struct gen *g)
{
	const double bytes = (double)kv_layout_token_bytes(&g->model->layout);

	return (float)(1e9 / rows_per_s(g) / bytes);
}

/* The cut, counted; whether the deadline had a part in it too. */
static uint32_t decide(const struct gen *g, const struct cost_now *now,
		       const struct cost_item *items, uint32_t n)
{
	struct serve_tenant *t = g->tenant;
	struct cost_now calm = *now;
	uint64_t bytes = 0, taken = 0;
	uint32_t cut = n;

	for (uint32_t i = 0; i < n; i++)
		bytes += items[i].bytes;
	if (bytes && t->serve->conf->recompute) {
		cut = cost_cut(now, items, n);
		calm.left_ns = COST_NO_DEADLINE;
		if (g->deadline_ns && cut != cost_cut(&calm, items, n))
			stat_add(t->st_by_deadline, 1);
	}
	for (uint32_t i = 0; i < cut; i++)
		taken += items[i].bytes;
	stat_add(t->st_loaded, taken ? 1 : 0);
	stat_add(t->st_recomputed, cut < n ? 1 : 0);
	return cut;
}

/* ---- prefixes ---------------------------------------------------------------- */

/* The tiles of a hit; a page counts with its first tile. */
static uint32_t weigh_hit(const struct prefix_hit *h, struct cost_item *items)
{
	const uint32_t page = h->seg->layout.page_tokens;
	struct page_run run;
	uint32_t n = 0;

	for (uint32_t at = 0; at < h->n; at += SEGMENT_BLOCK, n++) {
		const uint32_t t = h->from + at;

		items[n].rows = KV_MIN(SEGMENT_BLOCK, h->n - at);
		items[n].bytes = 0;
		items[n].i_disk = range_disk(h->seg->range);
		if (at && t % page)
			continue;
		segment_pages(h->seg, t, t + 1, &run);
		items[n].bytes = range_lower_bytes(run.range, run.first, run.n);
	}
	return n;
}

/* Keep n tiles of the part's hits. */
static void keep_tiles(struct gen *g, struct gen_part *part, uint32_t n)
{
	uint32_t left = n * SEGMENT_BLOCK, n_hits = 0, found = 0;

	for (uint32_t i = 0; i < part->n_hits; i++) {
		struct prefix_hit *h = &part->hits[i];

		if (!left) {
			segment_put(h->seg);
			continue;
		}
		h->n = KV_MIN(h->n, left);
		left -= KV_MIN(left, KV_ALIGN_UP(h->n, SEGMENT_BLOCK));
		found += h->n;
		n_hits = i + 1;
	}
	part->n_hits = n_hits;
	g->n_prefix -= part->n_found - found;
	part->n_found = found;
}

/* Rows that are computed in any case: what was not found, and chunks that miss. */
static uint64_t rest_rows(const struct gen *g)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < g->n_parts; i++)
		if (!g->parts[i].reuse)
			n += g->parts[i].n - g->parts[i].n_found;
	return n;
}

static void cut_at(struct gen *g, uint32_t cut)
{
	for (uint32_t i = 0; i < g->n_parts; i++) {
		struct gen_part *part = &g->parts[i];
		const uint32_t n = KV_DIV_UP(part->n_found, SEGMENT_BLOCK);

		if (n > cut)
			keep_tiles(g, part, cut);
		cut -= KV_MIN(n, cut);
	}
}

int gen_choose_prefix(struct gen *g)
{
	const uint32_t room = g->n_prefix / SEGMENT_BLOCK + g->n_parts;
	const struct pager *p = g->tenant->pager;
	struct cost_item *items;
	struct cost_now now;
	uint32_t n = 0;

	if (!g->n_prefix)
		return 0;
	items = calloc(room, sizeof(*items));
	if (!items)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->n_parts; i++)
		for (uint32_t k = 0; k < g->parts[i].n_hits; k++) {
			const struct prefix_hit *h = &g->parts[i].hits[k];

			if (range_n_lower(h->seg->range))
				p = range_pager(h->seg->range);
			n += weigh_hit(h, items + n);
		}
	now = gen_cost_now(g, p);
	now.rest_rows = rest_rows(g);
	cut_at(g, decide(g, &now, items, n));
	free(items);
	return 0;
}

/* ---- chunks -------------------------------------------------------------------- */

int gen_take_chunk(struct gen *g, const struct gen_part *part,
		   struct cost_bytes *bytes)
{
	const struct range *r = part->seg->range;
	const uint32_t i = range_disk(r);
	struct cost_now now = gen_cost_now(g, range_pager(r));
	struct cost_item item = { .rows = part->n, .i_disk = i };
	struct page_run run;

	segment_pages(part->seg, 0, part->n, &run);
	item.bytes = range_lower_bytes(r, run.first, run.n);
	for (uint32_t k = 0; k < COST_DISKS; k++) {
		now.disks[k].queue_bytes += bytes->on[k];
		now.all.queue_bytes += bytes->on[k];
	}
	if (!decide(g, &now, &item, 1))
		return 0;
	bytes->on[i] += item.bytes;
	return 1;
}
