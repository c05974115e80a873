/*
 * admin.c - KV_OP_QUERY: what the daemon tells about itself, drain and stop
 *
 * "sessions" is known here, "metrics" in base, all else in serve. An
 * administrator sees everything, others their own tenant.
 *
 * An answer may be long, and is made by the loop: a tenant that asks again at once
 * waits for a multiple of what the last one took, so that others are served. Lists that grow
 * with the cache are made in parts, with such a pause after each.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/ipc/sess.h"

#define PART_NS 500000u
#define PAUSE	4u /* a tenant has at most 1 / (1 + PAUSE) of the loop's time */

/* ---- answers made here: *out is malloc'ed ------------------------------ */

static int dump(json_t *j, char **out)
{
	if (!j)
		return -ENOMEM;
	*out = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	return *out ? 0 : -ENOMEM;
}

static int version(char **out)
{
	return dump(json_pack("{s:s, s:i, s:i}", "version", KV_VERSION,
			      "abi_major", KV_ABI_MAJOR, "abi_minor",
			      KV_ABI_MINOR),
		    out);
}

static json_t *session(const struct sess *s, uint64_t now_ns)
{
	return json_pack(
		"{s:I, s:s, s:s, s:I, s:i, s:b, s:I, s:I, s:i, s:I}", "id",
		(json_int_t)s->id, "name", s->name, "tenant", s->tenant, "uid",
		(json_int_t)s->uid, "pid", (int)s->pid, "admin",
		(int)(s->flags & SESS_ADMIN), "age_s",
		(json_int_t)((now_ns - s->opened_ns) / 1000000000u), "entries",
		(json_int_t)s->n_entries, "in_flight", (int)s->n_inflight,
		"arena_bytes", (json_int_t)s->ch.arena_bytes);
}

static int sessions(struct ipc *ipc, char **out)
{
	struct list *lists[] = { &ipc->hot, &ipc->cold, &ipc->stalled };
	const uint64_t now_ns = clock_ns();
	json_t *all = json_array();

	for (size_t i = 0; all && i < KV_ARRAY_LEN(lists); i++)
		list_for_each(n, lists[i])
			if (json_array_append_new(
				    all,
				    session(list_entry(n, struct sess, node),
					    now_ns))) {
				json_decref(all);
				return -ENOMEM;
			}
	return dump(all, out);
}

/* ---- the answer -------------------------------------------------------- */

/* Copy what fits; the size of all of it. */
static int reply(struct sess *s, const struct kv_query *q, const char *text)
{
	const size_t n = strlen(text);

	memcpy(s->ch.arena + q->out_off, text, KV_MIN(n, q->out_bytes));
	return n > INT32_MAX ? -EMSGSIZE : (int)n;
}

/* ---- drain and stop ---------------------------------------------------- */

static void drain_reply(struct sess_req *r)
{
	static const char text[] = "{\"drained\":true}";
	const struct kv_query q = { .out_off = r->u.query.out_off,
				    .out_bytes = r->u.query.out_bytes };

	list_del(&r->drain);
	sess_req_end(r, reply(r->sess, &q, text), 0, 0);
}

static void drain_done(struct wait *w, int ret)
{
	struct ipc *ipc = container_of(w, struct ipc, drain_wait);

	(void)ret; /* there is no failure */
	ipc->drained = 1;
	log_info("admin", "drained");
	while (!list_empty(&ipc->drains))
		drain_reply(list_entry(list_first(&ipc->drains),
				       struct sess_req, drain));
}

static int drain(struct sess *s, const struct kv_sqe *e,
		 const struct kv_query *q)
{
	struct ipc *ipc = s->ipc;
	struct sess_req *r;

	if (ipc->drained)
		return reply(s, q, "{\"drained\":true}");
	r = sess_req_begin(s, e);
	r->u.query.out_off = q->out_off;
	r->u.query.out_bytes = q->out_bytes;
	list_push(&ipc->drains, &r->drain);
	if (!ipc->draining) {
		ipc->draining = 1;
		ipc->drain_wait.done = drain_done;
		log_info("admin", "session %u (uid %u) asks to drain", s->id,
			 (unsigned int)s->uid);
		serve_drain(ipc->serve, &ipc->drain_wait);
	}
	return DISPATCH_LATER;
}

static int stop(struct sess *s, const struct kv_query *q)
{
	log_info("admin", "session %u (uid %u) asks to stop", s->id,
		 (unsigned int)s->uid);
	loop_stop(s->ipc->loop);
	return reply(s, q, "{\"stopping\":true}");
}

/* ---- trim -------------------------------------------------------------- */

static void trimmed(struct wait *w, int ret)
{
	struct serve_trim *t = container_of(w, struct serve_trim, wait);
	struct sess_req *r = container_of(t, struct sess_req, u.trim.req);
	const struct kv_query q = { .out_off = r->u.trim.out_off,
				    .out_bytes = r->u.trim.out_bytes };
	char text[64];

	snprintf(text, sizeof(text), "{\"trimmed_bytes\":%llu}",
		 (unsigned long long)t->n_bytes);
	sess_req_end(r, ret ? ret : reply(r->sess, &q, text), 0, 0);
}

/* Memory of the device that nobody uses goes back to the system. */
static int trim(struct sess *s, const struct kv_sqe *e,
		const struct kv_query *q)
{
	struct sess_req *r;
	uint64_t n = 0;
	int ret;

	if (q->arg[0] && conf_parse_size(q->arg, &n))
		return -EINVAL;
	r = sess_req_begin(s, e);
	r->u.trim.out_off = q->out_off;
	r->u.trim.out_bytes = q->out_bytes;
	r->u.trim.req =
		(struct serve_trim){ .wait.done = trimmed, .n_bytes = n };
	ret = serve_trim(s->ipc->serve, &r->u.trim.req);
	if (!ret)
		return DISPATCH_LATER;
	sess_req_drop(r);
	return ret;
}

/* ---- queries ----------------------------------------------------------- */

static int is(const struct kv_query *q, const char *what)
{
	return !strcmp(q->what, what);
}

static int query_text(struct sess *s, const struct kv_query *q, char **out)
{
	const int admin = s->flags & SESS_ADMIN;
	size_t len;

	if (is(q, "version"))
		return version(out);
	if (is(q, "sessions"))
		return admin ? sessions(s->ipc, out) : -EACCES;
	if (is(q, "metrics"))
		return admin ? stat_render(out, &len) : -EACCES;
	if ((is(q, "tenants") || is(q, "stores") || is(q, "trace") ||
	     is(q, "device")) &&
	    !admin)
		return -EACCES;
	if (!s->ipc->serve || (!s->ss && !admin))
		return -ENOENT;
	return serve_query(s->ipc->serve, admin ? NULL : s->ss, q->what, q->arg,
			   out);
}

static int query_ok(struct sess *s, const struct kv_query *q)
{
	return memchr(q->what, '\0', sizeof(q->what)) &&
	       memchr(q->arg, '\0', sizeof(q->arg)) && !q->_rsvd[0] &&
	       !q->_rsvd[1] && chan_at(&s->ch, q->out_off, q->out_bytes, 1);
}

/* Answer now; res of the completion. What it took, its tenant waits for. */
static int ask(struct sess *s, const struct kv_query *q)
{
	const uint64_t t0 = clock_ns();
	char *text = NULL;
	int ret = query_text(s, q, &text);
	uint64_t now;

	if (!ret)
		ret = reply(s, q, text);
	free(text);
	now = clock_ns();
	s->ipc->query_ns[s->i_tenant] = now + PAUSE * (now - t0);
	return ret;
}

static void late_arm(struct ipc *ipc)
{
	uint64_t at = UINT64_MAX;

	list_for_each(n, &ipc->late) {
		const struct sess_req *r =
			list_entry(n, struct sess_req, drain);

		at = KV_MIN(at, ipc->query_ns[r->sess->i_tenant]);
	}
	if (at != UINT64_MAX)
		loop_timer_set(ipc->loop, &ipc->late_timer, at);
}

void admin_late_free(struct sess_req *r)
{
	serve_list_free(r->u.late.list);
	r->u.late.list = NULL;
}

static void late_end(struct sess_req *r, int ret)
{
	admin_late_free(r);
	sess_req_end(r, ret, 0, 0);
}

static int list_begin(struct sess_req *r)
{
	const struct kv_query *q = &r->u.late.query;
	struct sess *s = r->sess;
	const int admin = s->flags & SESS_ADMIN;

	if (!s->ipc->serve || (!s->ss && !admin))
		return -ENOENT;
	return serve_list_new(s->ipc->serve, admin ? NULL : s->ss, q->what,
			      q->arg, s->ch.arena + q->out_off, q->out_bytes,
			      &r->u.late.list);
}

/* A part of the list: 0 there is more, else res of the completion. */
static int list_part(struct sess_req *r)
{
	struct sess *s = r->sess;
	const uint64_t t0 = clock_ns();
	int64_t n = r->u.late.list ? 0 : list_begin(r);
	uint64_t now;

	if (!n)
		n = serve_list_step(r->u.late.list, t0 + PART_NS);
	now = clock_ns();
	s->ipc->query_ns[s->i_tenant] = now + PAUSE * (now - t0);
	return n > INT32_MAX ? -EMSGSIZE : (int)n;
}

/* One that has waited long enough; then others have their turn. */
void admin_late(struct loop_timer *t)
{
	struct ipc *ipc = container_of(t, struct ipc, late_timer);

	list_for_each(n, &ipc->late) {
		struct sess_req *r = list_entry(n, struct sess_req, drain);
		const struct kv_query q = r->u.late.query;
		int ret;

		if (clock_ns() < ipc->query_ns[r->sess->i_tenant])
			continue;
		ret = serve_is_list(q.what) ? list_part(r) : ask(r->sess, &q);
		if (ret || !serve_is_list(q.what)) {
			late_end(r, ret);
		} else { /* behind the others of its tenant */
			list_del(&r->drain);
			list_push(&ipc->late, &r->drain);
		}
		break;
	}
	late_arm(ipc);
}

static int later(struct sess *s, const struct kv_sqe *e,
		 const struct kv_query *q)
{
	struct sess_req *r = sess_req_begin(s, e);

	r->u.late.query = *q;
	r->u.late.list = NULL;
	r->late = 1;
	list_push(&s->ipc->late, &r->drain);
	late_arm(s->ipc);
	return DISPATCH_LATER;
}

int op_query(struct sess *s, const struct kv_sqe *e)
{
	struct kv_query q;
	int ret;

	ret = chan_read(&s->ch, e->arg[0], &q, sizeof(q));
	if (ret)
		return ret;
	if (!query_ok(s, &q))
		return -EINVAL;
	if (is(&q, "drain") || is(&q, "stop")) {
		if (!(s->flags & SESS_ADMIN))
			return -EACCES;
		return is(&q, "stop") ? stop(s, &q) : drain(s, e, &q);
	}
	if (is(&q, "trim"))
		return s->flags & SESS_ADMIN && s->ipc->serve ? trim(s, e, &q)
							      : -EACCES;
	if (serve_is_list(q.what) || clock_ns() < s->ipc->query_ns[s->i_tenant])
		return later(s, e, &q);
	return ask(s, &q);
}
