/*
 * ipc_rig.h - the daemon's transport on a thread of the test, over fake_serve
 */
#ifndef TESTS_RIG_IPC_RIG_H
#define TESTS_RIG_IPC_RIG_H

#include "kvd/ipc/ipc.h"
#include "tests/rig/fake_serve.h"

/* All fields are read-only for the test. */
struct ipc_rig {
	char dir[64];
	char path[96]; /* of the common socket: tenant "t0" is our uid */
	char own_path[96]; /* of tenant "t1" */
	struct conf conf;
	struct loop *loop;
	struct serve *serve;
	struct ipc *ipc;
};

/* change: of the configuration before the start, or NULL. Exits on failure. */
struct ipc_rig *ipc_rig_open(void (*change)(struct conf *conf));
/* Orderly stop; frees everything. */
void ipc_rig_close(struct ipc_rig *rig);
/* Wait until serve has n sessions; 0 when it took longer than a second. */
int ipc_rig_sessions(struct ipc_rig *rig, uint32_t n);

#endif
