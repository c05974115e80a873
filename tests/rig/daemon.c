/*
 * daemon.c - the real kvd as a child process with a configuration of its own
 */
#include "tests/rig/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS 10000
#define STOP_MS	 15000

const char *rig_daemon_binary(void)
{
	static char path[4096];
	const char *env = getenv("KVD_BIN");
	ssize_t n;
	char *slash;

	if (env)
		return env;
	n = readlink("/proc/self/exe", path, sizeof(path) - 16);
	if (n <= 0)
		return NULL;
	path[n] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return NULL;
	strcpy(slash, "/../kvd");
	return access(path, X_OK) ? NULL : path;
}

static int write_conf(struct rig_daemon *d, const char *extra)
{
	FILE *f = fopen(d->conf, "we");

	if (!f)
		return -1;
	(void)fprintf(f,
		      "[kvd]\nsocket = %s\nstate_dir = %s/state\n"
		      "log_level = info\n",
		      d->socket, d->dir);
	if (!extra || !strstr(extra, "metrics = "))
		(void)fprintf(f, "metrics = unix:%s\n", d->metrics);
	if (extra)
		(void)fputs(extra, f);
	else
		(void)fprintf(f,
			      "[tenant t0]\nuid = %u\nmemory = 64M\n"
			      "disk = 256M\n",
			      (unsigned int)getuid());
	return fclose(f);
}

static int accepts(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int ok;

	if (fd < 0)
		return 0;
	strncpy(a.sun_path, path, sizeof(a.sun_path) - 1);
	ok = !connect(fd, (const struct sockaddr *)&a, sizeof(a));
	(void)close(fd);
	return ok;
}

char *rig_daemon_log(struct rig_daemon *d)
{
	const int fd = open(d->log, O_RDONLY | O_CLOEXEC);
	char *text = calloc(1, 1 << 20);
	ssize_t n = 0;

	if (fd >= 0 && text)
		n = read(fd, text, (1 << 20) - 1);
	if (fd >= 0)
		(void)close(fd);
	if (text && n >= 0)
		text[n] = '\0';
	return text;
}

static void show_log(struct rig_daemon *d, const char *why)
{
	char *text = rig_daemon_log(d);

	(void)fprintf(stderr, "rig_daemon: %s\n%s", why, text ? text : "");
	free(text);
}

static void exec_daemon(const struct rig_daemon *d, const char *bin)
{
	const int fd = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0644);

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (fd >= 0) {
		(void)dup2(fd, 1);
		(void)dup2(fd, 2);
	}
	(void)execl(bin, bin, "-c", d->conf, (char *)NULL);
	(void)fprintf(stderr, "exec %s: %s\n", bin, strerror(errno));
	_exit(127);
}

int rig_daemon_restart(struct rig_daemon *d)
{
	const char *bin = rig_daemon_binary();
	int status;

	if (!bin)
		return -1;
	d->pid = fork();
	if (d->pid < 0)
		return -1;
	if (!d->pid)
		exec_daemon(d, bin);
	for (int i = 0; i < START_MS; i++) {
		if (accepts(d->socket))
			return 0;
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			d->pid = 0;
			show_log(d, "it ended");
			return -1;
		}
		(void)usleep(1000);
	}
	show_log(d, "it does not accept");
	rig_daemon_kill(d);
	return -1;
}

struct rig_daemon *rig_daemon_start(const char *extra)
{
	struct rig_daemon *d = calloc(1, sizeof(*d));
	const char *tmp = getenv("TMPDIR");
	char state[80];

	if (!d)
		return NULL;
	if (!tmp || strlen(tmp) > 30)
		tmp = "/tmp";
	(void)snprintf(d->dir, sizeof(d->dir), "%s/kvd-e2e-XXXXXX", tmp);
	if (!mkdtemp(d->dir) || chmod(d->dir, 0755))
		goto fail;
	(void)snprintf(d->socket, sizeof(d->socket), "%s/kvd.sock", d->dir);
	(void)snprintf(d->conf, sizeof(d->conf), "%s/kvd.conf", d->dir);
	(void)snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	(void)snprintf(d->metrics, sizeof(d->metrics), "%s/metrics", d->dir);
	(void)snprintf(state, sizeof(state), "%s/state", d->dir);
	if (!mkdir(state, 0700) && !write_conf(d, extra) &&
	    !rig_daemon_restart(d))
		return d;
fail:
	rig_daemon_free(d);
	return NULL;
}

int rig_daemon_wait(struct rig_daemon *d)
{
	int status;

	for (int i = 0; d->pid > 0 && i < STOP_MS; i++) {
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			d->pid = 0;
			return status;
		}
		(void)usleep(1000);
	}
	show_log(d, "it does not end");
	return -1;
}

int rig_daemon_stop(struct rig_daemon *d)
{
	if (d->pid <= 0 || kill(d->pid, SIGTERM))
		return -1;
	return rig_daemon_wait(d);
}

void rig_daemon_kill(struct rig_daemon *d)
{
	int status;

	if (d->pid <= 0)
		return;
	(void)kill(d->pid, SIGKILL);
	(void)waitpid(d->pid, &status, 0);
	d->pid = 0;
}

static int rm_one(const char *path, const struct stat *st, int flag,
		  struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

void rig_daemon_free(struct rig_daemon *d)
{
	if (!d)
		return;
	if (d->pid > 0 && rig_daemon_stop(d) == -1)
		rig_daemon_kill(d);
	(void)nftw(d->dir, rm_one, 8, FTW_DEPTH | FTW_PHYS);
	free(d);
}
