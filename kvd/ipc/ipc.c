/*
 * ipc.c - who is polled, who sleeps, orderly stop
 *
 *   cold --doorbell, a completion--> hot --loop sleeps, or idle--> cold
 *                                     | entries, but no room for completions
 *                                     +--> stalled --timer, doorbell--> hot
 *
 * Only hot sessions cost anything on a turn. A session that leaves hot has its
 * doorbell armed, and the ring looked at once more after that.
 */
#include "kvd/ipc/ipc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/ipc/sess.h"
#include "kvd/ipc/sock.h"

/* About as long as the loop itself spins, at some 50 ns a turn. */
#define IDLE_TURNS 1000u

/* Arm s and take it off the hot list, unless an entry came. */
static int cool(struct ipc *ipc, struct sess *s)
{
	if (chan_arm(&s->ch))
		return 1;
	list_del(&s->node);
	list_push(&ipc->cold, &s->node);
	return 0;
}

static int poll_hot(struct loop_poller *p)
{
	struct ipc *ipc = container_of(p, struct ipc, poller);
	int work = 0;

	list_for_each_safe(n, &ipc->hot) {
		struct sess *s = list_entry(n, struct sess, node);

		if (sess_poll(s)) {
			s->idle_turns = 0;
			work = 1;
		} else if (++s->idle_turns > IDLE_TURNS && n->prev != n->next &&
			   !list_empty(&s->node)) {
			/* others keep the loop awake: do not poll in vain */
			s->idle_turns = 0;
			(void)cool(ipc, s); /* stays hot when there is work */
		}
	}
	return work;
}

static int arm(struct loop_poller *p)
{
	struct ipc *ipc = container_of(p, struct ipc, poller);
	int work = 0;

	list_for_each_safe(n, &ipc->hot)
		work |= cool(ipc, list_entry(n, struct sess, node));
	return work;
}

static void init_stats(struct ipc *ipc)
{
	ipc->st_sessions = stat_get(STAT_GAUGE, "kvd_sessions", "Sessions open",
				    NULL, NULL, 0);
	ipc->st_accepted = stat_get(STAT_COUNTER, "kvd_sessions_opened_total",
				    "Sessions opened", NULL, NULL, 0);
	ipc->st_refused = stat_get(STAT_COUNTER, "kvd_sessions_refused_total",
				   "Connections refused in the handshake", NULL,
				   NULL, 0);
	ipc->st_broken = stat_get(STAT_COUNTER, "kvd_sessions_eproto_total",
				  "Sessions ended because the client broke the "
				  "ABI",
				  NULL, NULL, 0);
	ipc->st_entries = stat_get(STAT_COUNTER, "kvd_ring_entries_total",
				   "Submission ring entries taken", NULL, NULL,
				   0);
	ipc->st_doorbells = stat_get(STAT_COUNTER, "kvd_ring_doorbells_total",
				     "Wake-ups by a doorbell", NULL, NULL, 0);
}

int ipc_new(struct ipc **out, struct loop *loop, struct serve *serve,
	    const struct conf *conf, char *err, size_t err_len)
{
	struct ipc *ipc = calloc(1, sizeof(*ipc));
	int ret;

	if (!ipc)
		return -ENOMEM;
	ipc->loop = loop;
	ipc->serve = serve;
	ipc->conf = conf;
	list_init(&ipc->hot);
	list_init(&ipc->cold);
	list_init(&ipc->stalled);
	list_init(&ipc->closing);
	list_init(&ipc->drains);
	list_init(&ipc->late);
	list_init(&ipc->late_timer.node);
	ipc->late_timer.run = admin_late;
	init_stats(ipc);
	ret = sock_listen(&ipc->socks, ipc, err, err_len);
	if (ret) {
		free(ipc);
		return ret;
	}
	ipc->poller = (struct loop_poller){ .poll = poll_hot, .arm = arm };
	list_init(&ipc->poller.node);
	loop_add_poller(loop, &ipc->poller);
	*out = ipc;
	return 0;
}

static void close_all(struct list *l)
{
	while (!list_empty(l))
		sess_close(list_entry(list_first(l), struct sess, node),
			   -ESHUTDOWN);
}

static void tell_stopped(struct loop_call *c)
{
	struct ipc *ipc = container_of(c, struct ipc, stopped_call);

	ipc->stopped->done(ipc->stopped, 0);
}

void ipc_session_gone(struct ipc *ipc)
{
	if (!ipc->stopped || ipc->n_sessions)
		return;
	ipc->stopped_call.run = tell_stopped;
	loop_defer(ipc->loop, &ipc->stopped_call);
}

void ipc_stop(struct ipc *ipc, struct wait *w)
{
	sock_close(ipc->socks);
	ipc->socks = NULL;
	close_all(&ipc->hot);
	close_all(&ipc->cold);
	close_all(&ipc->stalled);
	ipc->stopped = w;
	ipc_session_gone(ipc);
}

void ipc_free(struct ipc *ipc)
{
	if (!ipc)
		return;
	assert(!ipc->n_sessions);
	if (ipc->socks)
		sock_close(ipc->socks);
	loop_timer_cancel(ipc->loop, &ipc->late_timer);
	loop_del_poller(ipc->loop, &ipc->poller);
	free(ipc);
}
