/*
 * stores_silent.c - disks that do not answer; see stores_on_silent()
 *
 * While something is in an engine a timer looks once a second. It reaps before it
 * judges: what has ended and was not seen, as the daemon itself stood still, is an answer;
 * and time for which it stood still (the timer is late) does not count.
 */
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/base/stat.h"
#include "kvd/mem/stores_priv.h"

#define LOOK_NS	    1000000000u
#define PATIENCE_NS 5000000000u

static void look(struct stores *s, struct disk *d)
{
	const uint32_t i = (uint32_t)(d - s->disks);
	uint64_t ns;

	if (!d->n_sent || clock_ns() - d->heard_ns < s->patience_ns)
		return;
	(void)kio_engine_reap(d->engine);
	ns = clock_ns() - d->heard_ns;
	if (!d->n_sent || ns < s->patience_ns)
		return;
	if (!d->silent)
		log_error("store",
			  "%s: no answer for %.0f s: done without, where that "
			  "can be",
			  d->path, (double)ns * 1e-9);
	d->silent = 1;
	stat_set(d->st_silent, ns / 1000000000u);
	if (s->on_silent)
		s->on_silent(s->silent_ctx, i);
}

static void ear_time(struct loop_timer *t)
{
	struct stores *s = container_of(t, struct stores, ear_timer);
	const uint64_t now = clock_ns(), late = now - t->at_ns;
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->conf.n; i++) {
		s->disks[i].heard_ns = KV_MIN(now, s->disks[i].heard_ns + late);
		look(s, &s->disks[i]);
		n += s->disks[i].n_sent;
	}
	if (n)
		loop_timer_set(s->conf.loop, t,
			       clock_ns() + KV_MIN((uint64_t)LOOK_NS,
						   s->patience_ns / 4));
}

void silent_init(struct stores *s)
{
	list_init(&s->ear_timer.node);
	s->ear_timer.run = ear_time;
	s->patience_ns = PATIENCE_NS;
}

void silent_opened(struct disk *d)
{
	d->st_silent = stat_get(STAT_GAUGE, "kvd_store_silent_seconds",
				"Since a store that does not answer did",
				"store", d->path, 1);
}

void silent_sent(struct disk *d)
{
	struct stores *s = d->stores;

	if (!d->n_sent)
		d->heard_ns = clock_ns();
	if (list_empty(&s->ear_timer.node))
		loop_timer_set(s->conf.loop, &s->ear_timer,
			       clock_ns() + KV_MIN((uint64_t)LOOK_NS,
						   s->patience_ns / 4));
}

void silent_heard(struct disk *d)
{
	const uint64_t now = clock_ns();

	if (d->silent) {
		log_info("store", "%s: answers again, after %.1f s", d->path,
			 (double)(now - d->heard_ns) * 1e-9);
		d->silent = 0;
		stat_set(d->st_silent, 0);
		/* or it would be taken to be that slow, and hardly be asked again */
		d->busy_since = now;
		d->done_bytes = 0;
	}
	d->heard_ns = now;
}

void stores_on_silent(struct stores *s, uint64_t patience_ns,
		      void (*on_silent)(void *ctx, uint32_t i_disk), void *ctx)
{
	if (patience_ns)
		s->patience_ns = patience_ns;
	s->on_silent = on_silent;
	s->silent_ctx = ctx;
}

int stores_is_silent(const struct stores *s, uint32_t i)
{
	return s->disks[i].silent;
}
