/*
 * bench_daemon.c - a private kvd: socket, configuration and state of its own
 *
 * Everything lies in one new directory under --dir. The daemon ends with
 * kvbench: bench_daemon_stop(), a handler for the signals that end a program,
 * and PR_SET_PDEATHSIG for what cannot be handled.
 */
#include "tools/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_S	   120 /* a large model on a loaded machine */
#define SETTLE_S   60
/* idle: less than IDLE_NS of CPU time in each of IDLE_LOOKS times LOOK_NS */
#define LOOK_NS	   5000000
#define IDLE_NS	   250000
#define IDLE_LOOKS 3

static const char *const files[] = { "kvd.conf", "kvd.sock", "kvd.log",
				     "state/kvd.store" };

/* What the signal handler ends; (A) pid is 0 while there is none. */
static volatile pid_t live_pid;
static struct bench_daemon live;
static char live_file[KV_ARRAY_LEN(files)][96];

/* Only async-signal-safe calls. */
static void remove_files(void)
{
	for (size_t i = 0; i < KV_ARRAY_LEN(files); i++)
		(void)unlink(live_file[i]);
	(void)rmdir(live.state);
	(void)rmdir(live.dir);
}

static void on_signal(int sig)
{
	if (live_pid) {
		(void)kill(live_pid, SIGKILL);
		(void)waitpid(live_pid, NULL, 0);
		remove_files();
	}
	_exit(128 + sig);
}

static void catch_signals(void)
{
	const int sigs[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction sa = { .sa_handler = on_signal };

	for (size_t i = 0; i < KV_ARRAY_LEN(sigs); i++)
		(void)sigaction(sigs[i], &sa, NULL); /* cannot fail */
}

int bench_daemon_program(const struct bench *b, char *out, size_t n)
{
	char self[PATH_MAX];
	ssize_t len;
	char *slash;

	if (b->kvd) {
		(void)snprintf(out, n, "%s", b->kvd);
		return access(out, X_OK) ? -ENOENT : 0;
	}
	len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (len < 0)
		return -errno;
	self[len] = '\0';
	slash = strrchr(self, '/');
	if (slash)
		*slash = '\0';
	if ((size_t)snprintf(out, n, "%s/kvd", self) >= n)
		return -ENAMETOOLONG;
	return access(out, X_OK) ? -ENOENT : 0;
}

static int write_conf(const struct bench *b, const struct bench_daemon *d,
		      int with_model)
{
	char model[PATH_MAX];
	FILE *f;

	if (with_model && !realpath(b->model, model))
		return bench_fail(-errno, "model %s", b->model);
	f = fopen(live_file[0], "we");
	if (!f)
		return bench_fail(-errno, "%s", live_file[0]);
	fprintf(f,
		"[kvd]\nsocket = %s\nsocket_mode = 0600\n"
		"state_dir = %s\nthreads = %u\n%s\n",
		d->socket, d->state, b->n_threads,
		b->daemon_conf ? b->daemon_conf : "");
	if (with_model)
		fprintf(f,
			"[model bench]\npath = %s\nmath = bf16\n"
			"gate = %s\n%s\n",
			model, strcmp(b->model, BENCH_MODEL) ? "no" : "auto",
			b->model_conf ? b->model_conf : "");
	fprintf(f,
		"[tenant bench]\nuid = %u\nmemory = %llu\n"
		"sequences = 4096\nrequests = 256\n%s",
		getuid(), (unsigned long long)b->memory_bytes,
		b->tenant_conf ? b->tenant_conf : "disk = 2G\npersist = no\n");
	return fclose(f) ? bench_fail(-EIO, "%s", live_file[0]) : 0;
}

static int make_dir(const struct bench *b, struct bench_daemon *d)
{
	int n = snprintf(d->dir, sizeof(d->dir), "%s/kvbench.XXXXXX", b->dir);

	if (n < 0 || (size_t)n >= sizeof(d->dir))
		return bench_fail(-ENAMETOOLONG, "%s", b->dir);
	if (!mkdtemp(d->dir))
		return bench_fail(-errno, "%s", d->dir);
	(void)snprintf(d->state, sizeof(d->state), "%s/state", d->dir);
	(void)snprintf(d->socket, sizeof(d->socket), "%s/kvd.sock", d->dir);
	live = *d;
	for (size_t i = 0; i < KV_ARRAY_LEN(files); i++)
		(void)snprintf(live_file[i], sizeof(live_file[i]), "%s/%s",
			       d->dir, files[i]);
	if (mkdir(d->state, 0700))
		return bench_fail(-errno, "%s", d->state);
	return 0;
}

void bench_die_with_parent(pid_t parent)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a valid signal: no failure */
	if (getppid() != parent)
		_exit(127);
}

static void exec_daemon(const char *program, pid_t parent)
{
	int log = open(live_file[2], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	bench_die_with_parent(parent);
	if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(127);
	(void)execl(program, program, "--config", live_file[0], (char *)NULL);
	_exit(127);
}

static void show_log(void)
{
	char line[512];
	FILE *f = fopen(live_file[2], "re");

	while (f && fgets(line, sizeof(line), f))
		fputs(line, stderr);
	if (f)
		(void)fclose(f);
}

/* Until a session can be opened, the daemon has ended, or START_S is over. */
static int wait_ready(const struct bench_daemon *d)
{
	const struct kvc_options opt = { .socket = d->socket,
					 .name = "kvbench" };
	const struct timespec ts = { .tv_nsec = 5000000 };
	const uint64_t end = clock_ns() + START_S * 1000000000ull;
	struct kvc *c;
	int ret = -ETIMEDOUT;

	while (clock_ns() < end) {
		if (waitpid(d->pid, NULL, WNOHANG) == d->pid) {
			live_pid = 0;
			return -ECHILD;
		}
		ret = kvc_open(&c, &opt);
		if (!ret) {
			kvc_close(c);
			return 0;
		}
		if (ret != -ENOENT && ret != -ECONNREFUSED)
			return ret;
		(void)nanosleep(&ts, NULL);
	}
	return ret;
}

int bench_daemon_start(struct bench *b, struct bench_daemon *d, int with_model)
{
	char program[PATH_MAX];
	pid_t parent;
	int ret;

	*d = (struct bench_daemon){ 0 };
	if (b->socket) {
		(void)snprintf(d->socket, sizeof(d->socket), "%s", b->socket);
		return 0;
	}
	ret = bench_daemon_program(b, program, sizeof(program));
	if (ret)
		return bench_fail(ret, "%s", program);
	ret = make_dir(b, d);
	if (!ret)
		ret = write_conf(b, d, with_model);
	if (ret) {
		remove_files();
		return ret;
	}
	catch_signals();
	parent = getpid();
	d->pid = fork();
	if (!d->pid)
		exec_daemon(program, parent);
	if (d->pid < 0)
		return bench_fail(-errno, "fork");
	live_pid = d->pid;
	ret = wait_ready(d);
	if (ret) {
		show_log();
		(void)bench_fail(ret, "%s does not answer", program);
		bench_daemon_stop(d);
	}
	return ret;
}

/* It should still run; say how it ended, if it has. */
static void look_alive(const struct bench_daemon *d)
{
	int status;

	if (!live_pid || waitpid(d->pid, &status, WNOHANG) != d->pid)
		return;
	live_pid = 0;
	show_log();
	bench_note("kvd ended by itself: %s %d",
		   WIFSIGNALED(status) ? "signal" : "status",
		   WIFSIGNALED(status) ? WTERMSIG(status)
				       : WEXITSTATUS(status));
}

int bench_daemon_settle(const struct bench_daemon *d)
{
	const struct timespec look = { .tv_nsec = LOOK_NS };
	const uint64_t end = clock_ns() + SETTLE_S * 1000000000ull;
	uint64_t before = 0;
	clockid_t cpu;
	int err;

	if (!d->pid)
		return 0;
	err = clock_getcpuclockid(d->pid, &cpu);
	if (err)
		return -err;
	for (int n = 0, first = 1; clock_ns() < end; first = 0) {
		struct timespec ts;
		uint64_t now;

		if (clock_gettime(cpu, &ts))
			return -errno;
		now = (uint64_t)ts.tv_sec * 1000000000ull +
		      (uint64_t)ts.tv_nsec;
		n = !first && now - before < IDLE_NS ? n + 1 : 0;
		if (n == IDLE_LOOKS)
			return 0;
		before = now;
		(void)nanosleep(&look, NULL);
	}
	return -ETIMEDOUT;
}

void bench_daemon_stop(struct bench_daemon *d)
{
	const struct timespec ts = { .tv_nsec = 10000000 };
	const uint64_t end = clock_ns() + 5000000000ull;

	if (!d->pid)
		return;
	look_alive(d);
	if (live_pid) {
		(void)kill(d->pid, SIGTERM);
		while (live_pid && clock_ns() < end) {
			if (waitpid(d->pid, NULL, WNOHANG) == d->pid)
				live_pid = 0;
			else
				(void)nanosleep(&ts, NULL);
		}
	}
	if (live_pid) {
		(void)kill(d->pid, SIGKILL);
		(void)waitpid(d->pid, NULL, 0);
		live_pid = 0;
	}
	d->pid = 0;
	remove_files();
}
