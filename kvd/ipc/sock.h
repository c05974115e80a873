/*
 * sock.h - listening sockets, handshake, who the peer is
 *
 * One socket for all tenants (uid, then primary gid, decide), and one per
 * tenant that has its own (whoever may connect to it is that tenant). Loop
 * thread.
 */
#ifndef KVD_IPC_SOCK_H
#define KVD_IPC_SOCK_H

#include <stddef.h>
#include <sys/types.h>
#include "libkvclient/kv_abi.h"
#include "kvd/base/conf.h"

struct ipc;
struct sock_set;

/* Bind and listen; a socket file that nobody listens on is replaced. err gets
 * the reason in words; -EADDRINUSE a daemon is there, -errno. */
int sock_listen(struct sock_set **out, struct ipc *ipc, char *err,
		size_t err_len);
/* Stop listening, drop half-open connections, remove the socket files. */
void sock_close(struct sock_set *set);

/* Who may be what; gid is the primary one, groups the supplementary. */
struct sock_peer {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	gid_t *groups; /* [n_groups], borrowed */
	uint32_t n_groups;
};
/*
 * own: the tenant of the socket it came by, or NULL. Else the uid decides, then the
 * primary group, then the supplementary ones in their order. NULL: no tenant.
 */
const struct conf_tenant *sock_tenant(const struct conf *conf,
				      const struct conf_tenant *own,
				      const struct sock_peer *p);
/* uid 0, the daemon's own uid, or a member of the configured group. */
int sock_is_admin(const struct conf *conf, const struct sock_peer *p);
/* 1 for the uid that stands for all that cannot be mapped. */
int sock_is_overflow(uid_t uid);

/*
 * Check n bytes of a hello and fill in defaults and limits. 0, or -EINVAL,
 * -EPROTONOSUPPORT with *text saying why (a constant).
 */
int sock_check_hello(struct kv_hello *h, size_t n, const struct conf *conf,
		     uint64_t features, const char **text);

#endif
