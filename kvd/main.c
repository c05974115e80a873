/*
 * main.c - order of start and stop
 *
 *   start: configuration, log, the GPU's driver, loop, workers, serve, metrics, sockets (who
 *          can connect finds all the rest), privileges, "kvd: ready"
 *   stop:  on SIGTERM, SIGINT or a client's "stop": sockets, sessions, serve,
 *          loop. The second signal ends the process at once.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "io/sys.h"
#include "kernels/cuda_api.h"
#include "kernels/gpu.h"
#include "kvd/base/clock.h"
#include "kvd/base/conf.h"
#include "kvd/base/log.h"
#include "kvd/base/loop.h"
#include "kvd/ipc/ipc.h"
#include "kvd/ipc/metrics.h"
#include "kvd/priv.h"
#include "kvd/serve/serve.h"

#define DEFAULT_CONF "/etc/kvd/kvd.conf"
#define N_WORKERS    2u
#define STOP_NS	     10000000000ull /* sessions have so long to end */

struct daemon {
	struct conf conf;
	struct loop *loop;
	struct serve *serve;
	struct ipc *ipc;
	struct metrics *metrics;
	struct cuda_api *cuda; /* NULL: no driver, or not wanted */
	struct loop_fd signals;
	struct wait stopped;
	int all_closed;
	char err[512];
};

static const char usage[] =
	"usage: kvd [-c FILE] [--check] [--version] [--help]\n"
	"  -c, --config FILE  configuration, default " DEFAULT_CONF "\n"
	"      --check        check the configuration and exit, 0 or 1\n"
	"      --version      print the version and exit\n"
	"      --help         print this and exit\n";

/* Tell the service manager, as sd_notify(3) does; best effort. */
static void notify(const char *state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const char *path = getenv("NOTIFY_SOCKET");
	size_t n = path ? strlen(path) : 0;
	socklen_t len;
	int fd;

	if (!n || n >= sizeof(addr.sun_path) ||
	    (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(addr.sun_path, path, n);
	if (path[0] == '@')
		addr.sun_path[0] = '\0'; /* abstract: length, not NUL */
	len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendto(fd, state, strlen(state), MSG_NOSIGNAL,
		   (const struct sockaddr *)&addr, len) < 0)
		log_warn("kvd", "NOTIFY_SOCKET %s: %s", path, strerror(errno));
	(void)close(fd); /* sent or not */
}

/* ---- signals ----------------------------------------------------------- */

static void stop_set(sigset_t *set)
{
	(void)sigemptyset(set); /* valid arguments: cannot fail */
	(void)sigaddset(set, SIGTERM);
	(void)sigaddset(set, SIGINT);
}

/* The first one: stop in order, and let the next kill. */
static void signal_ready(struct loop_fd *f, uint32_t events)
{
	struct daemon *d = container_of(f, struct daemon, signals);
	struct signalfd_siginfo info;
	sigset_t set;

	(void)events;
	if (read(f->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	log_info("kvd", "signal %u from pid %u: stopping", info.ssi_signo,
		 info.ssi_pid);
	loop_unwatch(d->loop, f);
	stop_set(&set);
	(void)pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* cannot fail */
	loop_stop(d->loop);
}

static int watch_signals(struct daemon *d)
{
	sigset_t set;
	int fd;

	stop_set(&set);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	d->signals = (struct loop_fd){ fd, EPOLLIN, signal_ready };
	return loop_watch(d->loop, &d->signals);
}

/* ---- start ------------------------------------------------------------- */

/* Three descriptors a session: take what we may. */
static void raise_limits(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r))
		return;
	r.rlim_cur = r.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &r))
		log_warn("kvd", "RLIMIT_NOFILE: %s", strerror(errno));
}

/* One line that says which driver there is; none is no error. */
static void find_gpu(struct daemon *d)
{
	const char *lib = d->conf.cuda_library;
	char why[256], name[96] = "?";
	size_t n_bytes = 0;
	int ret, dev;

	if (!strcmp(lib, "no")) {
		log_info("gpu", "not looked for: cuda_library = no");
		return;
	}
	ret = cuda_api_open(&d->cuda, strcmp(lib, "auto") ? lib : NULL, why,
			    sizeof(why));
	if (ret == -ENOENT)
		log_info("gpu", "none: %s", why);
	else if (ret)
		log_warn("gpu", "refused: %s", why);
	if (ret)
		return;
	if (!d->cuda->device_get(&dev, 0) &&
	    !d->cuda->device_name(name, sizeof(name), dev))
		(void)d->cuda->device_bytes(&n_bytes, dev);
	log_info("gpu",
		 "found: %s, the first is %s with %zu MiB; %zu KiB of kernels; "
		 "KV is kept in %s memory",
		 why, name, n_bytes >> 20, kern_gpu_image_bytes() >> 10,
		 d->conf.device == CONF_DEVICE_CPU ? "host" : "its");
}

static int start(struct daemon *d)
{
	const struct conf *conf = &d->conf;
	int ret;

	raise_limits();
	find_gpu(d);
	ret = loop_new(&d->loop);
	if (ret)
		return ret;
	loop_set_spin(d->loop, conf->spin_ns);
	ret = loop_start_workers(d->loop, N_WORKERS);
	if (ret)
		return ret;
	ret = serve_new_on(&d->serve, d->loop, conf, d->cuda, d->err,
			   sizeof(d->err));
	if (ret)
		return ret;
	if (conf->metrics[0])
		ret = metrics_new(&d->metrics, conf->metrics, d->err,
				  sizeof(d->err));
	if (ret)
		return ret;
	ret = ipc_new(&d->ipc, d->loop, d->serve, conf, d->err, sizeof(d->err));
	if (!ret)
		ret = watch_signals(d);
	if (!ret)
		ret = priv_drop(conf);
	return ret;
}

/* ---- stop -------------------------------------------------------------- */

static void all_closed(struct wait *w, int ret)
{
	(void)ret; /* there is no failure */
	container_of(w, struct daemon, stopped)->all_closed = 1;
}

/* 1 when every session has ended; else memory may still be in use. */
static int close_sessions(struct daemon *d)
{
	const uint64_t limit_ns = clock_ns() + STOP_NS;

	d->stopped.done = all_closed;
	ipc_stop(d->ipc, &d->stopped);
	while (!d->all_closed && clock_ns() < limit_ns)
		if (loop_turn(d->loop, 10) < 0)
			break;
	if (!d->all_closed)
		log_error("kvd", "%u sessions did not end", d->ipc->n_sessions);
	/* chunks are computed for all: who asked may have gone */
	while (serve_chunk_jobs(d->serve) && clock_ns() < limit_ns)
		if (loop_turn(d->loop, 10) < 0)
			break;
	if (serve_chunk_jobs(d->serve))
		log_error("kvd", "chunks are still being computed");
	return d->all_closed && !serve_chunk_jobs(d->serve);
}

static void stop(struct daemon *d)
{
	metrics_free(d->metrics);
	if (d->ipc && !close_sessions(d)) {
		serve_flush(d->serve);
		return; /* the kernel takes the rest */
	}
	ipc_free(d->ipc);
	if (d->serve)
		serve_free(d->serve);
	if (d->signals.fd > 0)
		(void)close(d->signals.fd); /* only read */
	loop_free(d->loop);
	cuda_api_close(d->cuda);
}

static int run(struct daemon *d)
{
	sigset_t set;
	int ret;

	stop_set(&set);
	(void)pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread */
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGHUP, SIG_IGN);
	ret = start(d);
	if (ret) {
		log_error("kvd", "start: %s",
			  d->err[0] ? d->err : strerror(-ret));
		stop(d);
		return 1;
	}
	log_info("kvd", "ready");
	notify("READY=1");
	ret = loop_run(d->loop);
	if (ret)
		log_error("kvd", "event loop: %s", strerror(-ret));
	notify("STOPPING=1");
	stop(d);
	log_info("kvd", "stopped");
	return ret ? 1 : 0;
}

/* ---- command line ------------------------------------------------------ */

struct options {
	const char *conf;
	int check;
};

/* -1: go on; else the exit status. */
static int parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check", no_argument, NULL, 'k' },
		{ "version", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "c:", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			o->conf = optarg;
			break;
		case 'k':
			o->check = 1;
			break;
		case 'v':
			(void)puts("kvd " KV_VERSION);
			return 0;
		case 'h':
			(void)fputs(usage, stdout);
			return 0;
		default:
			(void)fputs(usage, stderr);
			return 2;
		}
	}
	if (optind < argc) {
		(void)fputs(usage, stderr);
		return 2;
	}
	return -1;
}

/* What only the start would tell: models that are not there, or are none. 0 or 1. */
static int check_models(const struct conf *c, const char *conf)
{
	int failed = 0;

	for (uint32_t i = 0; i < c->n_models; i++) {
		const struct conf_model *m = &c->models[i];
		FILE *f = fopen(m->path, "re");
		char head[4];
		const char *why = NULL;

		if (!f || fread(head, 1, sizeof(head), f) != sizeof(head))
			why = f ? "not a GGUF file" : strerror(errno);
		else if (memcmp(head, "GGUF", 4))
			why = "not a GGUF file";
		if (why)
			(void)fprintf(stderr, "kvd: %s: [model %s]: %s: %s\n",
				      conf, m->name, m->path, why);
		if (f)
			(void)fclose(f); /* only read */
		failed |= why != NULL;
	}
	return failed;
}

int main(int argc, char **argv)
{
	static struct daemon d; /* the tables of conf are large */
	struct options o = { .conf = DEFAULT_CONF };
	enum log_level level;
	int ret;

	kio_sys_fill_std();
	ret = parse(argc, argv, &o);
	if (ret >= 0)
		return ret;
	ret = conf_load(o.conf, &d.conf, d.err, sizeof(d.err));
	if (ret) {
		(void)fprintf(stderr, "kvd: %s\n",
			      d.err[0] ? d.err : strerror(-ret));
		return 1;
	}
	if (o.check && check_models(&d.conf, o.conf))
		return 1;
	if (o.check) {
		(void)printf("%s: ok\n", o.conf);
		return 0;
	}
	if (!log_parse_level(d.conf.log_level, &level))
		log_set_level(level);
	d.err[0] = '\0';
	return run(&d);
}
