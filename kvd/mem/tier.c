/*
 * tier.c - spaces by page size; start and end of a pager
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/dev_op.h"
#include "kvd/mem/device.h"
#include "kvd/mem/op.h"
#include "kvd/mem/stores.h"

/*
 * A space takes a large piece of addresses, and clients choose geometries: room for one
 * more page size, if need be that of a space without ranges. 0, -EDQUOT.
 */
static int room_for_tier(struct pager *p)
{
	struct tier **unused = NULL, *t;
	uint32_t n = 0;

	for (struct tier **at = &p->tiers; *at; at = &(*at)->next, n++)
		if (!(*at)->n_ranges)
			unused = at;
	if (n < PAGER_PAGE_SIZES)
		return 0;
	if (!unused) {
		log_warn("pager", "%s: %u page sizes are in use, no more",
			 p->name, n);
		return -EDQUOT;
	}
	t = *unused;
	*unused = t->next;
	space_close(t->space);
	vmm_space_close(t->dev_space);
	free(t);
	return 0;
}

static int open_space(struct pager *p, struct tier *t)
{
	const struct space_conf sc = { .name = p->name,
				       .page_bytes = t->page_bytes,
				       .huge_dir = p->conf.huge_dir,
				       .folios = p->conf.folios,
				       .mlock = p->conf.mlock,
				       .numa_node = p->conf.numa_node };
	int ret;

	if (p->conf.device)
		return dev_space_open(p, t);
	ret = space_open(&t->space, &sc);
	if (!ret)
		t->base = space_base(t->space);
	return ret;
}

int tier_is_small(const struct tier *t)
{
	return t->space && !space_folio(t->space);
}

uint64_t tier_bytes(const struct tier *t)
{
	return t->dev_space ? t->n_mapped * t->page_bytes
			    : space_file_bytes(t->space);
}

static void count_small(struct pager *p)
{
	uint64_t n = 0;

	for (const struct tier *t = p->tiers; t; t = t->next)
		n += (uint64_t)tier_is_small(t);
	stat_set(p->st_small, n);
}

int tier_get(struct pager *p, size_t page_bytes, struct tier **out)
{
	struct tier *t;
	int ret;

	for (t = p->tiers; t; t = t->next)
		if (t->page_bytes == page_bytes) {
			*out = t;
			return 0;
		}
	ret = room_for_tier(p);
	if (ret)
		return ret;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->page_bytes = page_bytes;
	ret = open_space(p, t);
	if (ret) {
		free(t);
		return ret;
	}
	if (t->space && space_folio(t->space))
		log_info("pager",
			 "%s: pages of %zu bytes in a %s, folios of %zu KiB",
			 p->name, page_bytes, space_kind(t->space),
			 space_folio(t->space) >> 10);
	else
		log_info("pager", "%s: pages of %zu bytes in a %s", p->name,
			 page_bytes,
			 t->space ? space_kind(t->space) : "device");
	t->next = p->tiers;
	t->id = ++p->n_tiers_total;
	p->tiers = t;
	count_small(p);
	*out = t;
	return 0;
}

static int n_tiers(const struct pager *p)
{
	return p->conf.device ? PAGER_TIERS : ACCOUNT_TIERS;
}

static void pager_stats(struct pager *p)
{
	static const struct {
		const char *name, *help;
	} byte_s[PAGER_TIERS] = {
		{ "kvd_memory_byte_seconds_total",
		  "Bytes of frames times seconds" },
		{ "kvd_disk_byte_seconds_total",
		  "Bytes of slots times seconds" },
		{ "kvd_host_byte_seconds_total",
		  "Bytes in the pinned host pool times seconds" },
	};
	const struct {
		struct stat **st;
		enum stat_kind kind;
		const char *name, *help;
	} list[] = {
		{ &p->st_mapped, STAT_COUNTER, "kvd_pages_mapped_total",
		  "Pages given a frame" },
		{ &p->st_evicted, STAT_COUNTER, "kvd_pages_evicted_total",
		  "Pages dropped to the lower tier" },
		{ &p->st_read, STAT_COUNTER, "kvd_pages_read_total",
		  "Pages read back" },
		{ &p->st_written, STAT_COUNTER, "kvd_pages_written_total",
		  "Pages written" },
		{ &p->st_read_bytes, STAT_COUNTER, "kvd_page_bytes_read_total",
		  "Bytes read back" },
		{ &p->st_written_bytes, STAT_COUNTER,
		  "kvd_page_bytes_written_total", "Bytes written" },
		{ &p->st_lost, STAT_COUNTER, "kvd_pages_lost_total",
		  "Pages whose stored bytes failed the check or the read" },
		{ &p->st_write_errors, STAT_COUNTER,
		  "kvd_page_write_errors_total", "Failed page writes" },
		{ &p->st_io_held, STAT_COUNTER, "kvd_io_held_total",
		  "Reads that waited for the tenant's limit of I/O" },
		{ &p->st_mapped_bytes, STAT_GAUGE, "kvd_memory_mapped_bytes",
		  "Bytes of frames" },
		{ &p->st_slot_bytes, STAT_GAUGE, "kvd_disk_slot_bytes",
		  "Bytes of slots" },
		{ &p->st_small, STAT_GAUGE, "kvd_small_page_sizes",
		  "Page sizes whose frames are pages of 4 KiB" },
	};

	for (size_t i = 0; i < KV_ARRAY_LEN(list); i++)
		*list[i].st = stat_get(list[i].kind, list[i].name, list[i].help,
				       "tenant", p->name, 1);
	for (int t = 0; t < n_tiers(p); t++)
		p->st_byte_s[t] = stat_get(STAT_COUNTER, byte_s[t].name,
					   byte_s[t].help, "tenant", p->name,
					   1);
	p->st_page_in = stat_get(STAT_HISTOGRAM, "kvd_page_in_seconds",
				 "From room to resident, per page", "tenant",
				 p->name, 1e-9);
	stat_set(stat_get(STAT_GAUGE, "kvd_memory_budget_bytes",
			  "Budget of frames", "tenant", p->name, 1),
		 p->conf.memory_bytes);
}

static void open_account(struct pager *p)
{
	const struct pager_conf *c = &p->conf;
	const struct account_conf ac = {
		.limit = { c->memory_bytes,
			   c->stores || c->device ? c->disk_bytes : 0 },
		.floor = { c->memory_floor, c->disk_floor },
		.weight = c->weight,
	};

	if (!c->accounts)
		accounts_init(&p->own, c->memory_bytes, c->disk_bytes);
	account_open(c->accounts ? c->accounts : &p->own, &p->account, &ac,
		     clock_ns());
}

int pager_new(struct pager **out, const struct pager_conf *conf)
{
	struct pager *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return -ENOMEM;
	p->conf = *conf;
	snprintf(p->name, sizeof(p->name), "%s", conf->name);
	list_init(&p->ranges);
	list_init(&p->drops);
	list_init(&p->writes);
	list_init(&p->resting);
	list_init(&p->persists);
	list_init(&p->dev_ops);
	list_init(&p->rest_timer.node);
	stores_flow_init(&p->flow, conf->weight, conf->io_limit);
	for (int i = 0; i < WANT_PRIOS; i++)
		list_init(&p->starved[i]);
	p->policy = evict_find(conf->policy);
	ret = p->policy ? op_spare_new(p) : -EINVAL;
	if (!ret)
		ret = p->policy->open(&p->policy_state);
	if (ret) {
		free(p->spare);
		free(p);
		return ret;
	}
	open_account(p);
	if (conf->device) {
		p->tenant = device_new_tenant(conf->device);
		park_open_part(device_park(conf->device), &p->part, p,
			       conf->weight);
	}
	pager_stats(p);
	*out = p;
	return 0;
}

static double byte_seconds(const struct pager *p, int t, uint64_t now_ns)
{
	return t < ACCOUNT_TIERS
		       ? account_byte_seconds(&p->account, (enum account_tier)t,
					      now_ns)
		       : park_part_byte_seconds(device_park(p->conf.device),
						&p->part, now_ns);
}

void pager_stat_usage(struct pager *p, uint64_t now_ns)
{
	stat_set(p->st_io_held, p->flow.n_held_total);
	for (int t = 0; t < n_tiers(p); t++)
		stat_set(p->st_byte_s[t], (uint64_t)byte_seconds(p, t, now_ns));
}

static struct pager_usage_tier host_usage(const struct pager *p)
{
	const struct park *k = device_park(p->conf.device);
	struct pager_usage_tier u = { .share = park_part_share(k, &p->part) };
	struct park_info i;
	uint64_t dirty;

	park_info(k, &i);
	u.limit = i.bytes;
	park_part_bytes(k, &p->part, &u.used, &dirty);
	return u;
}

void pager_usage(struct pager *p, struct pager_usage *out)
{
	const uint64_t now = clock_ns();

	out->weight = p->account.conf.weight;
	out->io_limit = p->flow.limit;
	out->io_held = p->flow.n_held_total;
	for (int t = 0; t < ACCOUNT_TIERS; t++) {
		const struct account_side *s = &p->account.side[t];

		out->tiers[t] = (struct pager_usage_tier){
			.limit = s->limit,
			.floor = s->floor,
			.share = s->share,
			.used = s->used,
		};
	}
	if (p->conf.device)
		out->tiers[ACCOUNT_TIERS] = host_usage(p);
	out->n_tiers = n_tiers(p);
	for (int t = 0; t < out->n_tiers; t++)
		out->tiers[t].byte_seconds = byte_seconds(p, t, now);
	pager_stat_usage(p, now);
}

int pager_idle(const struct pager *p)
{
	return !p->n_ops && !p->account.accounts->room_queued &&
	       list_empty(&p->ranges);
}

void pager_free(struct pager *p)
{
	struct tier *t;

	p->closing = 1;
	pager_wake_resting(p);
	while (!pager_idle(p)) {
		(void)loop_turn(p->conf.loop, 1);
		if (p->conf.stores)
			stores_turn(p->conf.stores);
	}
	loop_timer_cancel(p->conf.loop, &p->account.accounts->room_timer);
	loop_timer_cancel(p->conf.loop, &p->rest_timer);
	account_close(&p->account);
	while ((t = p->tiers)) {
		p->tiers = t->next;
		space_close(t->space);
		vmm_space_close(t->dev_space);
		free(t);
	}
	if (p->conf.device)
		park_close_part(device_park(p->conf.device), &p->part);
	p->policy->close(p->policy_state);
	free(p->spare);
	free(p);
}
