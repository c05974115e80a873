/*
 * cost.c - load or recompute; see cost.h
 */
#include "kvd/serve/cost.h"

#include <string.h>
#include "io/base.h"

#define NS 1e9

static double disk_ns(const struct cost_disk *d, double bytes)
{
	return (bytes + (double)d->queue_bytes) * NS / d->bytes_per_s;
}

double cost_load_ns(const struct cost_now *now, const struct cost_bytes *bytes)
{
	double most = 0, sum = 0, ns;

	for (uint32_t i = 0; i < COST_DISKS; i++) {
		if (!bytes->on[i])
			continue;
		ns = disk_ns(&now->disks[i], (double)bytes->on[i]);
		most = KV_MAX(most, ns);
		sum += (double)bytes->on[i];
	}
	if (sum > 0 && now->all.bytes_per_s > 0) {
		ns = disk_ns(&now->all, sum);
		most = KV_MAX(most, ns);
	}
	return most;
}

/* Reading goes on while the engine is busy with others. */
static double total(const struct cost_now *now, const struct cost_bytes *bytes,
		    double rows)
{
	const double load = cost_load_ns(now, bytes);
	const double turn = (double)now->queue_rows * NS / now->rows_per_s;

	return (load > turn ? load : turn) +
	       (rows + (double)now->rest_rows) * NS / now->rows_per_s;
}

static double all_rows(const struct cost_item *items, uint32_t n)
{
	double rows = 0;

	for (uint32_t i = 0; i < n; i++)
		rows += (double)items[i].rows;
	return rows;
}

double cost_ns(const struct cost_now *now, const struct cost_item *items,
	       uint32_t n, uint32_t cut)
{
	struct cost_bytes bytes = { 0 };

	for (uint32_t i = 0; i < cut; i++)
		bytes.on[items[i].i_disk] += items[i].bytes;
	return total(now, &bytes, all_rows(items + cut, n - cut));
}

/* How long it may take. */
static double limit(const struct cost_now *now, double best, double all)
{
	const double left = (double)now->left_ns;
	const double most = now->left_ns == COST_NO_DEADLINE ? best * 1.1
			    : left < best		     ? best
							     : left;

	return KV_MIN(most, all);
}

uint32_t cost_cut(const struct cost_now *now, const struct cost_item *items,
		  uint32_t n)
{
	const double rows = all_rows(items, n);
	struct cost_bytes bytes = { 0 };
	const double all = total(now, &bytes, rows);
	double best = all, most, before = 0, ns;
	uint32_t cut = 0;

	for (uint32_t i = 0; i < n; i++) {
		bytes.on[items[i].i_disk] += items[i].bytes;
		before += (double)items[i].rows;
		ns = total(now, &bytes, rows - before);
		best = KV_MIN(best, ns);
	}
	most = limit(now, best, all);
	memset(&bytes, 0, sizeof(bytes));
	before = 0;
	for (uint32_t i = 0; i < n; i++) {
		bytes.on[items[i].i_disk] += items[i].bytes;
		before += (double)items[i].rows;
		if (total(now, &bytes, rows - before) <= most)
			cut = i + 1;
	}
	return cut;
}

uint32_t cost_start(uint32_t n, uint64_t load_ns, uint64_t compute_ns)
{
	if (n <= 1 || load_ns <= compute_ns)
		return 1;
	/* n - (n - 1) tc / tl, rounded down */
	return n - (uint32_t)KV_DIV_UP((n - 1) * compute_ns, load_ns);
}

uint32_t cost_share(uint64_t load_ns, uint64_t compute_ns, uint32_t least)
{
	const double most = 999;
	const double free =
		compute_ns ? 1e3 * (double)load_ns / (double)compute_ns : least;

	return free <= least  ? least
	       : free >= most ? (uint32_t)most
			      : (uint32_t)free;
}
