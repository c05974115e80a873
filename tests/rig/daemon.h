/*
 * daemon.h - the real kvd as a child process with a configuration of its own
 *
 * The binary is $KVD_BIN, else ../kvd beside the folder of the test. Everything
 * lives in a new folder under $TMPDIR or /tmp, removed by rig_daemon_free();
 * the log is shown when something goes wrong.
 */
#ifndef TESTS_RIG_DAEMON_H
#define TESTS_RIG_DAEMON_H

#include <sys/types.h>

struct rig_daemon {
	pid_t pid; /* 0: not running */
	char dir[64]; /* mode 0755 */
	char socket[96]; /* DIR/kvd.sock */
	char conf[96]; /* DIR/kvd.conf */
	char log[96]; /* DIR/log */
	char metrics[96]; /* DIR/metrics: UNIX socket */
};

/*
 * Write the configuration and start. It begins with [kvd] (socket, state_dir,
 * log_level = info, metrics unless extra has one); extra follows: first more
 * keys of [kvd], then sections. NULL: one tenant "t0" of our uid with memory 64M, disk 256M.
 * Returns when the socket accepts; NULL (and the log on stderr) if it did not
 * within ten seconds.
 */
struct rig_daemon *rig_daemon_start(const char *extra);
/* The same folder and configuration again. 0, or -1. */
int rig_daemon_restart(struct rig_daemon *d);
/* SIGTERM and wait: its wait status; -1 when it is still there after 15 s. */
int rig_daemon_stop(struct rig_daemon *d);
/* Wait for an exit that something else caused: as rig_daemon_stop(). */
int rig_daemon_wait(struct rig_daemon *d);
/* SIGKILL and reap. */
void rig_daemon_kill(struct rig_daemon *d);
/* Stop if it runs, remove the folder. */
void rig_daemon_free(struct rig_daemon *d);
/* The whole log; the caller frees it. */
char *rig_daemon_log(struct rig_daemon *d);
/* Path of the binary; NULL: there is none (skip). */
const char *rig_daemon_binary(void);

#endif
