/*
 * priv.h - give up what the daemon does not need once it has started
 */
#ifndef KVD_PRIV_H
#define KVD_PRIV_H

#include "kvd/base/conf.h"

/*
 * Give state_dir and the files of the stores to conf->drop_to_uid and switch
 * to it (keeping CAP_IPC_LOCK and CAP_SYS_NICE), set
 * no_new_privs, and with conf->sandbox refuse system calls that the daemon
 * never makes, in all threads. Each step that cannot be taken is logged; only a
 * failed change of user is an error (-errno): then nothing else was done.
 */
int priv_drop(const struct conf *conf);

#endif
