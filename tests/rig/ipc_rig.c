/*
 * ipc_rig.c - the daemon's transport on a thread of the test, over fake_serve
 */
#include "tests/rig/ipc_rig.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/log.h"

struct rig_thread {
	struct ipc_rig rig; /* first: the test has a pointer to it */
	pthread_t thread;
	struct loop_call stop;
	struct wait stopped;
};

static void need(int ok, const char *what)
{
	if (ok)
		return;
	(void)fprintf(stderr, "ipc_rig: %s\n", what);
	exit(1);
}

static void all_gone(struct wait *w, int ret)
{
	struct rig_thread *t = container_of(w, struct rig_thread, stopped);

	(void)ret;
	loop_stop(t->rig.loop);
}

static void begin_stop(struct loop_call *c)
{
	struct rig_thread *t = container_of(c, struct rig_thread, stop);

	t->stopped.done = all_gone;
	ipc_stop(t->rig.ipc, &t->stopped);
}

static void *run(void *arg)
{
	struct rig_thread *t = arg;

	need(!loop_run(t->rig.loop), "loop_run");
	return NULL;
}

static void configure(struct ipc_rig *r)
{
	struct conf *c = &r->conf;

	strcpy(r->dir, "/tmp/kvd-rig-XXXXXX");
	need(mkdtemp(r->dir) != NULL, "mkdtemp");
	(void)snprintf(r->path, sizeof(r->path), "%s/s", r->dir);
	(void)snprintf(r->own_path, sizeof(r->own_path), "%s/t1", r->dir);
	strcpy(c->socket, r->path);
	c->socket_mode = 0666;
	c->arena_max_bytes = 64u << 20;
	c->spin_ns = 20000;
	c->n_tenants = 2;
	c->n_models = 1;
	for (uint32_t i = 0; i < 2; i++) {
		(void)snprintf(c->tenants[i].name, CONF_NAME_MAX, "t%u", i);
		c->tenants[i].max_sessions = 64;
		c->tenants[i].max_requests = 1024;
	}
	c->tenants[0].uids[0] = getuid();
	c->tenants[0].n_uids = 1;
	strcpy(c->tenants[1].socket, r->own_path);
	c->tenants[1].socket_mode = 0666;
}

struct ipc_rig *ipc_rig_open(void (*change)(struct conf *conf))
{
	struct rig_thread *t = calloc(1, sizeof(*t));
	char err[256] = "";

	need(t != NULL, "memory");
	log_set_level(LOG_LVL_ERROR);
	configure(&t->rig);
	if (change)
		change(&t->rig.conf);
	need(!loop_new(&t->rig.loop), "loop_new");
	loop_set_spin(t->rig.loop, t->rig.conf.spin_ns);
	need(!fake_serve_new(&t->rig.serve, t->rig.loop, &t->rig.conf),
	     "fake_serve_new");
	need(!ipc_new(&t->rig.ipc, t->rig.loop, t->rig.serve, &t->rig.conf, err,
		      sizeof(err)),
	     err);
	need(!pthread_create(&t->thread, NULL, run, t), "pthread_create");
	return &t->rig;
}

void ipc_rig_close(struct ipc_rig *rig)
{
	struct rig_thread *t = (struct rig_thread *)rig;

	t->stop.run = begin_stop;
	loop_post(rig->loop, &t->stop);
	need(!pthread_join(t->thread, NULL), "pthread_join");
	ipc_free(rig->ipc);
	need(fake_serve_n_sessions(rig->serve) == 0, "a session is left");
	need(fake_serve_n_requests(rig->serve) == 0, "a request is left");
	fake_serve_free(rig->serve);
	loop_free(rig->loop);
	need(!rmdir(rig->dir), "a file is left");
	free(t);
}

int ipc_rig_sessions(struct ipc_rig *rig, uint32_t n)
{
	for (int i = 0; i < 1000; i++) {
		if (fake_serve_n_sessions(rig->serve) == n)
			return 1;
		(void)usleep(1000);
	}
	return 0;
}
