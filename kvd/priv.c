/*
 * priv.c - give up what the daemon does not need once it has started
 *
 * The filter is a list of what is refused, with EPERM, not of what is allowed:
 * drivers, the C library and libmicrohttpd make calls that vary with version
 * and machine, while the calls that turn a bug into control of the host are
 * few. Sockets, memory, io_uring and threads stay.
 */
#include "kvd/priv.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/base.h"
#include "kvd/base/log.h"

/* Start programs, trace others, change mounts, kernel, clock or namespaces. */
static const char *const refused[] = {
#ifndef __SANITIZE_ADDRESS__ /* looks for leaks by it */
	"ptrace",
#endif
	"execve",
	"execveat",
	"process_vm_readv",
	"process_vm_writev",
	"mount",
	"umount2",
	"pivot_root",
	"chroot",
	"move_mount",
	"open_tree",
	"fsopen",
	"fsconfig",
	"fsmount",
	"fspick",
	"mount_setattr",
	"kexec_load",
	"kexec_file_load",
	"init_module",
	"finit_module",
	"delete_module",
	"bpf",
	"perf_event_open",
	"setns",
	"unshare",
	"reboot",
	"swapon",
	"swapoff",
	"add_key",
	"request_key",
	"keyctl",
	"open_by_handle_at",
	"name_to_handle_at",
	"acct",
	"settimeofday",
	"clock_settime",
	"clock_adjtime",
	"adjtimex",
	"sethostname",
	"setdomainname",
	"quotactl",
	"iopl",
	"ioperm",
	"personality",
	"syslog",
	"vhangup",
	"mknod",
	"mknodat",
	"lookup_dcookie",
	"setuid",
	"setgid",
	"setreuid",
	"setregid",
	"setresuid",
	"setresgid",
	"setgroups",
	"setfsuid",
	"setfsgid",
	"capset",
	"kcmp",
	"process_madvise",
	"pidfd_getfd",
};

static int keep_caps(void)
{
	static const cap_value_t kept[] = { CAP_IPC_LOCK, CAP_SYS_NICE };
	cap_t caps = cap_init();
	int ret = 0;

	if (!caps)
		return -errno;
	if (cap_set_flag(caps, CAP_PERMITTED, (int)KV_ARRAY_LEN(kept), kept,
			 CAP_SET) ||
	    cap_set_flag(caps, CAP_EFFECTIVE, (int)KV_ARRAY_LEN(kept), kept,
			 CAP_SET) ||
	    cap_set_proc(caps))
		ret = -errno;
	(void)cap_free(caps); /* our own */
	return ret;
}

/*
 * A regular file that has no other name, or a directory, becomes the user's. Not
 * followed are links, of either kind, that somebody put in its place.
 */
static void give(const char *path, uid_t uid, gid_t gid)
{
	const int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0) {
		if (errno != ENOENT)
			log_warn("priv", "%s: %s", path, strerror(errno));
		return;
	}
	if (fstat(fd, &st) ||
	    !(S_ISDIR(st.st_mode) || (S_ISREG(st.st_mode) && st.st_nlink == 1)))
		log_info("priv", "%s keeps its owner", path);
	else if (fchownat(fd, "", uid, gid, AT_EMPTY_PATH))
		log_warn("priv", "%s: owner: %s", path, strerror(errno));
	(void)close(fd); /* only a name */
}

/* What this start made, the next one as that user must be able to open. */
static void give_state(const struct conf *c, uid_t uid, gid_t gid)
{
	char path[sizeof(c->state_dir) + 16];
	static const char *const files[] = { "kvd.gates", "kvd.uses",
					     "kvd.store" };

	for (uint32_t i = 0; i < c->n_stores; i++)
		give(c->stores[i].path, uid, gid);
	if (!c->state_dir[0])
		return;
	give(c->state_dir, uid, gid);
	for (size_t i = 0; i < KV_ARRAY_LEN(files) - !!c->n_stores; i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", c->state_dir,
			       files[i]);
		give(path, uid, gid);
	}
}

static int change_user(const struct conf *conf)
{
	const uid_t uid = (uid_t)conf->drop_to_uid;
	const struct passwd *pw = getpwuid(uid);
	const gid_t gid = pw ? pw->pw_gid : (gid_t)uid;
	int ret;

	give_state(conf, uid, gid);
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
		log_warn("priv", "capabilities will be lost: %s",
			 strerror(errno));
	if (setgroups(0, NULL) || setresgid(gid, gid, gid) ||
	    setresuid(uid, uid, uid)) {
		ret = -errno;
		log_error("priv", "cannot become uid %u: %s", (unsigned int)uid,
			  strerror(-ret));
		return ret;
	}
	ret = keep_caps();
	if (ret)
		log_warn("priv", "no capabilities kept: %s", strerror(-ret));
	log_info("priv", "now uid %u, gid %u", (unsigned int)uid,
		 (unsigned int)gid);
	return 0;
}

static int filter(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	int ret, nr;

	if (!ctx)
		return -ENOMEM;
	ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	for (size_t i = 0; !ret && i < KV_ARRAY_LEN(refused); i++) {
		nr = seccomp_syscall_resolve_name(refused[i]);
		if (nr != __NR_SCMP_ERROR)
			ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), nr,
					       0);
		if (ret == -EDOM || ret == -EFAULT)
			ret = 0; /* not a call of this machine */
	}
	if (!ret)
		ret = seccomp_load(ctx);
	seccomp_release(ctx);
	return ret;
}

int priv_drop(const struct conf *conf)
{
	int ret;

	if (conf->drop_to_uid > 0 && geteuid() == 0) {
		ret = change_user(conf);
		if (ret)
			return ret;
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		log_warn("priv", "no_new_privs: %s", strerror(errno));
	if (!conf->sandbox)
		return 0;
	ret = filter();
	if (ret)
		log_warn("priv", "no system call filter: %s", strerror(-ret));
	else
		log_info("priv", "%zu system calls refused from here on",
			 KV_ARRAY_LEN(refused));
	return 0;
}
