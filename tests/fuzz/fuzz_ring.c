/*
 * fuzz_ring.c - a session whose ring and arena hold the input
 *
 *   byte 0        number of entries, low 4 bits; bit 4: then jump the tail,
 *                 bit 5: then move the cq's head, bit 6: a tenantless admin
 *   then          entries, 64 bytes each
 *   the rest      start of the arena, at most 64 KiB
 *
 * The session belongs to fake_serve; whatever is in the input, it ends and
 * leaves nothing.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kvd/base/log.h"
#include "kvd/ipc/sess.h"
#include "tests/rig/fake_serve.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct conf conf;
static struct loop *loop;
static struct serve *serve;
static struct ipc *ipc;

static void need(int ok)
{
	if (!ok)
		abort();
}

/* One ipc without sockets for all inputs. */
static void set_up(void)
{
	char err[64];

	if (ipc)
		return;
	log_set_level(LOG_LVL_ERROR);
	conf.n_tenants = 1;
	strcpy(conf.tenants[0].name, "t0");
	conf.tenants[0].max_sessions = 4;
	conf.tenants[0].max_requests = 64;
	conf.arena_max_bytes = 1 << 20;
	need(!loop_new(&loop));
	need(!fake_serve_new(&serve, loop, &conf));
	need(!ipc_new(&ipc, loop, serve, &conf, err, sizeof(err)));
}

static struct sess *open_session(int admin, int *peer)
{
	const struct kv_hello hello = { .sq_entries = 16,
					.cq_entries = 16,
					.arena_bytes = 65536,
					.name = "fuzz" };
	struct sess_args a = { .ipc = ipc,
			       .hello = &hello,
			       .tenant_name = admin ? "" : "t0",
			       .tenant = admin ? NULL
					       : serve_tenant_find(serve, "t0"),
			       .flags = admin ? SESS_ADMIN : 0 };
	struct sess *s;
	int memfd, fds[2];

	need(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds));
	*peer = fds[1];
	a.sock = fds[0];
	a.pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	need(a.pidfd >= 0);
	need(!sess_new(&s, &a, &memfd));
	(void)close(memfd);
	return s;
}

static void turn(int n)
{
	for (int i = 0; i < n; i++)
		need(loop_turn(loop, 0) >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kv_sqe *sqes;
	struct sess *s;
	size_t n, rest;
	uint8_t how;
	int peer;

	set_up();
	if (!size)
		return 0;
	how = data[0];
	data++;
	size--;
	s = open_session(how & 64, &peer);
	sqes = (struct kv_sqe *)(s->ch.sq.ring + 1);
	n = size / sizeof(*sqes) < (how & 15u) ? size / sizeof(*sqes)
					       : how & 15u;
	memcpy(sqes, data, n * sizeof(*sqes));
	rest = size - n * sizeof(*sqes);
	memcpy(s->ch.arena, data + n * sizeof(*sqes),
	       rest < 65536 ? rest : 65536);
	s->ch.sq.ring->tail = (uint32_t)n;
	turn(8);
	if (ipc->n_sessions && how & 32)
		s->ch.cq.ring->head += size ? data[0] : 1u;
	if (ipc->n_sessions && how & 16)
		s->ch.sq.ring->tail += size ? data[size - 1] : 1u;
	turn(8);
	(void)close(peer);
	for (int i = 0; i < 100000 && ipc->n_sessions; i++)
		turn(1);
	need(!ipc->n_sessions && !fake_serve_n_sessions(serve) &&
	     !fake_serve_n_requests(serve));
	return 0;
}
