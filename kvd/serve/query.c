/*
 * query.c - what there is, as JSON: status, models, tenants, pages, ...
 */
#include "kvd/serve/serve.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/serve/gate.h"
#include "kvd/serve/json.h"
#include "kvd/serve/tenant.h"

/* ---- one object each --------------------------------------------------------- */

static json_t *page_counts(struct serve_tenant *t)
{
	json_t *o = json_object();
	struct pager_info i;

	pager_info(t->pager, &i);
	set_str(o, "tenant", t->conf->name);
	set_int(o, "memory_bytes", i.memory_bytes);
	set_int(o, "mapped_bytes", i.mapped_bytes);
	set_int(o, "pinned_bytes", i.pinned_bytes);
	/* frames; in use now; what can go at once; beyond tokens, all tiers */
	set_int(o, "held_bytes", i.mapped_bytes);
	set_int(o, "used_bytes", i.pinned_bytes);
	set_int(o, "reclaimable_bytes", i.evictable_bytes);
	set_int(o, "waste_bytes", segment_waste(t->pool));
	set_int(o, "empty", i.n_empty);
	set_int(o, "dirty", i.n_dirty);
	set_int(o, "clean", i.n_clean);
	set_int(o, "lower", i.n_lower);
	set_int(o, "in_flight", i.n_in_flight);
	set_int(o, "lost", i.n_lost);
	set_int(o, "mapped_total", i.n_mapped_total);
	set_int(o, "map_waits_total", i.n_map_waits_total);
	set_int(o, "evicted_total", i.n_evicted_total);
	set_int(o, "read_total", i.n_read_total);
	set_int(o, "written_total", i.n_written_total);
	set_int(o, "read_bytes_total", i.read_bytes_total);
	set_int(o, "written_bytes_total", i.written_bytes_total);
	set_int(o, "disk_bytes", i.disk_bytes);
	set_int(o, "slot_bytes", i.slot_bytes);
	set_int(o, "file_bytes", i.file_bytes);
	set_int(o, "small_bytes", i.small_bytes);
	if (!t->serve->device)
		return o;
	/* the tiers: frames; pinned host memory; of that not on disk */
	set_int(o, "device_bytes", i.mapped_bytes);
	set_int(o, "host_bytes", i.host_bytes);
	set_int(o, "host_dirty_bytes", i.host_dirty_bytes);
	return o;
}

static json_t *usage_object(struct serve_tenant *t)
{
	static const char *const keys[PAGER_TIERS][5] = {
		{ "memory_limit", "memory_floor", "memory_share", "memory_used",
		  "memory_byte_s" },
		{ "disk_limit", "disk_floor", "disk_share", "disk_used",
		  "disk_byte_s" },
		{ "host_limit", "host_floor", "host_share", "host_used",
		  "host_byte_s" },
	};
	json_t *o = json_object();
	struct pager_usage u;
	struct pager_info p;

	pager_usage(t->pager, &u);
	pager_info(t->pager, &p);
	set_str(o, "name", t->conf->name);
	set_int(o, "weight", u.weight);
	for (int i = 0; i < u.n_tiers; i++) {
		set_int(o, keys[i][0], u.tiers[i].limit);
		set_int(o, keys[i][1], u.tiers[i].floor);
		set_int(o, keys[i][2], u.tiers[i].share);
		set_int(o, keys[i][3], u.tiers[i].used);
		set_int(o, keys[i][4], (uint64_t)u.tiers[i].byte_seconds);
	}
	set_int(o, "io_limit", u.io_limit);
	set_int(o, "io_held", u.io_held);
	set_int(o, "io_read", p.read_bytes_total);
	set_int(o, "io_written", p.written_bytes_total);
	return o;
}

static json_t *tenant_object(struct serve_tenant *t)
{
	json_t *o = json_object();
	struct pager_info i;

	pager_info(t->pager, &i);
	set_str(o, "name", t->conf->name);
	if (t->conf->share[0])
		set_str(o, "share", t->conf->share);
	set_int(o, "memory_bytes", i.memory_bytes);
	set_int(o, "mapped_bytes", i.mapped_bytes);
	set_int(o, "pinned_bytes", i.pinned_bytes);
	set_int(o, "reserved_bytes", i.reserved_bytes);
	set_int(o, "disk_bytes", i.disk_bytes);
	set_int(o, "slot_bytes", i.slot_bytes);
	set_int(o, "segment_bytes", segment_pool_bytes(t->pool));
	set_int(o, "sessions", t->n_sessions);
	set_int(o, "sequences", t->n_sequences);
	set_int(o, "requests", t->n_requests);
	set_int(o, "maps", t->maps.n);
	set_int(o, "faults_total", stat_read(t->maps.st_faults));
	set_int(o, "segments", segment_pool_n(t->pool));
	set_int(o, "lost_pages_total", i.n_lost_total);
	if (t->persist) {
		struct persist_info p;

		persist_info(t->persist, &p);
		set_int(o, "durable_segments", p.n_durable);
		set_int(o, "durable_bytes", p.durable_bytes);
		set_int(o, "queued_segments", p.n_queued);
		set_int(o, "restored_segments", p.n_adopted);
	}
	set_int(o, "chunks", t->chunks.map.n_used);
	set_int(o, "chunks_evicted_total", t->chunks.n_evicted);
	set_int(o, "variants", t->variants.n);
	set_int(o, "variants_evicted_total", t->variants.n_evicted);
	set_int(o, "prefix_hits", stat_read(t->st_prefix_hits));
	set_int(o, "prefix_tokens", stat_read(t->st_prefix_tokens));
	set_int(o, "chunk_hits", stat_read(t->st_chunk_hits));
	set_int(o, "chunk_misses", stat_read(t->st_chunk_misses));
	set_int(o, "prompt_tokens", stat_read(t->st_prompt));
	set_int(o, "generated_tokens", stat_read(t->st_tokens));
	return o;
}

static void sequence_objects(json_t *array, struct serve_tenant *t)
{
	list_for_each(n, &t->sessions) {
		struct serve_session *ss =
			list_entry(n, struct serve_session, node);

		for (uint32_t i = 0; i < ss->n_seq_room; i++) {
			struct serve_seq_info info;
			json_t *o;

			if (!ss->seqs[i] ||
			    serve_seq_info(ss, ss->seqs[i]->handle, &info))
				continue;
			o = json_object();
			set_str(o, "tenant", t->conf->name);
			set_int(o, "session", ss->id);
			set_int(o, "handle", ss->seqs[i]->handle);
			set_int(o, "tokens", info.n_tokens);
			set_int(o, "sealed", info.n_sealed);
			set_int(o, "pages", info.n_pages);
			set_int(o, "resident", info.n_resident);
			json_array_append_new(array, o);
		}
	}
}

/* What reuse does to it, as far as that was measured. */
static void set_gate(json_t *o, const struct serve_model *m)
{
	set_str(o, "gate", gate_name(m));
	set_str(o, "reuse", m->gate == GATE_FAILED ? "prefixes" : "chunks");
	if (m->gate <= GATE_PENDING)
		return;
	set_str(o, "gate_from", m->gate_kept ? "kept" : "measured");
	json_object_set_new(o, "gate_error", json_real(m->gate_error));
	json_object_set_new(o, "gate_plain_error",
			    json_real(m->gate_plain_error));
}

static json_t *models(struct serve *s)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < s->n_models; i++) {
		const struct serve_model *m = &s->models[i];
		const struct llama_shape *sh = llama_shape(m->llama);
		json_t *o = json_object();

		set_str(o, "name", m->conf->name);
		set_str(o, "path", m->conf->path);
		set_str(o, "math", sh->math == KERN_F32 ? "f32" : "bf16");
		set_int(o, "layers", sh->n_layers);
		set_int(o, "d_model", sh->d_model);
		set_int(o, "vocab", sh->n_vocab);
		set_int(o, "ctx", sh->n_ctx);
		set_int(o, "kv_bytes_per_token",
			kv_layout_token_bytes(&m->layout));
		set_int(o, "page_bytes", m->layout.page_bytes);
		set_int(o, "page_tokens", m->layout.page_tokens);
		set_int(o, "weight_bytes", llama_weight_bytes(m->llama));
		set_gate(o, m);
		json_array_append_new(array, o);
	}
	return array;
}

/* Bytes written for each byte that was to be written; 0: none was. */
static double amplification(const struct kio_store_info *k)
{
	const uint64_t asked = k->page_written_bytes - k->moved_bytes;

	return asked ? (double)(k->page_written_bytes +
				k->index_written_bytes) /
			       (double)asked
		     : 0;
}

static json_t *stores(struct serve *s)
{
	static const char *const back[] = { "holes", "discards", "no" };
	json_t *array = json_array();

	for (uint32_t i = 0; i < stores_n(s->stores); i++) {
		struct kio_store_info k;
		json_t *o = json_object();

		kio_store_info(stores_disk(s->stores, i), &k);
		set_str(o, "path", stores_path(s->stores, i));
		set_int(o, "bytes", k.bytes);
		set_int(o, "slot_bytes", k.slot_bytes);
		set_int(o, "free_zone_bytes", k.free_zone_bytes);
		set_int(o, "pending_bytes", k.pending_bytes);
		set_int(o, "bad_bytes", k.bad_bytes);
		set_int(o, "records", k.n_records);
		set_int(o, "orphans", k.n_orphans);
		set_int(o, "orphan_bytes", k.orphan_bytes);
		set_int(o, "index_bytes", k.index_bytes);
		set_int(o, "index_live_bytes", k.index_live_bytes);
		set_int(o, "index_room_bytes", k.index_room_bytes);
		set_int(o, "page_written_bytes", k.page_written_bytes);
		set_int(o, "moved_bytes", k.moved_bytes);
		set_int(o, "cleaning_bytes", k.cleaning_bytes);
		set_int(o, "zones_cleaned", k.n_zones_cleaned);
		json_object_set_new(o, "write_amplification",
				    json_real(amplification(&k)));
		set_int(o, "index_written_bytes", k.index_written_bytes);
		set_int(o, "commits", k.n_puts);
		set_int(o, "groups", k.n_groups);
		set_int(o, "compactions", k.n_compactions);
		set_int(o, "compactions_failed", k.n_not_compacted);
		set_int(o, "lost_records", k.n_lost_records);
		set_int(o, "queue", stores_n_busy(s->stores, i));
		json_object_set_new(o, "direct", json_boolean(k.direct));
		set_str(o, "gives_back", back[k.gives_back]);
		json_object_set_new(o, "failed", json_boolean(k.failed));
		json_object_set_new(
			o, "silent",
			json_boolean(stores_is_silent(s->stores, i)));
		set_str(o, "error", "");
		json_array_append_new(array, o);
	}
	for (uint32_t i = 0; i < stores_n_missing(s->stores); i++) {
		const struct stores_missing *m = stores_missing(s->stores, i);
		json_t *o = json_object();

		set_str(o, "path", m->path);
		json_object_set_new(o, "failed", json_true());
		set_str(o, "error", m->why);
		json_array_append_new(array, o);
	}
	return array;
}

static json_t *device(struct serve *s)
{
	json_t *o = json_object();
	struct device_info d;

	if (!s->device)
		return o;
	device_info(s->device, &d);
	set_str(o, "name", d.name);
	set_int(o, "index", (uint64_t)d.index);
	json_object_set_new(o, "lost", json_boolean(d.lost));
	set_int(o, "total_bytes", d.total_bytes);
	set_int(o, "budget_bytes", d.budget_bytes);
	set_int(o, "frame_bytes", d.frame_bytes);
	set_int(o, "taken_bytes", d.vmm.n_frames * d.frame_bytes);
	set_int(o, "idle_bytes", (d.vmm.n_pool + d.vmm.n_idle) * d.frame_bytes);
	set_int(o, "stuck_bytes", d.vmm.n_stuck * d.frame_bytes);
	set_int(o, "host_bytes", d.park.bytes);
	set_int(o, "host_used_bytes", d.park.used_bytes);
	set_int(o, "host_dirty_bytes", d.park.dirty_bytes);
	set_int(o, "host_lost_bytes", d.park.lost_bytes);
	set_int(o, "host_written_total", d.park.flushed);
	set_int(o, "host_dropped_total", d.park.dropped);
	set_int(o, "host_waits_total", d.park.waits);
	set_int(o, "up_bytes_total", d.copy.bytes[COPY_TO_DEVICE]);
	set_int(o, "down_bytes_total", d.copy.bytes[COPY_TO_HOST]);
	set_int(o, "maps_total", d.vmm.maps);
	set_int(o, "unmaps_total", d.vmm.unmaps);
	set_int(o, "zeroed_total", d.vmm.zeroed);
	set_int(o, "fence_waits_total", d.vmm.fence_waits);
	return o;
}

/* Of all tenants, or that of ss: who asks does not see what others do. */
static json_t *status(struct serve *s, const struct serve_session *ss)
{
	json_t *o = json_object(), *names = json_array();
	uint64_t sessions = 0, requests = 0, tenants = 0;

	set_str(o, "version", KV_VERSION);
	set_int(o, "uptime_s", (clock_ns() - s->start_ns) / 1000000000u);
	set_str(o, "isa", kern_isa_name(kern_isa()));
	set_str(o, "engine", stores_engine_name(s->stores));
	json_object_set_new(o, "draining", json_boolean(s->draining));
	for (uint32_t i = 0; i < s->n_models; i++)
		json_array_append_new(names,
				      json_string(s->models[i].conf->name));
	json_object_set_new(o, "models", names);
	for (uint32_t i = 0; i < s->n_tenants; i++) {
		if (ss && ss->tenant != s->tenants[i])
			continue;
		tenants++;
		sessions += s->tenants[i]->n_sessions;
		list_for_each(n, &s->tenants[i]->sessions)
			requests += list_entry(n, struct serve_session, node)
					    ->n_requests;
	}
	set_int(o, "tenants", tenants);
	set_int(o, "sessions", sessions);
	set_int(o, "requests", requests);
	return o;
}

/* ---- lists over the tenants one may see --------------------------------------------- */

static void append_tenant(json_t *array, struct serve_tenant *t,
			  const char *what)
{
	if (!strcmp(what, "pages")) {
		json_array_append_new(array, page_counts(t));
	} else if (!strcmp(what, "sequences")) {
		sequence_objects(array, t);
	} else if (!strcmp(what, "usage")) {
		json_array_append_new(array, usage_object(t));
	} else {
		json_array_append_new(array, tenant_object(t));
	}
}

static int known(const char *what)
{
	static const char *const lists[] = { "usage", "pages", "sequences",
					     "tenants" };

	for (size_t i = 0; i < KV_ARRAY_LEN(lists); i++)
		if (!strcmp(what, lists[i]))
			return 1;
	return 0;
}

int serve_query(struct serve *s, struct serve_session *ss, const char *what,
		const char *arg, char **out)
{
	json_t *j;

	if (serve_is_list(what))
		return serve_list_whole(s, ss, what, arg, out);
	if (!strcmp(what, "trace"))
		return ss ? -EACCES : trace_query(&s->trace, arg, out);
	if (!strcmp(what, "status")) {
		j = status(s, ss);
	} else if (!strcmp(what, "models")) {
		j = models(s);
	} else if (!strcmp(what, "stores")) {
		if (ss)
			return -EACCES;
		j = stores(s);
	} else if (!strcmp(what, "device")) {
		if (ss)
			return -EACCES;
		j = device(s);
	} else if (!known(what)) {
		return -ENOENT;
	} else {
		int found = !arg[0];

		j = json_array();
		for (uint32_t i = 0; i < s->n_tenants; i++) {
			struct serve_tenant *t = s->tenants[i];

			if ((ss && ss->tenant != t) ||
			    (arg[0] && strcmp(arg, t->conf->name)))
				continue;
			append_tenant(j, t, what);
			found = 1;
		}
		if (!found) {
			json_decref(j);
			return -ENOENT;
		}
	}
	*out = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	return *out ? 0 : -ENOMEM;
}

int serve_chunk_jobs(const struct serve *s)
{
	for (uint32_t i = 0; s && i < s->n_tenants; i++)
		if (!list_empty(&s->tenants[i]->chunk_jobs))
			return 1;
	return 0;
}
