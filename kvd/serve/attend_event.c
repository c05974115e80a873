/*
 * attend_event.c - events of clients, before their calls are admitted; see attend.c
 *
 * The event of a client is asked for again and again on the host: a stream of kvd's that
 * waited for it would stand still for all tenants for as long as that client likes. What has
 * not come after event_wait_ms fails its item.
 *
 * Loop thread.
 */
#include "kvd/serve/attend_priv.h"

#include <errno.h>
#include "kvd/base/clock.h"

#define EVENT_FIRST_NS 50000u
#define EVENT_MOST_NS  1000000u

/* How many items still wait; those that must not any longer fail, alone. */
static uint32_t look_at_events(struct attend *a, int is_late)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < a->req->n_items; i++) {
		struct attend_item *it = &a->items[i];
		int ret;

		if (!it->s || !it->after)
			continue;
		ret = buffer_event_passed(a->ss, it->after);
		if (ret == -EAGAIN && !is_late) {
			n++;
			continue;
		}
		it->after = NULL;
		if (ret)
			attend_fail(a, i, ret == -EAGAIN ? -ETIMEDOUT : ret);
	}
	return n;
}

static void events_again(struct loop_timer *timer)
{
	struct attend *a = container_of(timer, struct attend, timer);
	const uint64_t now = clock_ns();

	if (!look_at_events(a, now >= a->event_until_ns)) {
		attend_admit(a);
		return;
	}
	loop_timer_set(a->ss->tenant->serve->loop, timer,
		       now + a->event_every_ns);
	a->event_every_ns =
		KV_MIN(2 * a->event_every_ns, (uint64_t)EVENT_MOST_NS);
}

void attend_events(struct attend *a)
{
	const struct conf *conf = a->ss->tenant->serve->conf;

	if (!look_at_events(a, 0)) {
		attend_admit(a);
		return;
	}
	a->timer.run = events_again;
	a->event_every_ns = EVENT_FIRST_NS;
	a->event_until_ns = clock_ns() + conf->event_wait_ms * 1000000ull;
	events_again(&a->timer);
}
